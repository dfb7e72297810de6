"""`jobs/train.py --plan`: what it counts, what it looks at, and that it starts nothing."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace

import pytest
import ray

from scfegan_ray.config import Config
from scfegan_ray.errors import ConfigError
from scfegan_ray.planning import plan
from scfegan_ray.planning.options import ClusterConfig
from scfegan_ray.training.state import TrainingState


@contextlib.contextmanager
def no_session() -> Iterator[None]:
    raise AssertionError("nothing is started")
    yield


def test_a_plan_starts_nothing_and_says_all(
    tiny: Config, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    caplog.set_level(logging.INFO)
    cluster = ClusterConfig(photographs=(100, 200))
    found = plan.run(replace(tiny, train=replace(tiny.train, use_gpu=True)), cluster, session=no_session)
    assert set(found) == {"figures", "preparation", "training", "bends_at"}
    assert [(one["photographs"], one["workers"]) for one in found["preparation"]] == [
        (number, workers) for number in (100, 200) for workers in (1, 8, 64)
    ]
    assert [one["workers"] for one in found["training"]] == [1, 1], "its batch has four images"
    assert "64 workers cannot share a batch of 4 images" in caplog.text
    assert found["bends_at"] is None
    assert all(name in caplog.text for name in found["figures"])
    assert not ray.is_initialized()


def test_what_is_counted_is_what_a_state_holds(tiny: Config) -> None:
    found = plan.count(tiny)
    state = TrainingState.build(tiny)
    trained = sum(p.numel() for network in (state.generator, state.discriminator) for p in network.parameters())
    average = sum(p.numel() for p in state.ema.parameters())
    assert found.gradient_bytes == 4 * trained
    assert found.checkpoint_bytes == 4 * (3 * trained + average)
    assert found.flops > 0 and found.calls > 100
    assert found.example_bytes >= 9 * 32 * 32
    wide = replace(tiny, train=replace(tiny.train, batch_size=4, num_workers=1))
    assert plan.count(wide) == found, "of one image, whatever the batch"


def test_a_running_cluster_is_taken_as_it_is(tiny: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"CPU": 4.0}, {"CPU": 0.0}, {"CPU": 16.0}, {"CPU": 24.0, "GPU": 4.0}, {"CPU": 26.0, "GPU": 2.0}]
    on_gpus = replace(tiny, train=replace(tiny.train, use_gpu=True, batch_size=8))
    seen = plan.from_nodes(on_gpus, ClusterConfig(), nodes)
    assert (seen.workers, seen.workers_per_node, seen.cpus_per_worker) == ((6,), 4, 6)
    assert (seen.cpu_nodes, seen.cpus_per_cpu_node) == (2, 10)
    with pytest.raises(ConfigError, match="no node of the running cluster has a GPU"):
        plan.from_nodes(on_gpus, ClusterConfig(), nodes[:3])
    on_cpus = replace(tiny, train=replace(tiny.train, cpus_per_worker=8.0))
    assert plan.from_nodes(on_cpus, ClusterConfig(), nodes[2:3]).workers == (2,)

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": one} for one in nodes])
    entered = []
    found = plan.run(on_gpus, ClusterConfig(), session=lambda: contextlib.nullcontext(entered.append("joined")))
    assert entered == ["joined"]
    assert [one["workers"] for one in found["training"]] == [6]
