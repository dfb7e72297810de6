"""What is refused before anything starts, and what a run's name remembers; without Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from mlflow import MlflowClient
from tiny import DATASET

from scfegan_ray import tracking
from scfegan_ray.config import Config
from scfegan_ray.data.prepared import DatasetInfo
from scfegan_ray.errors import ConfigError
from scfegan_ray.training import launch


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
