"""What a run does beside its updates: measure held-back images, record, keep checkpoints, tell where time goes."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scfegan_ray import losses
from scfegan_ray.config import Config
from scfegan_ray.data import examples
from scfegan_ray.data.prepared import PreparedDataset
from scfegan_ray.errors import StorageError
from scfegan_ray.evaluation import Evaluator
from scfegan_ray.models.features import Features
from scfegan_ray.training import checkpoint, ranks
from scfegan_ray.training.state import TrainingState
from scfegan_ray.training.store import CheckpointStore, CheckpointWriter

if TYPE_CHECKING:
    from scfegan_ray.tracking import Tracker

logger = logging.getLogger(__name__)

GRID_SIDE_PX = 128


class TimeSpent:
    """Where the time since the last record went.

    Attributes:
        num_images: trained on in it, over all ranks.
    """

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self.num_images = 0
        self._began = time.perf_counter()
        self._seconds = dict.fromkeys(("data", "step", "checkpoint", "evaluation"), 0.0)

    @contextlib.contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Count the time within; nothing waits for the device to know it."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[what] += time.perf_counter() - began

    def take(self) -> dict[str, float]:
        """Return images_per_second, all pauses included, and seconds by purpose; start anew."""
        rate = self.num_images / max(time.perf_counter() - self._began, 1e-9)
        found = {"images_per_second": rate} | {f"seconds/{name}": value for name, value in self._seconds.items()}
        self._restart()
        return found


class Means:
    """Adds the values of updates up, and gives their means over updates and ranks."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add one update's values; the same names on every rank."""
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """Return the means, and start anew."""
        if not self._sums:
            return {}
        means = torch.stack([value.float() / self._counts[name] for name, value in self._sums.items()])
        means = ranks.total(means) / ranks.num_ranks()
        names, self._sums, self._counts = list(self._sums), {}, {}
        return dict(zip(names, means.tolist(), strict=True))


class HeldBack:
    """Measures the moving average on held-back images; that it cannot never stops training."""

    def __init__(
        self, config: Config, dataset: PreparedDataset, features: Features, device: torch.device, tracker: Tracker
    ) -> None:
        self._config, self._dataset, self._tracker = config, dataset, tracker
        self._evaluator = Evaluator(features, device)
        self._knows_baselines = False

    def measure(self, state: TrainingState) -> dict[str, float]:
        """Record metrics and a grid at the state's position; return the metrics, or nothing where that fails."""
        try:
            metrics = self._evaluator.run(state.ema, self._batches(self._config.evaluation.num_images))
            if not self._knows_baselines:
                baselines = self._evaluator.baselines(self._batches(self._config.evaluation.num_images))
                self._record(baselines, state.images_seen)
                self._knows_baselines = True
            self._record(metrics, state.images_seen)
            side = max(GRID_SIDE_PX, self._config.data.size_px)
            grid = self._evaluator.grid(state.ema, self._batches(self._config.evaluation.grid_images), side)
            self._tracker.picture("grid", grid, state.images_seen)
        except Exception as error:  # whatever a metric raises, the weights are worth more
            logger.warning("held-back images could not be measured at %d: %r", state.images_seen, error)
            return {}
        return metrics

    def _batches(self, count: int) -> Iterator[examples.Example]:
        return examples.evaluation_batches(self._dataset, self._config.masks, count, self._config.evaluation.batch_size)

    def _record(self, metrics: dict[str, float], images_seen: int) -> None:
        self._tracker.metrics({f"val/{name}": value for name, value in metrics.items()}, images_seen)
        readable = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        logger.info("held-back images at %d: %s", images_seen, readable)


class Keeper:
    """Keeps a run's checkpoints, written beside training; all ranks have one, and rank 0's alone is ever told to save.

    Args:
        config: of the run.
        store: where to.
        position: images seen in the last checkpoint, or before the first one.

    Attributes:
        trouble: what made writing fail for good, if anything.
        saved_at: position of the last checkpoint that was begun.
    """

    def __init__(self, config: Config, store: CheckpointStore, position: int) -> None:
        self.trouble: StorageError | None = None
        self.saved_at = position
        self._config, self._store = config, store
        self._writer = CheckpointWriter(store, config.train.checkpoints_to_keep, config.storage.retry_seconds)
        self._saved_seconds = time.monotonic()

    def save(self, state: TrainingState, metrics: dict[str, float] | None) -> None:
        """Begin to write a checkpoint, after the one before; the state may change as soon as this returns.

        Args:
            state: to be kept.
            metrics: of held-back images in this state, where they were measured.
        """
        with self._noting():
            self._writer.save(checkpoint.capture(state, self._config, metrics))
        self.saved_at, self._saved_seconds = state.images_seen, time.monotonic()

    def is_due(self) -> bool:
        """Tell whether the clock says that it is time for another one, and the last one is written."""
        seconds = time.monotonic() - self._saved_seconds
        return seconds > self._config.train.checkpoint_every_seconds and not self._writer.is_busy

    def check(self) -> None:
        """Notice, without waiting, that the last one could not be written."""
        with self._noting():
            self._writer.check()

    def wait(self) -> None:
        """Wait until the last one is written.

        Raises:
            StorageError: it could not be.
        """
        self._writer.wait()

    def close(self) -> str | None:
        """Wait until the last one is written; return the name of the last one that is whole."""
        with self._noting():
            self._writer.wait()
        self._writer.close()
        return self._writer.last

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except StorageError as error:
            self.trouble = error


def weighted(values: Mapping[str, float], config: Config) -> dict[str, float]:
    """Return what each term contributes to its network's total, by `<network>/<term>`."""
    weights = losses.part_weights(config.losses)
    terms = {name: name.rpartition("/")[2] for name in values if not name.startswith("gradient_norm/")}
    return {name: weights[term] * values[name] for name, term in terms.items() if term in weights}


def memory_bytes(device: torch.device) -> int:
    """Return the most that tensors took on a GPU; on a CPU what this process takes now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
