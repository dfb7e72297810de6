"""What Ray costs: the loop of its workers, with data streaming in, against nothing but updates in one process."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from scfegan_ray.benchmarks import step
from scfegan_ray.config import Config
from scfegan_ray.data import prepare
from scfegan_ray.models.features import load_features
from scfegan_ray.precision import resolve_precision
from scfegan_ray.training import launch
from scfegan_ray.training.state import TrainingState

logger = logging.getLogger(__name__)

_ROUNDS = 3
_LOOP_SECONDS = 15.0
_FEWEST_UPDATES = 8
_SETTLING_UPDATES = 3


def run_loops(config: Config, *, session: Callable[[], contextlib.AbstractContextManager[None]]) -> dict[str, Any]:
    """Measure loops of updates, in turns, log a table, and keep nothing.

    Args:
        config: as of a training run; `train.images` is not read, and embedded faces are few.
        session: Ray must run within it.

    Returns:
        images_per_second: medians of alone (updates on one batch in memory, in one process on all cores, without Ray),
            beside_ray (the same beside a Ray that does nothing), one_worker and two_workers (of Ray Train, on all
            cores); ray_share: one worker's over alone; loop_share: one worker's over beside_ray; workers_share: two
            workers' over one's; variation: the standard deviation of the seconds of updates alone over their mean.
            Where `train.use_gpu` and this machine has one GPU, nothing of two workers.
    """
    rates: dict[str, list[float]] = defaultdict(list)
    shares: dict[str, list[float]] = defaultdict(list)
    workers = {"one_worker": 1, "two_workers": 2}
    if config.train.use_gpu and torch.cuda.device_count() < 2:
        logger.info("one GPU has no place for two workers: they are not measured")
        del workers["two_workers"]
    with tempfile.TemporaryDirectory(prefix="scfegan-benchmark-") as scratch:
        config = replace(
            step.few_faces(config),
            run_name="benchmark",
            storage=replace(config.storage, path=scratch),
            tracking=replace(config.tracking, uri=f"sqlite:///{scratch}/mlflow.db"),
        )
        with session():
            config = replace(config, data=replace(config.data, prepared=prepare.ensure_prepared(config)))
        for turn in range(_ROUNDS):
            alone, variation = updates_in_a_process(config)
            rates["alone"].append(alone)
            shares["variation"].append(variation)
            updates = max(_FEWEST_UPDATES, int(_LOOP_SECONDS * alone / config.train.batch_size))
            with session():
                rates["beside_ray"].append(updates_in_a_process(config)[0])
                for name, number in workers.items():
                    rates[name].append(loop_rate(config, f"benchmark-{number}-{turn}", number, updates))
            last = {name: values[-1] for name, values in rates.items()}
            shares["ray_share"].append(last["one_worker"] / last["alone"])
            shares["loop_share"].append(last["one_worker"] / last["beside_ray"])
            if "two_workers" in workers:
                shares["workers_share"].append(last["two_workers"] / last["one_worker"])
    for name, values in rates.items():
        logger.info("%-12s %s images/s", name, "  ".join(f"{value:.3g}" for value in values))
    for name, values in shares.items():
        logger.info("%-13s %s", name, "  ".join(f"{value:.3f}" for value in values))
    return {
        "images_per_second": {name: statistics.median(values) for name, values in rates.items()},
        **{name: statistics.median(values) for name, values in shares.items()},
    }


def loop_rate(config: Config, run_name: str, num_workers: int, updates: int) -> float:
    """Return images per second of training's loop, which does nothing else but record; Ray must run."""
    train = replace(
        config.train,
        num_workers=num_workers,
        images=updates * config.train.batch_size,
        checkpoint_every_images=1 << 40,
        gradient_norms_every_images=0,
    )
    return launch.train(replace(config, run_name=run_name, train=train), register=False).images_per_second


def updates_in_a_process(config: Config) -> tuple[float, float]:
    """Return what `updates_alone` does, in a process with the memory settings of a worker."""
    found = json.loads(step.in_a_process("ray.updates_alone", config, failure="the loop without Ray failed"))
    return found["images_per_second"], found["variation"]


def updates_alone(config_json: str) -> str:
    """Make updates on one batch in memory, on one device, for `_LOOP_SECONDS`.

    Returns:
        JSON of images_per_second, and variation: the standard deviation of the updates' seconds over their mean.
    """
    config = Config.from_dict(json.loads(config_json))
    device = step.set_up(config)
    features = load_features(config.losses.features).to(device)
    batch, interpolation = step.make_batch(config, device)
    state, precision = TrainingState.build(config, device), resolve_precision(config.train.precision, device)

    def update() -> None:
        step.update(state, batch, interpolation, features, config, precision)
        state.update_ema(config.optimization.ema_half_life_images, config.train.batch_size)

    for _ in range(_SETTLING_UPDATES):
        update()
    ends = [time.perf_counter()]
    while len(ends) <= _FEWEST_UPDATES or ends[-1] - ends[0] < _LOOP_SECONDS:
        update()
        step.wait(device)
        ends.append(time.perf_counter())
    seconds = [end - began for began, end in itertools.pairwise(ends)]
    mean = statistics.mean(seconds)
    return json.dumps(
        {"images_per_second": config.train.batch_size / mean, "variation": statistics.pstdev(seconds) / mean}
    )
