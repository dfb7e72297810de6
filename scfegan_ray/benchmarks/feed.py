"""How much a second feed process adds, and what a feed at work costs an update of the networks beside it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scfegan_ray.benchmarks import step
from scfegan_ray.config import Config
from scfegan_ray.data import prepare
from scfegan_ray.data.examples import TrainingExamples
from scfegan_ray.data.feed import Feed
from scfegan_ray.data.rows import PreparedDataset
from scfegan_ray.errors import ConfigError
from scfegan_ray.models.features import load_features
from scfegan_ray.precision import check_available, resolve_precision, set_tf32
from scfegan_ray.training.state import TrainingState
from scfegan_ray.training.step import cut_into_passes

logger = logging.getLogger(__name__)

_ROUNDS = 7
_FEED_SECONDS = 2.0
_UPDATE_SECONDS = 4.0
_FEWEST_UPDATES = 3
_SETTLING_BATCHES = 8


def run(config: Config, *, session: Callable[[], contextlib.AbstractContextManager[None]]) -> dict[str, Any]:
    """Measure, in turns so that all meet the same machine, log a table, and keep nothing.

    Every process has a core to itself, as far as other programs leave it. What they take is told, too: where it is
    much, the figures "of own time" leave out how long processes waited for their core.

    Args:
        config: `data`, `model`, `losses`, `train.batch_size` (all on one device) and `train.precision` are read. Few
            embedded faces are prepared unless `data.prepared` is given.
        session: Ray must run within it, to prepare.

    Returns:
        As `measure`, read from JSON.

    Raises:
        ConfigError: this process may use one core only.
    """
    if len(os.sched_getaffinity(0)) < 2:
        raise ConfigError("the feed is measured beside the trainer, each on a core of its own: give two cores at least")
    with tempfile.TemporaryDirectory(prefix="scfegan-benchmark-") as scratch:
        if config.data.prepared is None:
            config = replace(step.few_faces(config), storage=replace(config.storage, path=scratch))
        config = replace(config, data=replace(config.data, prepared=prepare.ensure_prepared(config, session=session)))
        answer = step.in_a_process("feed.measure", config, failure="the feed could not be measured")
    found: dict[str, Any] = json.loads(answer)
    logger.info("%d images a batch at %d px", config.train.batch_size, config.data.size_px)
    for number, rate in found["images_per_second"].items():
        logger.info(
            "feed processes: %-3s %8.1f images/s  %.2f of one; of own time %.2f; kept waiting for their cores %.0f %%",
            number, rate, found["speedup"][number], found["speedup_of_own_time"][number], 100 * found["waited"][number],
        )  # fmt: skip
    logger.info(
        "an update beside a feed at training's pace: %.3f s, %.3f of %.3f s beside an idle one; of own time %.3f",
        found["update_seconds"]["fed"], found["update_cost"], found["update_seconds"]["idle"],
        found["update_cost_of_own_time"],
    )  # fmt: skip
    return found


def measure(config_json: str) -> str:
    """Measure in this process.

    Returns:
        JSON of medians over rounds. By number of feed processes: images_per_second; speedup over one, of which the
        first two cores' mean counts; speedup_of_own_time: the same without the time for which processes waited for a
        core; waited: share of time for which they did. update_seconds: of an update beside an idle feed, and of one
        that takes its batch from the feed; update_cost: the second over the first; update_cost_of_own_time: the same
        of the training thread's CPU time.
    """
    config = Config.from_dict(json.loads(config_json))
    assert config.data.prepared is not None
    dataset = PreparedDataset.open(config.data.prepared)
    device = torch.device("cuda" if config.train.use_gpu else "cpu")
    check_available(device, "give --train.no-use-gpu")
    update = _update(config, device)  # what is wrong with the settings shows before minutes are spent
    return json.dumps(_measure_rates(config, dataset) | _measure_updates(config, dataset, device, update))


def _measure_rates(config: Config, dataset: PreparedDataset) -> dict[str, Any]:
    cores = sorted(os.sched_getaffinity(0))
    numbers = [1 << power for power in range(len(cores).bit_length()) if 1 << power <= len(cores)]
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(_ROUNDS):
        one, own_one = 0.0, 0.0
        for number in numbers:
            # Cores are not alike while other programs run.
            places = [cores[:number]] if number > 1 else [cores[:1], cores[1:2]]
            rates = [_rate(config, dataset, place) for place in places]
            rate, own_rate, waited = (statistics.mean(values) for values in zip(*rates, strict=True))
            if number == 1:
                one, own_one = rate, own_rate
            found["images_per_second"][number].append(rate)
            found["speedup"][number].append(rate / one)
            found["speedup_of_own_time"][number].append(own_rate / own_one)
            found["waited"][number].append(waited)
    return {
        name: {str(number): statistics.median(values) for number, values in by_number.items()}
        for name, by_number in found.items()
    }


def _rate(config: Config, dataset: PreparedDataset, cores: list[int]) -> tuple[float, float, float]:
    """Return images per second of a process on each core; of their own time; the share of time they waited for one."""
    with feeding(config, dataset, cores, torch.device("cpu")) as feed:
        batches = feed.batches(0)
        for _ in range(_SETTLING_BATCHES):
            next(batches)
        done, waited, taking, began = 0, _waited_seconds(feed), time.thread_time(), time.perf_counter()
        while time.perf_counter() - began < _FEED_SECONDS:
            next(batches)
            done += config.train.batch_size
        seconds = time.perf_counter() - began
        waited = min(_waited_seconds(feed) - waited, seconds)
        # To take the batches is the feed's own work, for which its processes may have waited.
        own_seconds = seconds - waited + time.thread_time() - taking
    return done / seconds, done / own_seconds, waited / seconds


@contextlib.contextmanager
def feeding(config: Config, dataset: PreparedDataset, cores: list[int], device: torch.device) -> Iterator[Feed]:
    """Give a feed with a process on each core."""
    feed = Feed(
        TrainingExamples(dataset, config.masks, config.seed),
        batch_size=config.train.batch_size,
        rank=0,
        num_workers=1,
        num_processes=len(cores),
        device=device,
    )
    with contextlib.closing(feed):
        for process, core in zip(feed.process_ids, cores, strict=True):
            os.sched_setaffinity(process, {core})
        yield feed


def _waited_seconds(feed: Feed) -> float:
    """Return for how long a feed's processes were ready to run and did not, on average; 0 where nobody counts it."""
    waited = []
    for process in feed.process_ids:
        with contextlib.suppress(OSError):
            waited.append(int(Path(f"/proc/{process}/schedstat").read_text().split()[1]) / 1e9)
    return statistics.mean(waited) if waited else 0.0


