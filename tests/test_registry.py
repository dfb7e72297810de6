"""MLflow's registry with SQLite: versions."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from tiny import maps_of

from scfegan_ray import registry, tracking
from scfegan_ray.config import Config
from scfegan_ray.errors import ModelError
from scfegan_ray.provenance import source_sha256
from scfegan_ray.training.state import TrainingState


def test_register_once_per_weights(tracked: Config, tmp_path: Path) -> None:
    state = TrainingState.build(tracked)
    run_id = tracking.start_run(tracked, "tiny", tags={})
    example = maps_of(tracked)

    def register(digest: str) -> str:
        return registry.register(
            state.ema, tracked, run_id, weights_sha256=digest, tags={"data_license": "L"}, example=example
        )

    assert [register("a"), register("a"), register("b")] == [
        "models:/scfegan-generator/1",
        "models:/scfegan-generator/1",
        "models:/scfegan-generator/2",
    ]
    assert not mlflow.is_tracking_uri_set(), "the process's own choice of server is left alone"
    client = MlflowClient(tracking.tracking_uri(tracked))
    stored = client.get_model_version_download_uri("scfegan-generator", "2")
    folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=stored))
    assert Config.from_dict(json.loads((folder / "artifacts" / "config.json").read_text())) == tracked
    assert not list(folder.rglob("*.pkl"))
    model = (folder / "MLmodel").read_text()
    assert "input_example" in model and "data_license: L" in model
    files = {path.name for path in (folder / "artifacts").iterdir()}
    assert files == {"generator.pt2", "generator.safetensors", "config.json"}
    tags = client.get_model_version("scfegan-generator", "2").tags
    assert tags["source_sha256"] == client.get_run(run_id).data.tags["source_sha256"] == source_sha256()
    # A version as 0.1.0 registered it does not count.
    client.delete_model_version_tag("scfegan-generator", "2", "format_version")
    assert [register("b"), register("b")] == ["models:/scfegan-generator/3"] * 2
    with pytest.raises(ModelError, match="no model models:/scfegan-generator/9"):
        registry.download_weights("models:/scfegan-generator/9", tracking.tracking_uri(tracked), tmp_path)
