"""The training loop of one Ray Train worker, to be read from top to bottom."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from scfegan_ray import allocation, locks, losses, storage
from scfegan_ray.config import Config
from scfegan_ray.data import examples
from scfegan_ray.data.dataset import PreparedDataset
from scfegan_ray.errors import CheckpointError, ScFeganError, StorageError
from scfegan_ray.evaluation import Evaluator
from scfegan_ray.images import Batch
from scfegan_ray.models.features import Features, load_features
from scfegan_ray.precision import check_native, name_of, resolve_precision, set_tf32
from scfegan_ray.progress import Progress
from scfegan_ray.tracking import Tracker, open_tracker
from scfegan_ray.training import checkpoint
from scfegan_ray.training.state import TrainingState
from scfegan_ray.training.step import Part, train_step
from scfegan_ray.training.stopping import StopRequest
from scfegan_ray.training.store import CheckpointStore, CheckpointWriter

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

GRID_SIDE_PX = 128

_GO_ON, _STOP, _FAIL = 0.0, 1.0, 2.0
"""What rank 0 wants of all ranks."""
_SETTLING_UPDATES = 3
"""Updates that do not count for the speed: libraries choose their ways in them."""


@dataclass(kw_only=True, slots=True)
class Outcome:
    """What rank 0 tells the driver, as a dict.

    Attributes:
        images_seen: when the loop ended.
        weights_sha256: digest over generator, discriminator and moving average then.
        checkpoint: URI of the last checkpoint; None where there is none.
        features: which VGG weights were used.
        first_metrics: of held-back images when this worker started.
        last_metrics: of held-back images when they were last measured.
        images_per_second: of the loop, without its first updates, held-back images and copying for checkpoints.
        stopped: whether the user ended training before its time.
        failure: class and text of a deliberate error that ended training, after which a restart would change nothing.
    """

    images_seen: int = 0
    weights_sha256: str = ""
    checkpoint: str | None = None
    features: str = ""
    first_metrics: dict[str, float]
    last_metrics: dict[str, float]
    images_per_second: float = 0.0
    stopped: bool = False
    failure: tuple[str, str] | None = None


_LAST_WORDS_SECONDS = 60.0
"""How long workers of a killed job may take to notice it; seconds are usual."""


def train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Do `_train`, where this node sees what it must, and after the writer of a job that was killed has ended.

    Args:
        settings: as of `_train`, and landmarks: what this node must see, or None.

    Raises:
        ConfigError: this node does not see it.
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
    """Train until `train.images` images were seen, from the last checkpoint where there is one.

    Args:
        settings: config: `Config.to_dict()`, its precision settled for all workers; dataset: URI of the prepared data;
            checkpoints: URI of the run's `CheckpointStore`; tracking_uri, run_id: the MLflow run that rank 0 writes to;
            features: which VGG weights, settled for all workers; stop: actor that rank 0 joins, and whose `is_set`
            tells that training is to end, or None; report: whether metrics of held-back images go to Ray Train, too.

    Returns:
        `Outcome` as a dict; only rank 0's is read.
    """
    config = Config.from_dict(settings["config"])
    context = ray.train.get_context()
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    _set_up_log(logging.INFO if rank == 0 else logging.WARNING)
    device = ray.train.torch.get_device()
    assert isinstance(device, torch.device), "one device per worker"
    torch.set_num_threads(config.train.threads_per_worker or _share_of_cores(context.get_local_world_size()))
    torch.backends.cudnn.benchmark = True  # shapes never change
    set_tf32(convolutions=False, products=False)  # but where an update allows it
    precision = resolve_precision(config.train.precision, device)

    # State: built from the seed, then brought to the last checkpoint.
    store = CheckpointStore(settings["checkpoints"])
    state = TrainingState.build(config, device)
    retry_seconds = config.storage.retry_seconds
    outcome = Outcome(first_metrics={}, last_metrics={})
    try:
        _together(lambda: check_native(precision, device))
        resumed = _load_latest(state, store, rank, retry_seconds)
    except ScFeganError as error:  # the same on every rank
        outcome.failure = _named(error)
        return asdict(outcome)
    if resumed is not None:
        logger.info("resuming at %d images", state.images_seen)
    features = load_features(settings["features"]).to(device)
    if config.train.compile:
        state.generator.compile()
        features.compile()
    generator = _distribute(state.generator)
    discriminator = _distribute(state.discriminator)

    # Data: this worker's share of each global batch, in passes that fit its memory.
    dataset = storage.retrying(lambda: PreparedDataset.open(settings["dataset"]), retry_seconds, logger.warning)
    batch_size, total = config.train.batch_size, config.train.images

    def open_batches() -> Generator[dict[str, NDArray[Any]], None, None]:
        return examples.training_batches(
            dataset,
            config.masks,
            seed=config.seed,
            start=state.images_seen,
            batch_size=batch_size,
            rank=rank,
            num_workers=num_workers,
            threads=config.train.loader_threads,
            reseeded_at=state.sentinel.reseeded_at,
        )

    # What rank 0 alone does: measure, record, keep.
    tracker = open_tracker(
        settings["tracking_uri"], settings["run_id"] if rank == 0 else None, config.tracking.patience_seconds
    )
    tracker.tags({"features": features.description, "precision": name_of(precision), "tf32": config.train.tf32})
    judge = _Judge(config, dataset, features, device, tracker) if rank == 0 and dataset.info.num_test else None
    writer = CheckpointWriter(store, config.train.checkpoints_to_keep, retry_seconds)
    stop = StopRequest(settings["stop"] if rank == 0 else None)
    interval = _Interval()
    saved_at, saved_seconds = state.images_seen, time.monotonic()

    def save(metrics: dict[str, float] | None) -> None:
        nonlocal saved_at, saved_seconds
        try:
            with interval.spent_on("checkpoint"):
                writer.save(checkpoint.capture(state, config, metrics))
        except StorageError as error:
            outcome.failure = _named(error)
        saved_at, saved_seconds = state.images_seen, time.monotonic()

    def measure() -> dict[str, float] | None:
        if judge is None:
            return None
        with interval.spent_on("evaluation"):
            outcome.last_metrics = judge.measure(state)
        return outcome.last_metrics

    outcome.features = features.description
    measured = measure()
    outcome.first_metrics = outcome.last_metrics
    if rank == 0 and resumed is None:
        save(measured)  # something to go back to from the very first

    wish = _GO_ON

    def accept(name: str, loss: Tensor, gradient_norm: Tensor) -> bool:
        # The averaged gradient is the same on every rank; the loss and rank 0's wish become so here.
        nonlocal wish
        mean, wish = _agree(loss, max(wish, _wish_of(writer, stop, outcome)) if rank == 0 else _GO_ON)
        return state.sentinel.accept(name, mean, float(gradient_norm))

    most = config.train.max_images_per_pass
    keep_graph = most == 0 or -(-batch_size // num_workers) <= most
    batches = open_batches()
    progress = Progress("train", total=total, start=state.images_seen, log=logger.info)
    means = _Means()
    durations: list[float] = []

    while state.images_seen < total and wish == _GO_ON:
        began = time.perf_counter()
        with interval.spent_on("data"):
            arrays = next(batches)
        rates = state.set_learning_rates(config.optimization, total)
        before, after = state.images_seen, state.images_seen + batch_size
        with interval.spent_on("step"):  # which waits for the device by itself, to know whether to accept
            found = train_step(
                state,
                _parts(arrays, most, device),
                features,
                config.losses,
                generator=generator,
                discriminator=discriminator,
                precision=precision,
                allow_tf32=config.train.tf32,
                images_per_worker=batch_size / num_workers,
                keep_graph=keep_graph,
                accept=accept,
                with_gradient_norms=_crossed(before, after, config.train.gradient_norms_every_images),
            )
            state.images_seen = after
            trouble = state.sentinel.conclude(found.accepted)
            if not trouble:
                state.update_ema(config.optimization.ema_half_life_images, batch_size)
                means.add(found.values)
        if trouble:
            logger.warning("skipped the batch at %d: %s", before, trouble)
        interval.num_images += batch_size
        done = state.images_seen >= total

        # What depends on position and outcome alone is the same on every rank, so that none waits for a partner.
        is_log = done or before == 0 or _crossed(before, after, config.train.log_every_images)
        values = means.take() if is_log else {}
        progress.update(state.images_seen, f"generator {values['generator/total']:.3f}" if values else "")
        durations.append(time.perf_counter() - began)

        is_mark = done or _crossed(before, after, config.train.checkpoint_every_images)
        must_roll_back = state.sentinel.must_roll_back
        if must_roll_back:
            try:
                _roll_back(state, store, writer, rank, retry_seconds)
            except ScFeganError as error:  # the same on every rank
                outcome.failure, wish = _named(error), _FAIL
                break
            logger.warning(
                "went back to %d images; learning rates are now multiplied by %g, and what follows comes in another "
                "order",
                state.images_seen,
                state.sentinel.rate_scale,
            )
            batches.close()
            batches = open_batches()
        elif rank == 0 and state.sentinel.is_calm and wish != _FAIL:
            if is_mark:
                save(measure())
            elif time.monotonic() - saved_seconds > config.train.checkpoint_every_seconds and not writer.is_busy:
                save(None)
        if is_log:
            tracker.metrics(
                {f"train/{name}": value for name, value in values.items()}
                | {f"train/weighted/{name}": value for name, value in _weighted(values, config).items()}
                | {f"train/{name}": value for name, value in interval.take().items()}
                | {
                    "train/generator/learning_rate": rates[0],
                    "train/discriminator/learning_rate": rates[1],
                    "train/eta_seconds": progress.seconds_left,
                    "train/memory_gib": _memory_bytes(device) / 2**30,
                    "train/skipped_batches": state.sentinel.num_skipped,
                    "train/rollbacks": len(state.sentinel.reseeded_at),
                },
                after,
            )
        if is_mark and settings["report"] and not must_roll_back:
            ray.train.report(outcome.last_metrics | {"images_seen": state.images_seen})

    batches.close()
    if rank == 0:
        if wish != _FAIL and saved_at != state.images_seen:
            save(None)
        try:
            writer.wait()
        except StorageError as error:
            outcome.failure = _named(error)
        last = writer.last or resumed
        outcome.images_seen, outcome.stopped = state.images_seen, wish == _STOP
        if counting := durations[_SETTLING_UPDATES:]:
            outcome.images_per_second = batch_size * len(counting) / sum(counting)
        if last is not None:
            outcome.checkpoint, outcome.weights_sha256 = store.uri(last), state.weights_sha256()
    writer.close()
    lost = tracker.close()
    if lost is not None and outcome.failure is None:
        outcome.failure = (StorageError.__name__, lost)
    return asdict(outcome)


class _Judge:
    """Measures the moving average on held-back images; that it cannot never stops training."""

    def __init__(
        self,
        config: Config,
        dataset: PreparedDataset,
        features: Features,
        device: torch.device,
        tracker: Tracker,
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

    def _batches(self, count: int) -> Iterator[dict[str, NDArray[Any]]]:
        return examples.evaluation_batches(self._dataset, self._config.masks, count, self._config.evaluation.batch_size)

    def _record(self, metrics: dict[str, float], images_seen: int) -> None:
        self._tracker.metrics({f"val/{name}": value for name, value in metrics.items()}, images_seen)
        readable = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        logger.info("held-back images at %d: %s", images_seen, readable)


class _Interval:
    """Where the time since the last record went.

    Attributes:
        num_images: trained on in it, over all workers.
    """

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self.num_images = 0
        self._began = time.perf_counter()
        self._seconds = dict.fromkeys(("data", "step", "checkpoint", "evaluation"), 0.0)

    @contextlib.contextmanager
    def spent_on(self, what: str) -> Iterator[None]:
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


class _Means:
    """Adds values up, and gives their means over updates and workers."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """Add one update's values; the same names on every worker."""
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """Return the means, and start anew."""
        if not self._sums:
            return {}
        means = torch.stack([value.float() / self._counts[name] for name, value in self._sums.items()])
        if dist.is_initialized():
            dist.all_reduce(means)
            means /= dist.get_world_size()
        names, self._sums, self._counts = list(self._sums), {}, {}
        return dict(zip(names, means.tolist(), strict=True))


