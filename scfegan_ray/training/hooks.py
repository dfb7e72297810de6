"""What a run does beside its updates: measure held-back images, record, keep checkpoints, tell where time goes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scfegan_ray import cache, losses
from scfegan_ray.config import Config
from scfegan_ray.data import examples
from scfegan_ray.data.rows import PreparedDataset
from scfegan_ray.errors import StorageError
from scfegan_ray.evaluation import held_back
from scfegan_ray.evaluation.held_back import Evaluator
from scfegan_ray.models.features import Features
from scfegan_ray.progress import Progress
from scfegan_ray.training import checkpoint, curves, ranks
from scfegan_ray.training.copies import HostCopy
from scfegan_ray.training.curves import ReferenceCurve
from scfegan_ray.training.sentinel import Verdict
from scfegan_ray.training.state import TrainingState
from scfegan_ray.training.store import CheckpointStore, CheckpointWriter
from scfegan_ray.training.timing import OwnWork, TimeSpent, skew

if TYPE_CHECKING:
    from scfegan_ray.data.feed import Feed
    from scfegan_ray.tracking import Tracker

logger = logging.getLogger(__name__)

GRID_SIDE_PX = 128

Written = Callable[[], str | None]
"""Waits until a checkpoint is whole; returns its URI, or None where there is none."""


class Means:
    """Adds the values of accepted updates up on their device; what is taken is read later, as their means."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], Tensor] = {}

    def add(self, values: Mapping[str, Tensor], accepted: Tensor) -> None:
        """Add one update's values.

        Args:
            values: scalars; the same names on every rank.
            accepted: scalar bool; where it is False the values may be anything and do not count.
        """
        norms = tuple(name for name in values if name.startswith("gradient_norm/"))
        for names in (tuple(name for name in values if name not in norms), norms):
            if names:
                one = torch.stack([values[name].float() for name in names] + [accepted.float()])
                one = torch.where(accepted, one, 0.0)
                self._sums[names] = self._sums[names] + one if names in self._sums else one

    def take(self) -> tuple[list[tuple[str, ...]], Tensor]:
        """Return groups of names, and for each group in order the sums of its values and how many they are of.

        Both are over all ranks; starts anew.
        """
        groups, sums = list(self._sums), torch.cat(list(self._sums.values()))
        self._sums = {}
        return groups, ranks.total(sums)

    @staticmethod
    def of(groups: list[tuple[str, ...]], sums: list[float]) -> dict[str, float]:
        """Return the means of what was taken, once it is on the host; nothing where no update was accepted."""
        means: dict[str, float] = {}
        at = 0
        for names in groups:
            count = sums[at + len(names)]
            means |= {name: sums[at + index] / count for index, name in enumerate(names) if count}
            at += len(names) + 1
        return means


class _Record(NamedTuple):
    """What is recorded once its sums are on the host: groups as of `Means.take`, and what the host knew before."""

    groups: list[tuple[str, ...]]
    numbers: dict[str, float]
    num_updates: int


class Unread(NamedTuple):
    """An update of which the host does not know yet what became of it.

    Attributes:
        before: images seen before it.
        after: images seen after it.
        copy: what tells of it, on its way to the host.
        record: what is due then, if anything.
    """

    before: int
    after: int
    copy: HostCopy
    record: _Record | None


