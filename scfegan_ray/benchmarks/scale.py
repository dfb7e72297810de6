"""How preparation, feed and training grow from one node to two, and what Ray takes of a node.

The nodes are Ray's own, started on this machine: each has one core, which all its processes share and no other node's
may use; the head, which gives no CPUs, has both.
"""

from __future__ import annotations

import contextlib
import functools
import json
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
from scfegan_ray.benchmarks import step
from scfegan_ray.config import Config
from scfegan_ray.data import prepare
from scfegan_ray.data.examples import TrainingExamples
from scfegan_ray.data.feed import Feed
from scfegan_ray.data.ray_feed import Budget, RayPool
from scfegan_ray.data.rows import PreparedDataset
from scfegan_ray.errors import ConfigError
from scfegan_ray.training import launch

logger = logging.getLogger(__name__)

_ROUNDS = 2
_FEED_SECONDS = 10.0
_TRAIN_SECONDS = 20.0
_SETTLING_BATCHES = 16
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
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory(prefix="scfegan-benchmark-") as scratch:
        config = replace(
            step.few_faces(config),
            storage=replace(config.storage, path=scratch),
            tracking=replace(config.tracking, uri=f"sqlite:///{scratch}/mlflow.db"),
            train=replace(config.train, threads_per_worker=1, cpus_per_worker=1, window_images=0),
        )
        for turn in range(_ROUNDS):
            alone = _updates(config, cores[0])
            found["train"]["plain"].append(alone)
            for number, nodes in ((1, "one_node"), (2, "two_nodes")):
                with _nodes(cores[:number], session):
                    made = prepare.prepare(_placed(config, f"{scratch}/prepared-{turn}-{number}"))
                    found["prepare"][nodes].append(made.num_made / made.busy_seconds)
                    with_data = _placed(config, made.uri)
                    dataset = PreparedDataset.open(made.uri)
                    found["feed"][nodes].append(_fed_by_ray(with_data, dataset))
                    if number == 1:
                        found["feed"]["plain"].append(_fed_by_a_process(with_data, dataset, cores[0]))
                    wanted = _EATEN * found["feed"]["one_node"][-1]
                    found["eater"][nodes].append(_waited(with_data, dataset, wanted))
                    images = _FEWEST_UPDATES * config.train.batch_size + int(_TRAIN_SECONDS * number * alone)
                    found["train"][nodes].append(_trained(with_data, number, f"benchmark-{turn}-{number}", images))
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
    with contextlib.closing(_feed(config, made, make_pool=pool)) as feed:
        yield feed


def _feed(config: Config, made: TrainingExamples, **how: Any) -> Feed:
    settings = {"num_processes": 0} | how
    return Feed(made, batch_size=config.train.batch_size, rank=0, num_workers=1, device=torch.device("cpu"), **settings)


def _fed_by_ray(config: Config, dataset: PreparedDataset) -> float:
    with _by_ray(config, dataset) as feed:
        return _rate(feed, config.train.batch_size)


def _fed_by_a_process(config: Config, dataset: PreparedDataset, core: int) -> float:
    """Return images per second of one process of a local feed on a core."""
    made = TrainingExamples(dataset, config.masks, config.seed)
    with contextlib.closing(_feed(config, made, num_processes=1)) as feed:
        for process in feed.process_ids:
            os.sched_setaffinity(process, {core})
        return _rate(feed, config.train.batch_size)


def _rate(feed: Feed, batch_size: int) -> float:
    """Return images per second of a feed, once it is at work."""
    batches = feed.batches(0)
    for _ in range(_SETTLING_BATCHES):
        next(batches)
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < _FEED_SECONDS:
        next(batches)
        done += batch_size
    return done / (time.perf_counter() - began)


def _waited(config: Config, dataset: PreparedDataset, wanted: float) -> float:
    """Return which share of its time a trainer waits for batches who would take so many images per second."""
    pause, waited = config.train.batch_size / wanted, 0.0
    with _by_ray(config, dataset) as feed:
        batches = feed.batches(0)
        for _ in range(_SETTLING_BATCHES):
            next(batches)
        began = time.perf_counter()
        while time.perf_counter() - began < _FEED_SECONDS:
            asked = time.perf_counter()
            next(batches)
            waited += time.perf_counter() - asked
            time.sleep(pause)
        return waited / (time.perf_counter() - began)


def _trained(config: Config, num_nodes: int, name: str, images: int) -> float:
    """Return images per second of training's loop, by a worker on each node."""
    train = replace(
        config.train,
        num_workers=num_nodes,
        images=images,
        checkpoint_every_images=1 << 40,
        gradient_norms_every_images=0,
    )
    return launch.train(replace(config, run_name=name, train=train), register=False).images_per_second


def _updates(config: Config, core: int) -> float:
    """Return images per second of nothing but updates, by one thread on a core."""
    all_cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        with places.variables({"OMP_NUM_THREADS": "1"}):
            answer = step.in_a_process("ray.updates_alone", config, failure="updates could not be timed")
            return float(json.loads(answer)["images_per_second"])
    finally:
        os.sched_setaffinity(0, all_cores)
