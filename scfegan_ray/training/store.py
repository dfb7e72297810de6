"""Where a run keeps its checkpoints, the thread that writes them beside training, and how a state comes back to one."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from scfegan_ray import storage
from scfegan_ray.errors import CheckpointError, StorageError
from scfegan_ray.training import checkpoint, ranks
from scfegan_ray.training.checkpoint import Snapshot
from scfegan_ray.training.state import TrainingState

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

PREFIX = "checkpoint-"
"""Of a checkpoint's name; the images seen follow, with zeros before them."""

_SCORE = "objective_db"


class CheckpointStore:
    """The checkpoints of one run, named by the images seen, each there whole or not at all.

    Ray Train's own storage is not used: its record of checkpoints can only be read by the very version of Ray that
    wrote it, a checkpoint is visible in it before it is whole, and nothing in it is tried again.

    Args:
        place: URI of the folder or prefix; it need not exist.
    """

    def __init__(self, place: str) -> None:
        self.place = place

    def uri(self, name: str) -> str:
        """Return where a checkpoint is."""
        return storage.join(self.place, name)

    def names(self) -> list[str]:
        """Return the names of all checkpoints, oldest first.

        Raises:
            StorageError: the store cannot be asked.
        """
        folders = (name.partition("/") for name in storage.list_files(self.place))
        return sorted(folder for folder, _, file in folders if folder.startswith(PREFIX) and file == checkpoint.META)

    def latest(self) -> str | None:
        """Return the name of the newest checkpoint, or None.

        Raises:
            StorageError: the store cannot be asked.
        """
        return next(reversed(self.names()), None)

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[Path]:
        """Give a checkpoint as a folder on this machine.

        Raises:
            StorageError: it cannot be read.
        """
        with storage.local_copy(self.uri(name)) as folder:
            yield folder

    def write(self, snapshot: Snapshot) -> str:
        """Make a checkpoint; return its name.

        Raises:
            StorageError: it cannot be written; those that are there are left alone.
        """
        name = f"{PREFIX}{snapshot.images_seen:010d}"
        with storage.new_folder(self.uri(name), last=checkpoint.META) as folder:
            checkpoint.write(snapshot, folder)
        return name

    def prune(self, keep: int) -> None:
        """Delete all checkpoints but the newest ones and the one with the best metrics; failing to is logged only.

        Args:
            keep: number of the newest.
        """
        try:
            names = self.names()
            scores = {name: self._score(name) for name in names}
            best = max(names, key=lambda name: scores[name], default=None)
            for name in names[:-keep]:
                if name != best or scores[name] == float("-inf"):
                    storage.delete_folder(self.uri(name), last=checkpoint.META)
            storage.delete_abandoned(self.place)
        except StorageError as error:
            logger.warning("old checkpoints stay for now: %s", error)

    def _score(self, name: str) -> float:
        try:
            metrics = checkpoint.read_meta(self.uri(name))["metrics"] or {}
        except CheckpointError as error:
            if isinstance(error.__cause__, StorageError):
                raise error.__cause__ from None  # for now; it may be the best
            return float("-inf")  # damaged, or of another format
        score = float(metrics.get(_SCORE, float("-inf")))
        return float("-inf") if math.isnan(score) else score


@dataclass(frozen=True, slots=True)
class _Job:
    snapshot: Snapshot
    may_be_dropped: bool
    name: Future[str | None]