class Journal:
    """Records updates: their means every so many images, and where the time went.

    Attributes:
        spent: where the time goes.

    Args:
        config: of the run.
        tracker: where to.
        device: of this rank.
        position: images seen when this begins.
        curve: how such runs usually go, where that is known.
        observe: told on every rank what `timing.GAUGES` names, as often.
    """

    def __init__(
        self,
        config: Config,
        tracker: Tracker,
        device: torch.device,
        position: int,
        curve: ReferenceCurve | None = None,
        observe: Callable[[Mapping[str, float]], object] | None = None,
    ) -> None:
        self.spent, self._curve = TimeSpent(), curve
        self._config, self._tracker, self._device, self._observe = config, tracker, device, observe
        self._means, self._own, self._is_own_due = Means(), OwnWork(device), True
        self._progress = Progress("train", total=config.train.images, start=position, log=logger.info)

    @contextlib.contextmanager
    def on_step(self, first: nn.Module) -> Iterator[None]:
        """Count the time of an update within; of one in each interval also how much of it is this rank's own.

        Args:
            first: the network whose gradients the ranks exchange first.
        """
        with self.spent.on("step"), contextlib.ExitStack() as stack:
            if self._is_own_due:
                self._is_own_due = False
                stack.enter_context(self._own.timed(first.parameters()))
            yield

    def add(
        self,
        values: Mapping[str, Tensor],
        accepted: Tensor,
        before: int,
        state: TrainingState,
        rates: tuple[float, float],
        to_read: Mapping[str, Tensor],
        feed: Feed,
    ) -> Unread:
        """Take notice of an update.

        Args:
            values: of the update.
            accepted: scalar bool, whether it was made.
            before: images seen before it.
            state: after it.
            rates: learning rates of generator and discriminator.
            to_read: what else the host is to read of it.
            feed: where its batch came from.

        Returns:
            What the host reads some updates later.
        """
        after, train = state.images_seen, self._config.train
        self._means.add(values, accepted)
        self.spent.num_images += train.batch_size
        if before > 0 and after < train.images and not crossed(before, after, train.log_every_images):
            return Unread(before, after, HostCopy(to_read), None)
        groups, sums = self._means.take()
        num_updates = self.spent.num_images // train.batch_size
        numbers = self.spent.take() | {
            "feed_ready_batches": feed.num_ready,
            "generator/learning_rate": rates[0],
            "discriminator/learning_rate": rates[1],
            "eta_seconds": self._progress.seconds_left,
            "memory_gib": memory_bytes(self._device) / 2**30,
            "rollbacks": len(state.sentinel.reseeded_at),
        }
        # No rank knows the others' times but by what all of them send here.
        by_rank = ranks.table([numbers["seconds/data"] / num_updates, self._own.seconds()], self._device)
        self._is_own_due = True
        copy = HostCopy({**to_read, "sums": sums, "by_rank": by_rank})
        return Unread(before, after, copy, _Record(groups, numbers, num_updates))

    def write(self, update: Unread, found: Mapping[str, Tensor], verdict: Verdict) -> None:
        """Take notice of what is known of an update by now.

        Args:
            update: as `add` returned it.
            found: what it had copied, on the host.
            verdict: about it.
        """
        record = update.record
        values = {} if record is None else Means.of(record.groups, found["sums"].tolist())
        self._progress.update(update.after, self._readable(values, update.after))
        if record is None:
            return
        weighted = {f"weighted/{name}": value for name, value in _weighted(values, self._config).items()}
        waited, computed = (column.tolist() for column in found["by_rank"].T)
        told = record.numbers | {
            "skew_seconds/data": skew(waited),
            "skew_seconds/compute": skew(one for one in computed if one),
            "skipped_batches": verdict.num_skipped,
        }
        self._tracker.metrics(
            {f"train/{name}": value for name, value in (values | weighted | told).items()}, update.after
        )
        if self._observe is not None:
            self._observe(_gauges(told, record.num_updates, update.after, computed[ranks.rank()]))

    def _readable(self, values: Mapping[str, float], images_seen: int) -> str:
        if not values:
            return ""
        loss = values["generator/total"]
        remark = self._curve.remark(curves.LOSS, images_seen, loss) if self._curve else ""
        return f"generator {loss:.3f}" + (f" ({remark})" if remark else "")


