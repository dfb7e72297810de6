"""The benchmark of the workers' loop compares like with like."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from scfegan_ray.benchmarks import ray
from scfegan_ray.config import Config
from scfegan_ray.data import prepare
from scfegan_ray.training import launch


def test_one_gpu_has_no_place_for_two_workers(tiny: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "updates_in_a_process", lambda config: (20.0, 0.1))
    monkeypatch.setattr(prepare, "ensure_prepared", lambda config: "somewhere")
    monkeypatch.setattr(launch, "train", lambda config, register: SimpleNamespace(images_per_second=10.0))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    config = replace(tiny, train=replace(tiny.train, use_gpu=True))
    assert ray.run_loops(config, session=contextlib.nullcontext) == {
        "images_per_second": {"alone": 20.0, "beside_ray": 20.0, "one_worker": 10.0},
        "variation": 0.1,
        "ray_share": 0.5,
        "loop_share": 0.5,
    }


def test_loops_are_compared_within_their_round(tiny: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions, trained = [], []
    processes = iter([40.0, 30.0, 20.0, 20.0])  # alone and beside Ray, for each of two rounds
    workers = iter([30.0, 15.0, 10.0, 10.0])  # one and two

    @contextlib.contextmanager
    def session() -> Iterator[None]:
        sessions.append("Ray runs")
        yield
        sessions.pop()

    def alone(config: Config) -> tuple[float, float]:
        assert config.data.prepared == "somewhere"
        rate = next(processes)
        return rate, rate / 1000

    def train(config: Config, register: bool) -> SimpleNamespace:
        assert sessions and not register and Path(config.storage.path).is_dir()
        trained.append(config)
        return SimpleNamespace(images_per_second=next(workers))

    monkeypatch.setattr(ray, "_ROUNDS", 2)
    monkeypatch.setattr(ray, "updates_in_a_process", alone)
    monkeypatch.setattr(prepare, "ensure_prepared", lambda config: "somewhere")
    monkeypatch.setattr(launch, "train", train)
    assert ray.run_loops(tiny, session=session) == {
        "images_per_second": {"alone": 30.0, "beside_ray": 25.0, "one_worker": 20.0, "two_workers": 12.5},
        "variation": 0.03,
        "ray_share": (30 / 40 + 10 / 20) / 2,
        "loop_share": (30 / 30 + 10 / 20) / 2,
        "workers_share": (15 / 30 + 10 / 10) / 2,
    }
    assert [config.train.num_workers for config in trained] == [1, 2, 1, 2]
    assert len({config.run_name for config in trained}) == 4, "none resumes another"
    assert all(config.train.images % tiny.train.batch_size == 0 for config in trained)
    assert not Path(trained[0].storage.path).exists(), "nothing is kept"


def test_updates_alone_are_counted(tiny: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "_LOOP_SECONDS", 0.0)
    clock = itertools.accumulate(itertools.chain([100.0], itertools.cycle([1.0, 3.0])))
    monkeypatch.setattr(ray, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    found = json.loads(ray.updates_alone(json.dumps(tiny.to_dict())))
    assert found == {"images_per_second": tiny.train.batch_size / 2.0, "variation": 0.5}