class CheckpointWriter:
    """Writes snapshots to a store on a thread of its own, one after the other; nobody waits for it to begin.

    Args:
        store: where to.
        keep: newest checkpoints kept, see `CheckpointStore.prune`.
        retry_seconds: how long a failing write is tried again.
    """

    def __init__(self, store: CheckpointStore, keep: int, retry_seconds: float) -> None:
        self._store, self._keep, self._retry_seconds = store, keep, retry_seconds
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._lock = threading.Lock()
        self._waiting: deque[_Job] = deque()
        self._unnoticed: deque[Future[str | None]] = deque()
        self.last: str | None = None
        """Name of the last checkpoint that is known to be whole."""

    def save(self, snapshot: Snapshot, *, may_be_dropped: bool = False) -> Future[str | None]:
        """Have a snapshot written, when those before are.

        Args:
            snapshot: to be written.
            may_be_dropped: whether a later one may take its place as long as writing it has not begun.

        Returns:
            The checkpoint's name, once it is whole; None where it was dropped.

        Raises:
            StorageError: one before could not be written; this one is not taken.
        """
        self.check()
        job = _Job(snapshot, may_be_dropped, Future())
        with self._lock:
            if self._waiting and self._waiting[-1].may_be_dropped:
                dropped = self._waiting.pop()
                dropped.name.set_result(None)
                logger.warning(
                    "the checkpoint at %d is left out: that at %d came before storage had taken those before",
                    dropped.snapshot.images_seen,
                    snapshot.images_seen,
                )
            self._waiting.append(job)
        self._unnoticed.append(job.name)
        self._pool.submit(self._write_next)
        return job.name

    def check(self) -> None:
        """Notice, without waiting, that a snapshot could not be written.

        Raises:
            StorageError: one could not.
        """
        while self._unnoticed and self._unnoticed[0].done():
            self.last = self._unnoticed.popleft().result() or self.last

    def wait(self) -> None:
        """Wait until all snapshots are written.

        Raises:
            StorageError: one could not be.
        """
        while self._unnoticed:
            self.last = self._unnoticed.popleft().result() or self.last

    def close(self) -> None:
        """End the thread; what waits is written before."""
        self._pool.shutdown()

    def _write_next(self) -> None:
        with self._lock:
            if not self._waiting:
                return
            job = self._waiting.popleft()
        try:
            job.name.set_result(self._write(job.snapshot))
        except BaseException as error:  # whoever asks for the name is told
            job.name.set_exception(error)

    def _write(self, snapshot: Snapshot) -> str:
        started = time.monotonic()
        name = storage.retrying(lambda: self._store.write(snapshot), self._retry_seconds, logger.warning)
        seconds, place = time.monotonic() - started, self._store.uri(name)
        logger.info("wrote %s in %.1f s; copying it held training up for %.2f s", place, seconds, snapshot.seconds)
        self._store.prune(self._keep)
        return name


def load_latest(state: TrainingState, store: CheckpointStore, retry_seconds: float) -> str | None:
    """Bring every rank's state to the newest checkpoint that is sound, as rank 0 finds it.

    Args:
        state: to be changed.
        store: of the run.
        retry_seconds: how long storage that fails is tried again.

    Returns:
        The checkpoint's name, None where there is no checkpoint.

    Raises:
        CheckpointError: there are some, and none is sound.
        StorageError: they cannot be read, not even after a while.
    """

    def load(name: str) -> None:
        with store.open(name) as folder:
            checkpoint.load(state, folder)

    def newest_sound() -> str | None:
        trouble: CheckpointError | None = None
        for name in reversed(store.names()):
            try:
                load(name)
                return name
            except CheckpointError as error:
                logger.warning("%s", error)
                trouble = trouble or error
        if trouble is not None:
            raise trouble
        return None

    def patiently(work: Callable[[], ResultT]) -> ResultT:
        return storage.retrying(work, retry_seconds, logger.warning)

    rank = ranks.rank()
    name = ranks.together(lambda: patiently(newest_sound) if rank == 0 else None)
    if name is not None:
        ranks.together(lambda: patiently(lambda: load(name)) if rank != 0 else None)
    return name


def go_back(state: TrainingState, store: CheckpointStore, retry_seconds: float) -> None:
    """Bring every rank's state back to the last checkpoint, but for what the sentinel has learnt since.

    Raises:
        DivergenceError: that was done often enough.
        CheckpointError: there is no sound checkpoint.
        StorageError: the last checkpoint cannot be read.
    """
    memory = state.sentinel.state()
    load_latest(state, store, retry_seconds)
    state.sentinel.load(memory)
    state.sentinel.roll_back(state.images_seen)
    logger.warning(
        "went back to %d images; learning rates are now multiplied by %g, and what follows comes in another order",
        state.images_seen,
        state.sentinel.rate_scale,
    )
