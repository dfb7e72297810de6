"""What is refused before anything starts, and what a run's name remembers; without Ray."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from mlflow import MlflowClient
from tiny import DATASET

from scfegan_ray import tracking
from scfegan_ray.config import Config
from scfegan_ray.data.dataset import DatasetInfo
from scfegan_ray.errors import ConfigError, DataError, ModelError
from scfegan_ray.models import features
from scfegan_ray.training import launch


@pytest.fixture(autouse=True)
def _tables(tracked: Config) -> None:
    """Have MLflow's tables made."""


def open_run(config: Config, dataset: DatasetInfo = DATASET) -> dict[str, Any]:
    place = Path(config.storage.path, "tiny")
    place.mkdir(parents=True, exist_ok=True)
    return launch._open_run(config, str(place), dataset, {"data_license": "CC0-1.0"}, None)


def test_same_name_is_the_same_run(tiny: Config) -> None:
    first = open_run(tiny)
    client = MlflowClient(tracking.tracking_uri(tiny))
    tracking.end_run(tiny, first["run_id"], "KILLED")
    longer = replace(tiny, train=replace(tiny.train, images=10_000, num_workers=1, log_every_images=3))
    again = open_run(longer)
    assert again == first, "features and settings are those of the start"
    assert client.get_run(first["run_id"]).info.status == "RUNNING"
    assert len(client.search_runs(["1"])) == 1


def test_what_changes_learning_is_refused(tiny: Config) -> None:
    open_run(tiny)
    with pytest.raises(
        ConfigError,
        match="was started with losses.style = 120.0, now it is 60.0; use another --run-name than tiny or the old",
    ):
        open_run(replace(tiny, losses=replace(tiny.losses, style=60.0)))
    with pytest.raises(ConfigError, match="was started with train.batch_size"):
        open_run(replace(tiny, train=replace(tiny.train, batch_size=2)))
    with pytest.raises(ConfigError, match="was started with seed"):
        open_run(replace(tiny, seed=1))


def test_other_photographs_are_refused(tiny: Config) -> None:
    open_run(tiny)
    with pytest.raises(ConfigError, match="was started on another dataset than embedded as prepared now"):
        open_run(tiny, replace(DATASET, fingerprint="other"))


def test_run_larger_than_the_cluster_is_refused(tiny: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0, "memory": 1e9})
    fits = replace(tiny.train, num_workers=2, cpus_per_worker=1.0)
    launch.check_resources(replace(tiny, train=fits))
    large = replace(fits, cpus_per_worker=1.5)
    with pytest.raises(ConfigError, match="2 workers need 3 CPU, the cluster has 2; lower --train.num-workers"):
        launch.check_resources(replace(tiny, train=large))
    launch.check_resources(replace(tiny, train=replace(large, wait_for_nodes=True)))
    launch.check_resources(replace(tiny, train=replace(large, min_workers=1)))
    with pytest.raises(ConfigError, match="2 workers need 2 GPU, the cluster has 0"):
        launch.check_resources(replace(tiny, train=replace(fits, use_gpu=True)))


GOLDEN_RUN = Path(__file__).parent.parent / "golden" / "version_0_1" / "run"


def offline() -> None:
    raise ModelError("no network")


@pytest.mark.parametrize(("native", "settled"), [(True, "bfloat16"), (False, "float32")])
def test_what_is_left_to_auto_is_settled_once(
    tiny: Config, native: bool, settled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one machine without GPUs nobody else is asked."""
    monkeypatch.setattr(features.weights, "hed_arrays", offline)
    here = {"NodeID": "here", "Alive": True, "Resources": {"CPU": 2.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [here, {"NodeID": "gone", "Alive": False}])
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here"))
    monkeypatch.setattr(launch, "has_bfloat16", lambda device: native)

    def with_settings(precision: str, seen: str) -> Config:
        return replace(tiny, train=replace(tiny.train, precision=precision), losses=replace(tiny.losses, features=seen))

    first = open_run(with_settings("auto", "auto"))
    assert (first["precision"], first["features"]) == (settled, "random")
    monkeypatch.setattr(launch, "has_bfloat16", lambda device: not native)
    for again in (with_settings("auto", "auto"), with_settings(settled, "random"), with_settings("auto", "random")):
        assert open_run(again) == first
    other = "float32" if native else "bfloat16"
    with pytest.raises(ConfigError, match=f"was started with train.precision = {settled}, now it is {other}"):
        open_run(with_settings(other, "auto"))
    with pytest.raises(ConfigError, match="was started with losses.features = random, now it is hed"):
        open_run(with_settings("auto", "hed"))


def test_tf32_is_of_the_run(tiny: Config) -> None:
    open_run(tiny)
    with pytest.raises(ConfigError, match="was started with train.tf32 = off, now it is all"):
        open_run(replace(tiny, train=replace(tiny.train, tf32="all")))


@pytest.mark.parametrize(
    ("setting", "tagged", "settled"), [("auto", "bfloat16", "bfloat16"), ("float32", None, "float32")]
)
def test_run_of_version_0_1_goes_on(
    tiny: Config, setting: str, tagged: str | None, settled: str, caplog: pytest.LogCaptureFixture
) -> None:
    record = Path(tiny.storage.path, "tiny", "run.json")
    record.parent.mkdir(parents=True)
    shutil.copy(GOLDEN_RUN / "run.json", record)
    known = json.loads(record.read_text())
    known["config"]["train"]["precision"] = setting
    config = replace(Config.from_dict(known["config"]), run_name="tiny", storage=tiny.storage)
    tags = {"precision": tagged} if tagged else {}
    known["run_id"] = tracking.start_run(config, "tiny", tags=tags)
    record.write_text(json.dumps(known))
    dataset = replace(DATASET, fingerprint=known["data_fingerprint"])
    with caplog.at_level(logging.WARNING):
        found = open_run(config, dataset)
    assert found == known | {"precision": settled, "window_images": 0}
    assert json.loads(record.read_text()) == found, "from now on it is fixed"
    assert f"it goes on in {settled}" in caplog.text
    caplog.clear()
    assert open_run(config, dataset) == found
    assert not caplog.records


def test_nothing_held_back_is_refused_unless_on_purpose(caplog: pytest.LogCaptureFixture) -> None:
    launch.check_held_back(DATASET, needed=True)
    empty = replace(DATASET, num_train=12, num_test=0, test_fraction=1 / 30)
    with pytest.raises(
        DataError, match=r"none of the 12 images of embedded is held back .* --data\.test-fraction 0\.2"
    ):
        launch.check_held_back(empty)
    on_purpose = replace(empty, test_fraction=0.0)
    with pytest.raises(DataError, match="nothing can be measured"):
        launch.check_held_back(on_purpose, needed=True)
    with caplog.at_level(logging.WARNING):
        launch.check_held_back(on_purpose)
    assert "nothing is measured, no checkpoint is kept as the best" in caplog.text


def test_features_that_cannot_be_had_end_a_run_before_it_prepares(
    tiny: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features.weights, "hed_arrays", offline)
    monkeypatch.setattr(launch, "check_resources", lambda config: None)
    monkeypatch.setattr(launch.prepare, "ensure_prepared", lambda config: pytest.fail("prepares"))
    with pytest.raises(ModelError, match="no network; or give --losses.features a file"):
        launch.train(replace(tiny, losses=replace(tiny.losses, features="hed")))