class HeldBack:
    """Measures the moving average on held-back images, of which each rank takes a share; failing never stops training.

    Args:
        config: of the run.
        dataset: which images are held back.
        features: frozen VGG-16.
        device: of this rank.
        precision: in which networks compute.
        tracker: where rank 0 records.
        curve: how such runs usually go, where that is known.
    """

    def __init__(
        self,
        config: Config,
        dataset: PreparedDataset,
        features: Features,
        device: torch.device,
        precision: torch.dtype,
        tracker: Tracker,
        curve: ReferenceCurve | None = None,
    ) -> None:
        self._config, self._dataset, self._device, self._tracker = config, dataset, device, tracker
        self._curve = curve
        self._evaluator = Evaluator(features, device, precision)
        self._references: dict[str, float] = {}

    def measure(self, state: TrainingState) -> dict[str, float]:
        """Record metrics and a grid at the state's position; return the metrics, or nothing where a rank fails.

        Every rank must call it; all are given the same.
        """
        if not self._references:
            self._references = self._measure_references()
            self._record(self._references, state.images_seen)
        found = self._means(held_back.MEASURED, lambda: self._evaluator.values(state.ema, self._batches()))
        metrics = held_back.summary(found)
        self._record(metrics, state.images_seen)
        if ranks.rank() == 0 and metrics:
            with self._surviving("a grid could not be drawn"):
                side = max(GRID_SIDE_PX, self._config.data.size_px)
                picture = self._evaluator.grid(state.ema, self._batches(self._config.evaluation.grid_images), side)
                self._tracker.picture("grid", picture, state.images_seen)
        return metrics

    def _measure_references(self) -> dict[str, float]:
        """Look the references up where they were measured before on this machine, or measure them."""
        place = _references_place(self._config, self._dataset)
        known = ranks.together(lambda: _read_json(place) if ranks.rank() == 0 else {})
        if known:
            return known
        found = self._means(held_back.REFERENCES, lambda: held_back.reference_values(self._batches()))
        if ranks.rank() == 0 and found:
            with self._surviving("references could not be kept"), cache.new_file(place) as file:
                file.write_text(json.dumps(found))
        return found

    def _means(self, names: Sequence[str], work: Callable[[], dict[str, NDArray[np.float64]]]) -> dict[str, float]:
        """Return means over the images of all ranks that have a value, without those of which none has one.

        Nothing where a rank failed, which it says and still takes part.
        """
        sums = torch.zeros(2 * len(names) + 1, dtype=torch.float64)
        sums[-1] = 1.0
        with self._surviving("held-back images could not be measured"):
            found = work()
            values = [found[name][~np.isnan(found[name])] for name in names]
            sums = torch.tensor([one.sum() for one in values] + [len(one) for one in values] + [0], dtype=torch.float64)
        *totals, num_failed = ranks.total(sums.to(self._device)).tolist()
        pairs = zip(names, totals[: len(names)], totals[len(names) :], strict=True)
        return {} if num_failed else {name: total / count for name, total, count in pairs if count}

    def _batches(self, count: int | None = None) -> Iterator[examples.Example]:
        """Give this rank's share of the held-back images, or of all the first so many."""
        wanted = self._config.evaluation
        share = (ranks.rank(), ranks.num_ranks()) if count is None else (0, 1)
        return examples.evaluation_batches(
            self._dataset, self._config.masks, count or wanted.num_images, wanted.batch_size, share
        )

    def _record(self, metrics: dict[str, float], images_seen: int) -> None:
        if not metrics or ranks.rank() != 0:
            return
        self._tracker.metrics({f"val/{name}": value for name, value in metrics.items()}, images_seen)
        readable = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        quality = metrics.get("hole_psnr")
        remark = self._curve.remark(curves.QUALITY, images_seen, quality) if self._curve and quality else ""
        logger.info("held-back images at %d: %s%s", images_seen, readable, f"; hole_psnr is {remark}" if remark else "")

    @contextlib.contextmanager
    def _surviving(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a metric raises, the weights are worth more
            logger.warning("%s: %r", what, error)


def _references_place(config: Config, dataset: PreparedDataset) -> Path:
    """Return where this machine keeps what references measured on a dataset's held-back images."""
    shaped_by = {
        "masks": config.to_dict()["masks"],
        "num_images": len(dataset.held_back(config.evaluation.num_images)),
        "opencv": cv2.__version__,
    }
    digest = hashlib.sha256(json.dumps(shaped_by, sort_keys=True).encode()).hexdigest()[:16]
    return cache.cache_dir() / "prepared" / f"{dataset.info.copy_name}.references-{digest}.json"


def _read_json(place: Path) -> dict[str, float]:
    try:
        found: dict[str, float] = json.loads(place.read_text())
    except (OSError, ValueError):
        return {}
    return found if set(found) == set(held_back.REFERENCES) else {}


class Keeper:
    """Keeps a run's checkpoints, written beside training; all ranks have one, and rank 0's alone is ever told to save.

    Args:
        config: of the run.
        store: where to.
        position: images seen in the last checkpoint, or before the first one.
        spent: where the time goes.

    Attributes:
        trouble: what made writing fail for good, if anything.
        saved_at: position of the last checkpoint that was begun.
    """

    def __init__(self, config: Config, store: CheckpointStore, position: int, spent: TimeSpent) -> None:
        self.trouble: StorageError | None = None
        self.saved_at = position
        self._config, self._store, self._spent = config, store, spent
        self._writer = CheckpointWriter(store, config.train.checkpoints_to_keep, config.storage.retry_seconds)
        self._saved_seconds = time.monotonic()

    def save(self, state: TrainingState, metrics: dict[str, float], *, by_clock: bool = False) -> Written:
        """Begin to write a checkpoint; the state may change as soon as this returns.

        Args:
            state: to be kept.
            metrics: of held-back images in this state; empty where they were not measured.
            by_clock: whether a later one may take its place where storage is slow.

        Returns:
            What waits until it is whole and returns its URI, or None where it was left out or cannot be written.
        """
        self.saved_at, self._saved_seconds = state.images_seen, time.monotonic()
        with self._noting(), self._spent.on("checkpoint"):
            snapshot = checkpoint.capture(state, self._config, metrics or None)
            future = self._writer.save(snapshot, may_be_dropped=by_clock)
            return lambda: self._uri(future)
        return lambda: None

    def is_due(self) -> bool:
        """Tell whether the clock says that it is time for another one."""
        return time.monotonic() - self._saved_seconds > self._config.train.checkpoint_every_seconds

    def has_failed(self) -> bool:
        """Tell, without waiting, whether one could not be written."""
        with self._noting():
            self._writer.check()
        return self.trouble is not None

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

    def _uri(self, future: Future[str | None]) -> str | None:
        try:
            name = future.result()
        except StorageError:
            return None  # which training notices by itself
        return None if name is None else self._store.uri(name)

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except StorageError as error:
            self.trouble = error


def _gauges(told: Mapping[str, float], num_updates: int, images_seen: int, compute_seconds: float) -> dict[str, float]:
    """Return the values of `timing.GAUGES` from what is recorded of an interval of so many updates."""
    same = ("images_per_second", "feed_ready_batches", "skipped_batches", "rollbacks")
    return {name: told[name] for name in same} | {
        "images_seen": images_seen,
        "step_seconds": told["seconds/step"] / num_updates,
        "data_seconds": told["seconds/data"] / num_updates,
        "compute_seconds": compute_seconds,
        "skew_data_seconds": told["skew_seconds/data"],
        "skew_compute_seconds": told["skew_seconds/compute"],
        "checkpoint_seconds": told["seconds/checkpoint"],
        "evaluation_seconds": told["seconds/evaluation"],
    }


def _weighted(values: Mapping[str, float], config: Config) -> dict[str, float]:
    """Return what each term contributes to its network's total, by `<network>/<term>`."""
    weights = losses.part_weights(config.losses)
    terms = {name: name.rpartition("/")[2] for name in values if not name.startswith("gradient_norm/")}
    return {name: weights[term] * values[name] for name, term in terms.items() if term in weights}


def crossed(before: int, after: int, every: int) -> bool:
    """Tell whether one of the positions that come every so many images lies between two; 0 for none."""
    return every > 0 and before // every != after // every


def memory_bytes(device: torch.device) -> int:
    """Return the most that tensors took on a GPU; on a CPU what this process takes now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