def _wish_of(writer: CheckpointWriter, stop: StopRequest, outcome: Outcome) -> float:
    try:
        writer.check()
    except StorageError as error:
        outcome.failure = _named(error)
    return _FAIL if outcome.failure else _STOP if stop.is_set() else _GO_ON


def _agree(loss: Tensor, wish: float) -> tuple[float, float]:
    """Return the mean of all ranks' losses, and what rank 0 wishes; the other ranks' wishes must be 0."""
    values = torch.stack([loss.float(), torch.tensor(wish, device=loss.device)])
    num_workers = 1
    if dist.is_initialized():
        num_workers = dist.get_world_size()
        dist.all_reduce(values)
    total, agreed = values.tolist()
    return total / num_workers, agreed


def _together(work: Callable[[], ResultT]) -> ResultT:
    """Do something on every rank, and return rank 0's result; a deliberate error of one rank is raised on all."""
    found: tuple[ResultT | None, ScFeganError | None]
    try:
        found = work(), None
    except ScFeganError as error:
        found = None, error
    everywhere = [found]
    if dist.is_initialized():
        everywhere *= dist.get_world_size()
        dist.all_gather_object(everywhere, found)
    for _, trouble in everywhere:
        if trouble is not None:
            raise trouble
    return cast("ResultT", everywhere[0][0])