def _measure_updates(
    config: Config, dataset: PreparedDataset, device: torch.device, update: Callable[[dict[str, Tensor]], object]
) -> dict[str, Any]:
    trainer, other = sorted(os.sched_getaffinity(0))[:2]
    seconds: dict[str, list[float]] = defaultdict(list)
    costs, own_costs = [], []
    with feeding(config, dataset, [other], device) as feed, one_thread_on(trainer):
        batches = feed.batches(0)
        same = {name: maps.clone() for name, maps in next(batches).items()}
        for turn in range(_ROUNDS + 1):
            idle = _time_updates(lambda: update(same), device)
            fed = _time_updates(lambda: update(next(batches)), device)
            if turn:  # the first round does not count
                costs.append(fed[0] / idle[0])
                own_costs.append(fed[1] / idle[1])
                seconds["idle"].append(idle[0])
                seconds["fed"].append(fed[0])
    return {
        "update_seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "update_cost": statistics.median(costs),
        "update_cost_of_own_time": statistics.median(own_costs),
    }


@contextlib.contextmanager
def one_thread_on(core: int) -> Iterator[None]:
    """Keep this process, and those that it starts, to one core, and torch to one thread."""
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)


def _update(config: Config, device: torch.device) -> Callable[[dict[str, Tensor]], object]:
    """Return what brings the maps of a batch to the networks and does one update with them."""
    set_tf32(convolutions=False, products=False)  # as in a worker
    state, features = TrainingState.build(config, device), load_features(config.losses.features).to(device)
    precision = resolve_precision(config.train.precision, device)

    def update(maps: dict[str, Tensor]) -> object:
        [one] = cut_into_passes(maps, 0)
        return step.update(state, one.batch, one.interpolation, features, config, precision)

    return update


def _time_updates(update: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Return the median seconds of an update, after one that does not count, and of the CPU time of this thread."""
    seconds: list[float] = []
    own_seconds: list[float] = []
    update()
    began = time.perf_counter()
    while len(seconds) < _FEWEST_UPDATES or time.perf_counter() - began < _UPDATE_SECONDS:
        started, own_started = time.perf_counter(), time.thread_time()
        update()
        step.wait(device)
        seconds.append(time.perf_counter() - started)
        own_seconds.append(time.thread_time() - own_started)
    return statistics.median(seconds), statistics.median(own_seconds)
