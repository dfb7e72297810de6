"""Where examples are made is chosen by what the cluster has, and said; nothing that could wait for ever is begun."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import ray
from tiny import DATASET, TINY

from scfegan_ray import nodes
from scfegan_ray.config import Config
from scfegan_ray.errors import ConfigError
from scfegan_ray.presets import preset
from scfegan_ray.training import feeding, launch

Build = Callable[..., None]
GB = 10**9


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Build:
    """Return what makes Ray say that it has some nodes, each (CPUs, GPUs), whose disks have so much room."""

    def build(*found: tuple[float, float], room: float = 1e12) -> None:
        there = [
            {"NodeID": str(at), "Alive": True, "Resources": {"CPU": cpus} | ({"GPU": gpus} if gpus else {})}
            for at, (cpus, gpus) in enumerate(found)
        ]
        totals = {"CPU": sum(cpus for cpus, _ in found), "GPU": sum(gpus for _, gpus in found)}
        totals["object_store_memory"] = 10 * GB * len(found)
        monkeypatch.setattr(ray, "nodes", lambda: there)
        monkeypatch.setattr(ray, "cluster_resources", lambda: totals)
        monkeypatch.setattr(nodes, "ask", lambda question, whom: [room] * len(whom))

    return build


def config(feed: str = "ray", **train: Any) -> Config:
    return replace(TINY, data=replace(TINY.data, feed=feed), train=replace(TINY.train, **train))


GPU = {"use_gpu": True, "num_workers": 2, "cpus_per_worker": 2, "loader_processes": 2}


@pytest.mark.parametrize(
    ("found", "train", "chosen", "why"),
    [
        ([(2, 0)], {}, "local", "no other nodes have cores to spare"),
        ([(4, 1), (4, 1)], GPU, "local", "no other nodes have cores to spare"),
        ([(4, 2), (32, 0)], GPU, "ray", "2 cores beside each worker are fewer than 3, and other nodes have 32"),
        ([(4, 2), (1, 0)], GPU, "local", "no other nodes have cores to spare"),
        ([(16, 2), (32, 0)], GPU, "local", "8 cores beside each worker are enough"),
        ([(0, 0), (32, 0)], GPU, "local", "no other nodes have cores to spare"),
    ],
)
def test_auto_is_by_the_cores(
    cluster: Build, found: list[tuple[float, float]], train: dict[str, Any], chosen: str, why: str
) -> None:
    cluster(*found)
    assert feeding.choose(config("auto", **train), DATASET, 0) == (chosen, why)


def test_auto_is_by_the_room(cluster: Build) -> None:
    cluster((16, 2), (32, 0), room=100 * GB)
    large = replace(DATASET, num_images=300_000, num_shards=300, size_px=512)
    chosen, why = feeding.choose(config("auto", **GPU), large, 0)
    assert chosen == "ray"
    assert why == "a worker's disk has 100 GB free, its copies take up to 157 GB"
    chosen, _ = feeding.choose(config("auto", **GPU), large, 4096)
    assert chosen == "local", "two windows are 8,192 images and two shards of a thousand: 5.3 GB"
    assert feeding.local_bytes(large, 4096) == (8192 + 2000) * 2 * 512**2


def test_what_is_asked_for_says_its_cost(cluster: Build) -> None:
    cluster((2, 0))
    large = replace(DATASET, num_images=100_000, num_shards=100, size_px=512)
    assert feeding.choose(config("ray"), large, 0) == (
        "ray",
        "as asked for; each machine that makes examples copies up to 52.4 GB, for a permutation of all images",
    )
    assert feeding.choose(config("ray"), large, 4096)[1].endswith("up to 5.34 GB, for windows of 4096 images")
    assert (
        feeding.choose(config("local"), large, 0)[1] == "as asked for; each machine with a worker copies up to 52.4 GB"
    )


@pytest.mark.parametrize(
    ("found", "train", "budget"),
    [
        ([(2, 0)], {}, (1, 0.5)),
        ([(4, 2), (32, 0)], GPU, (16, 1.0)),
        ([(4, 1)], {"use_gpu": True, "num_workers": 1, "cpus_per_worker": 2.5}, (1, 1.0)),
        ([(4, 1)], {"use_gpu": True, "num_workers": 1, "cpus_per_worker": 3.67}, (1, 0.33)),
    ],
)
def test_feeds_take_what_workers_leave(
    cluster: Build, found: list[tuple[float, float]], train: dict[str, Any], budget: tuple[int, float]
) -> None:
    cluster(*found)
    settings = config(**train)
    assert feeding.budget(settings, settings.train.num_workers).now() == budget
    workers = settings.train.num_workers
    taken = workers * (settings.train.cpus_per_worker + budget[0] * budget[1])
    assert taken <= sum(cpus for cpus, _ in found)


def test_blocks_of_two_terms_wait_in_half_of_the_object_stores(cluster: Build) -> None:
    cluster((4, 2), (32, 0))
    budget = feeding.budget(config(**GPU), 2)
    small, large = 1_000_000, 40_000_000
    assert budget.waiting_bytes(16, small) == 132 * small, "eight for each of 16 cores, and four"
    assert budget.waiting_bytes(16, large) == 2.5 * GB, "a quarter of 20 GB for two workers"
    assert replace(budget, num_trials=100).waiting_bytes(16, large) == 12 * large, "a task can always run"


def test_trials_share_the_cluster(cluster: Build) -> None:
    cluster((8, 0))
    trial = replace(config(num_workers=2, cpus_per_worker=1), tune=replace(TINY.tune, max_concurrent_trials=2))
    assert feeding.budget(trial, 2).now() == (1, 1.0), "4 CPUs each: two workers, and one for the feed of either"


def test_one_gpu_with_four_cores_says_what_lacks(cluster: Build) -> None:
    """`small_256` as it is: its one worker takes all four cores."""
    cluster((4, 1))
    small = preset("small_256").changed({"data.feed": "ray"})
    with pytest.raises(
        ConfigError, match=r"^1 workers and the feed of each need 4\.1 CPU, the cluster has 4; lower .*"
    ):
        launch.check_resources(small)
    with pytest.raises(ConfigError, match=r"finds no CPUs: the cluster has 4, 1 workers take 4; lower .*, or"):
        feeding.budget(small, 1)
    assert feeding.budget(small.changed({"train.cpus_per_worker": 2.0}), 1).now() == (2, 1.0)


def test_cluster_that_grows_from_nothing_is_waited_for(cluster: Build) -> None:
    cluster((0, 0))
    small = preset("small_256").changed({"data.feed": "ray", "train.wait_for_nodes": True})
    launch.check_resources(small)
    assert feeding.budget(small, 1).now() == (2, 1.0), "Ray Data asks for them"
    assert feeding.choose(small.changed({"data.feed": "auto"}), DATASET, 0)[0] == "local"
    budget = feeding.budget(small, 1)
    cluster((8, 1), (32, 0))
    assert budget.now() == (36, 1.0), "what has come by now is used from the next term on"
