"""The feed's benchmark measures what it says, and leaves the process as it was."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from prepared_set import write_dataset

from scfegan_ray.benchmarks import feed
from scfegan_ray.cli import ray_session
from scfegan_ray.config import Config
from scfegan_ray.errors import ConfigError

NUMBERS = {"1", "2"}


@pytest.fixture
def config(tiny: Config, tmp_path: Path) -> Config:
    return replace(tiny, data=replace(tiny.data, prepared=write_dataset(tmp_path / "set")))


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_both_figures_are_measured(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_ROUNDS", 2), ("_FEED_SECONDS", 0.1), ("_UPDATE_SECONDS", 0.0)):
        monkeypatch.setattr(feed, name, value)
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    found = json.loads(feed.measure(json.dumps(config.to_dict())))
    assert (os.sched_getaffinity(0), torch.get_num_threads()) == (cores, threads)
    for name in ("images_per_second", "speedup", "speedup_of_own_time", "waited"):
        assert found[name].keys() >= NUMBERS
    assert found["speedup"]["1"] == found["speedup_of_own_time"]["1"] == 1.0
    assert all(0.0 <= value <= 1.0 for value in found["waited"].values())
    assert found["update_seconds"].keys() == {"idle", "fed"}
    assert 0.1 < found["update_cost"] < 10.0 and 0.1 < found["update_cost_of_own_time"] < 10.0


def test_given_dataset_is_measured_in_a_process_of_its_own(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    broken = replace(config, losses=replace(config.losses, features="/no/such/file.h5"))
    with pytest.raises(RuntimeError, match=r"(?s)could not be measured: .*/no/such/file\.h5"):
        feed.run(broken, session=ray_session)


def test_one_core_is_refused(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3})
    with pytest.raises(ConfigError, match="give two cores at least"):
        feed.run(config, session=ray_session)
