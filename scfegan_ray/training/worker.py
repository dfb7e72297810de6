"""What Ray Train knows of a worker: its place among the others, its device, its lock, reports, a request to stop."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import ray.train
import ray.train.torch
import torch

from scfegan_ray import allocation, locks, storage
from scfegan_ray.config import Config
from scfegan_ray.data.feed_process import Layout
from scfegan_ray.data.ray_feed import RayPool
from scfegan_ray.errors import StorageError
from scfegan_ray.models.features import load_features
from scfegan_ray.tracking import open_tracker
from scfegan_ray.training import feeding, loop
from scfegan_ray.training.curves import ReferenceCurve
from scfegan_ray.training.reporting import Gauges, Reports
from scfegan_ray.training.stopping import StopReceiver
from scfegan_ray.training.store import CheckpointStore

_LAST_WORDS_SECONDS = 60.0
"""How long workers of a killed job may take to notice it; seconds are usual."""


def train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Train, where this node sees what it must, and after the writer of a job that was killed has ended.

    Args:
        settings: config: `Config.to_dict()`, its precision and order settled for all workers; dataset: URI of the
            prepared data; feed: "local" or "ray"; checkpoints: URI of the run's `CheckpointStore`; tracking_uri,
            run_id: the MLflow run that rank 0 writes to; features: which VGG weights, settled for all workers; stop:
            actor that rank 0 joins, and whose `is_set` tells that training is to end, or None; landmarks: what this
            node must see, or None; curve: how such runs usually go, as `ReferenceCurve.to_json`, or None.

    Returns:
        `outcome.Outcome` as a dict; only rank 0's is read.

    Raises:
        ConfigError: this node does not see what it must.
        BusyError: the writer of another job is still at work.
    """
    if settings.get("landmarks") is not None:
        settings["landmarks"].check()  # before a lock is put where no other node would see it
    place = settings["checkpoints"]
    # In an object store the job itself waited long enough: its lease outlives the workers of the one before.
    if ray.train.get_context().get_world_rank() != 0 or not storage.is_local(place):
        return _train(settings)
    with locks.held(place, f"writing to {place}", patience_seconds=_LAST_WORDS_SECONDS):
        return _train(settings)


def _train(settings: dict[str, Any]) -> dict[str, Any]:
    config, context = Config.from_dict(settings["config"]), ray.train.get_context()
    is_first = context.get_world_rank() == 0
    _set_up_log(logging.INFO if is_first else logging.WARNING)
    torch.set_num_threads(config.train.threads_per_worker or _share_of_cores(context.get_local_world_size()))
    device = ray.train.torch.get_device()
    assert isinstance(device, torch.device), "one device per worker"
    run_id = settings["run_id"] if is_first else None
    tracker = open_tracker(settings["tracking_uri"], run_id, config.tracking.patience_seconds)
    stop, reports = StopReceiver(settings["stop"] if is_first else None), Reports()
    outcome = loop.train(
        config,
        settings["dataset"],
        CheckpointStore(settings["checkpoints"]),
        load_features(settings["features"]),
        tracker,
        device=device,
        must_stop=stop.is_set,
        report=reports.add,
        make_pool=_ray_pool(config, context.get_world_size()) if settings["feed"] == "ray" else None,
        curve=ReferenceCurve.read(settings["curve"]) if is_first and settings.get("curve") else None,
        observe=Gauges(config.run_name or "", context.get_world_rank()).set,
    )
    reports.close()
    lost = tracker.close()
    if lost is not None and outcome.failure is None:
        outcome.fail(StorageError(lost))
    return asdict(outcome)


def _ray_pool(config: Config, num_workers: int) -> Callable[[dict[str, Any], int, Layout], RayPool]:
    """Return who makes a rank's batches on CPUs that no worker takes."""
    return functools.partial(RayPool, batch_size=config.train.batch_size, budget=feeding.budget(config, num_workers))


def _set_up_log(level: int) -> None:
    # Ray passes what a worker writes to stderr on to the driver. Its own loggers there, one of which is named after a
    # file, follow the root's level.
    logging.getLogger().setLevel(logging.WARNING)
    ours = logging.getLogger("scfegan_ray")
    ours.handlers = [logging.StreamHandler(sys.stderr)]
    ours.propagate = False
    ours.setLevel(level)


def _share_of_cores(num_local_workers: int) -> int:
    return max(1, allocation.num_cores() // num_local_workers)
