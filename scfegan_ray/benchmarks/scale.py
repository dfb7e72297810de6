"""How preparation, feed and training grow from one node to two, and what Ray takes of a node.

The nodes are Ray's own, started on this machine: each has one core, which all its processes share and no other node's
may use; the head, which gives no CPUs, has both.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from scfegan_ray import places
from scfegan_ray.benchmarks import feed, ray, step
from scfegan_ray.config import Config
from scfegan_ray.data import prepare
from scfegan_ray.data.examples import TrainingExamples
from scfegan_ray.data.feed import Feed
from scfegan_ray.data.ray_feed import Budget, RayPool
from scfegan_ray.data.rows import PreparedDataset
from scfegan_ray.errors import ConfigError

logger = logging.getLogger(__name__)

_ROUNDS = 2
_FEED_SECONDS = 10.0
_TRAIN_SECONDS = 20.0
_SETTLING_SECONDS = 12.0
_FEWEST_UPDATES = 8
_EATEN = 1.5
"""How much more than one core makes a trainer takes, who waits for it."""
_HEAD_BYTES, _NODE_BYTES = 1 << 30, 1 << 29


def run(config: Config, *, session: Callable[[], contextlib.AbstractContextManager[None]]) -> dict[str, Any]:
    """Measure, in turns so that all meet the same machine, log a table, and keep nothing.

    Args:
        config: `data`, `model`, `losses` and `train.batch_size` are read.
        session: joins the Ray that `RAY_ADDRESS` names.

    Returns:
        By prepare, feed, train: one_node, two_nodes: images per second, medians; speedup: the median over rounds of the
        second over the first. By feed and train also plain (without Ray, by processes on the same core) and ray_share
        (one_node over it). By eater: how long a trainer waits for its batches who takes 1.5 times what one core makes,
        as a share of its time, of one_node and of two_nodes.

    Raises:
        ConfigError: this process may use one core only.
    """
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise ConfigError("two nodes are measured, each on a core of its own: give two cores")
    batch_size = config.train.batch_size
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory(prefix="scfegan-benchmark-") as scratch:
        config = replace(
            step.few_faces(config),
            storage=replace(config.storage, path=scratch),
            tracking=replace(config.tracking, uri=f"sqlite:///{scratch}/mlflow.db"),
            train=replace(config.train, threads_per_worker=1, cpus_per_worker=1, window_images=0),
        )
        for turn in range(_ROUNDS):
            with feed.one_thread_on(cores[0]):
                alone, _ = ray.updates_in_a_process(config)
            found["train"]["plain"].append(alone)
            for number, nodes in ((1, "one_node"), (2, "two_nodes")):
                with _nodes(cores[:number], session):
                    made = prepare.prepare(_placed(config, f"{scratch}/prepared-{turn}-{number}"))
                    found["prepare"][nodes].append(made.num_made / made.busy_seconds)
                    with_data = _placed(config, made.uri)
                    dataset = PreparedDataset.open(made.uri)
                    with _by_ray(with_data, dataset) as one:
                        found["feed"][nodes].append(_take(one, batch_size)[0])
                    if number == 1:
                        with feed.feeding(with_data, dataset, cores[:1], torch.device("cpu")) as one:
                            found["feed"]["plain"].append(_take(one, batch_size)[0])
                    pause = batch_size / (_EATEN * found["feed"]["one_node"][-1])
                    with _by_ray(with_data, dataset) as one:
                        found["eater"][nodes].append(_take(one, batch_size, pause)[1])
                    updates = _FEWEST_UPDATES + int(_TRAIN_SECONDS * number * alone / batch_size)
                    found["train"][nodes].append(
                        ray.loop_rate(with_data, f"benchmark-{turn}-{number}", number, updates)
                    )
    result: dict[str, Any] = {
        name: {one: statistics.median(values) for one, values in rates.items()} for name, rates in found.items()
    }
    for name in ("prepare", "feed", "train"):
        rates = found[name]
        ratios = [two / one for one, two in zip(rates["one_node"], rates["two_nodes"], strict=True)]
        result[name]["speedup"] = statistics.median(ratios)
        if "plain" in rates:
            result[name]["ray_share"] = result[name]["one_node"] / result[name]["plain"]
    _log(config, result)
    return result


def _log(config: Config, result: dict[str, Any]) -> None:
    logger.info("images/s at %d px, batches of %d", config.data.size_px, config.train.batch_size)
    for name in ("prepare", "feed", "train"):
        found = result[name]
        plain = f"; without Ray {found['plain']:.3g}, share {found['ray_share']:.2f}" if "plain" in found else ""
        logger.info(
            "%-8s one node %8.3g  two nodes %8.3g  %.2f of one%s",
            name, found["one_node"], found["two_nodes"], found["speedup"], plain,
        )  # fmt: skip
    logger.info(
        "a trainer that takes %.1f times what one core makes waits %.0f %% of its time on one node, %.0f %% on two",
        _EATEN, 100 * result["eater"]["one_node"], 100 * result["eater"]["two_nodes"],
    )  # fmt: skip


def _placed(config: Config, uri: str) -> Config:
    return replace(config, data=replace(config.data, prepared=uri))


@contextlib.contextmanager
def _nodes(cores: list[int], session: Callable[[], contextlib.AbstractContextManager[None]]) -> Iterator[None]:
    """Join a Ray that has a node on each of some cores, besides its head."""
    from ray.cluster_utils import Cluster

    all_cores = os.sched_getaffinity(0)
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder,
        places.variables({"RAY_TMPDIR": folder}),
    ):
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": _HEAD_BYTES})
        try:
            for core in cores:
                os.sched_setaffinity(0, {core})  # which what is started inherits
                cluster.add_node(num_cpus=1, object_store_memory=_NODE_BYTES)
            os.sched_setaffinity(0, all_cores)
            with places.variables({"RAY_ADDRESS": cluster.address}), session():
                yield
        finally:
            os.sched_setaffinity(0, all_cores)
            cluster.shutdown()


@contextlib.contextmanager
def _by_ray(config: Config, dataset: PreparedDataset) -> Iterator[Feed]:
    made = TrainingExamples(dataset, config.masks, config.seed)
    pool = functools.partial(
        RayPool, made.said(), batch_size=config.train.batch_size, budget=Budget(num_workers=1, cpus_per_worker=0)
    )
    device = torch.device("cpu")
    feed = Feed(
        made,
        batch_size=config.train.batch_size,
        rank=0,
        num_workers=1,
        num_processes=0,
        device=device,
        make_pool=pool,
    )
    with contextlib.closing(feed):
        yield feed


def _take(feed: Feed, batch_size: int, pause: float = 0.0) -> tuple[float, float]:
    """Return images per second of a feed that is at work, and the share of time for which batches were waited for.

    Args:
        feed: whose batches are taken.
        batch_size: images of each.
        pause: seconds that whoever takes a batch has use for it.
    """
    batches = feed.batches(0)
    began = time.perf_counter()
    while time.perf_counter() - began < _SETTLING_SECONDS:  # all that make them are at work
        next(batches)
    began, done, waited = time.perf_counter(), 0, 0.0
    while time.perf_counter() - began < _FEED_SECONDS:
        asked = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - asked
        done += batch_size
        time.sleep(pause)
    seconds = time.perf_counter() - began
    return done / seconds, waited / seconds