def _load_latest(state: TrainingState, store: CheckpointStore, rank: int, retry_seconds: float) -> str | None:
    """Bring a state to the newest checkpoint that is sound; return its name, None where there is no checkpoint.

    Raises:
        CheckpointError: there are some, and none is sound.
        StorageError: they cannot be read, not even after a while.
    """

    def load(name: str) -> None:
        with store.open(name) as folder:
            checkpoint.load(state, Path(folder))

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

    name = _together(lambda: patiently(newest_sound) if rank == 0 else None)
    if name is not None:
        _together(lambda: patiently(lambda: load(name)) if rank != 0 else None)
    return name


def _roll_back(
    state: TrainingState, store: CheckpointStore, writer: CheckpointWriter, rank: int, retry_seconds: float
) -> None:
    """Bring a state back to the last checkpoint, but for what the sentinel has learnt since.

    Raises:
        DivergenceError: that was done often enough.
        CheckpointError: there is no sound checkpoint.
        StorageError: the last checkpoint could not be written, or not be read.
    """
    _together(writer.wait)
    memory = state.sentinel.state()
    _load_latest(state, store, rank, retry_seconds)
    state.sentinel.load(memory)
    state.sentinel.roll_back(state.images_seen)


def _parts(arrays: dict[str, NDArray[Any]], most: int, device: torch.device) -> list[Part]:
    """Cut a worker's share of a batch into passes of at most so many images; 0 for no limit."""
    number = len(arrays["interpolation"])
    step = most or number
    parts = []
    for at in range(0, number, step):
        piece = {name: array[at : at + step] for name, array in arrays.items()}
        parts.append(Part(Batch.from_arrays(piece, device), torch.from_numpy(piece["interpolation"]).to(device)))
    return parts


def _weighted(values: dict[str, float], config: Config) -> dict[str, float]:
    """Return what each part contributes to its network's total, by `<network>/<part>`."""
    weights = losses.part_weights(config.losses)
    parts = {name: name.rpartition("/")[2] for name in values if not name.startswith("gradient_norm/")}
    return {name: weights[part] * values[name] for name, part in parts.items() if part in weights}


def _named(error: ScFeganError) -> tuple[str, str]:
    return type(error).__name__, str(error)


def _memory_bytes(device: torch.device) -> int:
    """Return the most that tensors took on a GPU; on a CPU what this process takes now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


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


def _distribute(network: nn.Module) -> nn.Module:
    # Each rank moves the vectors of the spectral norm itself: they follow from the weights, which are the same on
    # every rank, and sending them between forward and backward would break the graph.
    wrapped: nn.Module = ray.train.torch.prepare_model(
        network, parallel_strategy_kwargs={"forward_sync_buffers": False, "gradient_as_bucket_view": True}
    )
    return wrapped


def _crossed(before: int, after: int, every: int) -> bool:
    return every > 0 and before // every != after // every
