"""MLflow with SQLite: runs, records that fail, versions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient

from scfegan_ray import tracking
from scfegan_ray.config import Config, StorageConfig, TrackingConfig
from scfegan_ray.errors import ModelError, StorageError
from scfegan_ray.training.state import TrainingState


@pytest.fixture
def config(tiny: Config, tmp_path: Path) -> Config:
    (tmp_path / "runs").mkdir()
    return tiny


def test_where_runs_go(tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracking.tracking_uri(tiny) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    assert tracking.tracking_uri(tiny) == "http://server"
    given = replace(tiny, tracking=TrackingConfig(uri="sqlite:///x.db"))
    assert tracking.tracking_uri(given) == "sqlite:///x.db"


def test_database_cannot_live_in_an_object_store(tiny: Config) -> None:
    away = replace(tiny, storage=StorageConfig(path="s3://bucket/runs"))
    with pytest.raises(StorageError, match="give --tracking.uri or set MLFLOW_TRACKING_URI"):
        tracking.tracking_uri(away)


def test_run_keeps_config_records_and_end(config: Config) -> None:
    run_id = tracking.start_run(config, "tiny", tags={"data_license": "CC0-1.0"})
    client = MlflowClient(tracking.tracking_uri(config))
    tracker = tracking.open_tracker(tracking.tracking_uri(config), run_id)
    tracker.metrics({"train/generator/total": 1.5}, 8)
    tracker.picture("grid", np.zeros((4, 4, 3), np.uint8), 8)
    tracker.tags({"features": "random"})
    tracker.close()
    run = client.get_run(run_id)
    assert run.info.status == "RUNNING"
    assert run.data.metrics == {"train/generator/total": 1.5}
    assert run.data.params["losses.perceptual"] == "0.05"
    assert (run.data.tags["data_license"], run.data.tags["features"]) == ("CC0-1.0", "random")
    assert run.info.artifact_uri.startswith(config.storage.path)
    tracking.end_run(config, run_id, "FINISHED")
    assert client.get_run(run_id).info.status == "FINISHED"
    tracking.resume_run(config, run_id)
    assert client.get_run(run_id).info.status == "RUNNING"

    child = tracking.start_run(config, "child", tags={}, parent_run_id=run_id)
    assert client.get_run(child).data.tags["mlflow.parentRunId"] == run_id


def test_lost_records_are_counted_and_stop_nothing(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    tracking.start_run(config, "tiny", tags={})
    tracker = tracking.MlflowTracker(tracking.tracking_uri(config), "no-such-run")
    for seen in (1, 2, 3):
        tracker.metrics({"x": 1.0}, seen)
    tracker.close()
    assert "training goes on" in caplog.text
    assert caplog.text.count("training goes on") == 1
    assert "3 records of run no-such-run did not reach MLflow" in caplog.text


def test_no_run_id_means_no_records(config: Config) -> None:
    tracker = tracking.open_tracker("http://127.0.0.1:1", None)
    tracker.metrics({"x": 1.0}, 1)
    tracker.picture("grid", np.zeros((1, 1, 3), np.uint8), 1)
    tracker.tags({})
    tracker.close()
    assert isinstance(tracker, tracking.NullTracker)


def test_unusable_database_is_one_line(config: Config) -> None:
    broken = replace(config, tracking=TrackingConfig(uri="sqlite:////proc/nowhere/x.db"))
    with pytest.raises(StorageError, match="cannot use MLflow at sqlite:.*check --tracking.uri"):
        tracking.start_run(broken, "tiny", tags={})


def test_register_once_per_weights(config: Config) -> None:
    state = TrainingState.build(config)
    run_id = tracking.start_run(config, "tiny", tags={})
    size = config.data.size_px
    example = {
        name: np.zeros((1, size, size, channels), np.uint8)
        for name, channels in (("image", 3), ("mask", 1), ("sketch", 1), ("color", 3))
    }

    def register(digest: str) -> str:
        return tracking.register(
            state.ema, config, run_id, weights_sha256=digest, tags={"data_license": "L"}, example=example
        )

    assert [register("a"), register("a"), register("b")] == [
        "models:/scfegan-generator/1",
        "models:/scfegan-generator/1",
        "models:/scfegan-generator/2",
    ]
    assert not mlflow.is_tracking_uri_set(), "the process's own choice of server is left alone"
    folder = tracking.download_model("models:/scfegan-generator/2", tracking.tracking_uri(config))
    assert Config.from_dict(json.loads((folder / "artifacts" / "config.json").read_text())) == config
    assert not list(folder.rglob("*.pkl"))
    model = (folder / "MLmodel").read_text()
    assert "input_example" in model and "data_license: L" in model
    with pytest.raises(ModelError, match="no model models:/scfegan-generator/9"):
        tracking.download_model("models:/scfegan-generator/9", tracking.tracking_uri(config))


def test_revision_is_a_hash_or_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert tracking.git_revision() == "unknown"


def test_children_are_ended_by_their_parent(config: Config) -> None:
    parent = tracking.start_run(config, "search", tags={})
    names = ("stopped", "broken", "done")
    runs = {name: tracking.start_run(config, name, tags={}, parent_run_id=parent) for name in names}
    other = tracking.start_run(config, "other", tags={})
    tracking.end_run(config, runs["done"], "FINISHED")
    tracking.end_children(config, parent, {"broken"})
    client = MlflowClient(tracking.tracking_uri(config))
    statuses = {name: client.get_run(run_id).info.status for name, run_id in runs.items()}
    assert statuses == {"stopped": "KILLED", "broken": "FAILED", "done": "FINISHED"}
    assert client.get_run(parent).info.status == client.get_run(other).info.status == "RUNNING"
