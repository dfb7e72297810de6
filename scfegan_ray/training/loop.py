"""The training loop of one rank, to be read from top to bottom; it knows neither Ray nor MLflow."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scfegan_ray import storage
from scfegan_ray.config import Config
from scfegan_ray.data import examples, prepared
from scfegan_ray.errors import ScFeganError
from scfegan_ray.images import Batch
from scfegan_ray.models.features import Features
from scfegan_ray.precision import check_native, name_of, resolve_precision, set_tf32
from scfegan_ray.progress import Progress
from scfegan_ray.training import ranks
from scfegan_ray.training.hooks import HeldBack, Keeper, Means, TimeSpent, memory_bytes, weighted
from scfegan_ray.training.state import TrainingState
from scfegan_ray.training.step import Pass, train_step
from scfegan_ray.training.store import CheckpointStore, go_back, load_latest

if TYPE_CHECKING:
    from scfegan_ray.tracking import Tracker

logger = logging.getLogger(__name__)

_GO_ON, _STOP, _FAIL = 0.0, 1.0, 2.0
"""What rank 0 asks of all ranks."""
_SETTLING_UPDATES = 3
"""Updates that do not count for the speed: libraries choose their ways in them."""


@dataclass(kw_only=True, slots=True)
class Outcome:
    """What came of a run; complete on rank 0.

    Attributes:
        images_seen: when the loop ended.
        weights_sha256: digest over generator, discriminator and moving average then.
        checkpoint: URI of the last checkpoint; None where there is none.
        features: which VGG weights were used.
        first_metrics: of held-back images when this loop started.
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


def train(
    config: Config,
    dataset_uri: str,
    store: CheckpointStore,
    features: Features,
    tracker: Tracker,
    *,
    device: torch.device,
    must_stop: Callable[[], bool] = lambda: False,
    report: Callable[[dict[str, float]], object] | None = None,
) -> Outcome:
    """Train until `train.images` images were seen, from the last checkpoint where there is one.

    The same on every rank: alone, under torchrun, or in a worker of Ray Train.

    Args:
        config: of the run, the same on all ranks.
        dataset_uri: of the prepared data.
        store: of the run's checkpoints, which all ranks reach.
        features: frozen VGG-16, the same on all ranks.
        tracker: where rank 0 records; other ranks' records nothing.
        device: of this rank.
        must_stop: asked on rank 0 between updates; where it says yes, all ranks end after the same one.
        report: called on every rank with the metrics of held-back images when they are due.

    Raises:
        DataError: the dataset cannot be used.
        StorageError: it cannot be reached.
    """
    rank, num_ranks = ranks.rank(), ranks.num_ranks()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.backends.cudnn.benchmark = True  # shapes never change
    set_tf32(convolutions=False, products=False)  # but where an update allows it
    precision = resolve_precision(config.train.precision, device)

    # State: built from the seed, then brought to the last checkpoint.
    state = TrainingState.build(config, device)
    outcome = Outcome(first_metrics={}, last_metrics={})
    try:
        ranks.together(lambda: check_native(precision, device))
        resumed = load_latest(state, store, config.storage.retry_seconds)
    except ScFeganError as error:  # the same on every rank
        outcome.failure = _named(error)
        return outcome
    if resumed is not None:
        logger.info("resuming at %d images", state.images_seen)
    features = features.to(device)
    if config.train.compile:
        state.generator.compile()
        features.compile()
    generator = ranks.distribute(state.generator, device)
    discriminator = ranks.distribute(state.discriminator, device)

    # Feed: this rank's share of each global batch, in passes that fit its memory.
    dataset = storage.retrying(
        lambda: prepared.PreparedDataset.open(dataset_uri), config.storage.retry_seconds, logger.warning
    )
    batch_size, total = config.train.batch_size, config.train.images
    largest = config.train.max_images_per_pass
    keep_graph = largest == 0 or -(-batch_size // num_ranks) <= largest

    def open_batches() -> Generator[examples.Example, None, None]:
        return examples.training_batches(
            dataset,
            config.masks,
            seed=config.seed,
            start=state.images_seen,
            batch_size=batch_size,
            rank=rank,
            num_workers=num_ranks,
            threads=config.train.loader_threads,
            reseeded_at=state.sentinel.reseeded_at,
        )

    # Hooks: what rank 0 alone does.
    spent, means = TimeSpent(), Means()
    tracker.tags({"features": features.description, "precision": name_of(precision), "tf32": config.train.tf32})
    held_back = HeldBack(config, dataset, features, device, tracker) if rank == 0 and dataset.info.num_test else None
    keeper = Keeper(config, store, state.images_seen)

    def measure() -> dict[str, float] | None:
        if held_back is None:
            return None
        with spent.on("evaluation"):
            outcome.last_metrics = held_back.measure(state)
        return outcome.last_metrics

    def save(metrics: dict[str, float] | None) -> None:
        with spent.on("checkpoint"):
            keeper.save(state, metrics)

    outcome.features = features.description
    measured = measure()
    outcome.first_metrics = outcome.last_metrics
    if rank == 0 and resumed is None:
        save(measured)  # something to go back to from the very first

    asked = _GO_ON

    def accept(name: str, loss: Tensor, gradient_norm: Tensor) -> bool:
        # The averaged gradient is the same on every rank; the loss and what rank 0 asks become so here.
        nonlocal asked
        if rank == 0:
            keeper.check()
            asked = max(asked, _FAIL if keeper.trouble else _STOP if must_stop() else _GO_ON)
        mean, asked = _agree(loss, asked)
        return state.sentinel.accept(name, mean, float(gradient_norm))

    batches = open_batches()
    progress = Progress("train", total=total, start=state.images_seen, log=logger.info)
    durations: list[float] = []

    while state.images_seen < total and asked == _GO_ON:
        began = time.perf_counter()
        with spent.on("data"):
            arrays = next(batches)
        rates = state.set_learning_rates(config.optimization, total)
        before, after = state.images_seen, state.images_seen + batch_size
        with spent.on("step"):  # which waits for the device by itself, to know whether to accept
            update = train_step(
                state,
                _passes(arrays, largest, device),
                features,
                config.losses,
                generator=generator,
                discriminator=discriminator,
                precision=precision,
                allow_tf32=config.train.tf32,
                images_per_worker=batch_size / num_ranks,
                keep_graph=keep_graph,
                accept=accept,
                with_gradient_norms=_crossed(before, after, config.train.gradient_norms_every_images),
            )
            state.images_seen = after
            trouble = state.sentinel.conclude(update.accepted)
            if not trouble:
                state.update_ema(config.optimization.ema_half_life_images, batch_size)
                means.add(update.values)
        if trouble:
            logger.warning("skipped the batch at %d: %s", before, trouble)
        spent.num_images += batch_size
        done = state.images_seen >= total

        # What depends on position and outcome alone is the same on every rank, so that none waits for a partner.
        must_log = done or before == 0 or _crossed(before, after, config.train.log_every_images)
        values = means.take() if must_log else {}
        progress.update(state.images_seen, f"generator {values['generator/total']:.3f}" if values else "")
        durations.append(time.perf_counter() - began)

        is_due = done or _crossed(before, after, config.train.checkpoint_every_images)
        must_roll_back = state.sentinel.must_roll_back
        if must_roll_back:
            try:
                ranks.together(keeper.wait)
                go_back(state, store, config.storage.retry_seconds)
            except ScFeganError as error:  # the same on every rank
                outcome.failure, asked = _named(error), _FAIL
                break
            batches.close()
            batches = open_batches()
        elif rank == 0 and state.sentinel.last_was_accepted and asked != _FAIL:
            if is_due:
                save(measure())
            elif keeper.is_due():
                save(None)
        if must_log:
            tracker.metrics(
                {f"train/{name}": value for name, value in values.items()}
                | {f"train/weighted/{name}": value for name, value in weighted(values, config).items()}
                | {f"train/{name}": value for name, value in spent.take().items()}
                | {
                    "train/generator/learning_rate": rates[0],
                    "train/discriminator/learning_rate": rates[1],
                    "train/eta_seconds": progress.seconds_left,
                    "train/memory_gib": memory_bytes(device) / 2**30,
                    "train/skipped_batches": state.sentinel.num_skipped,
                    "train/rollbacks": len(state.sentinel.reseeded_at),
                },
                after,
            )
        if is_due and report and not must_roll_back:
            report(outcome.last_metrics | {"images_seen": state.images_seen})

    batches.close()
    if rank == 0 and asked != _FAIL and keeper.saved_at != state.images_seen:
        save(None)
    last = keeper.close() or resumed
    if keeper.trouble:
        outcome.failure = _named(keeper.trouble)
    outcome.images_seen, outcome.stopped = state.images_seen, asked == _STOP
    if counting := durations[_SETTLING_UPDATES:]:
        outcome.images_per_second = batch_size * len(counting) / sum(counting)
    if rank == 0 and last is not None:
        outcome.checkpoint, outcome.weights_sha256 = store.uri(last), state.weights_sha256()
    return outcome


def _agree(loss: Tensor, asked: float) -> tuple[float, float]:
    """Return the mean of all ranks' losses, and what rank 0 asks; the other ranks ask 0."""
    total, agreed = ranks.total(torch.stack([loss.float(), torch.tensor(asked, device=loss.device)])).tolist()
    return total / ranks.num_ranks(), agreed


def _passes(arrays: examples.Example, largest: int, device: torch.device) -> list[Pass]:
    """Cut a rank's share of a batch into passes of at most so many images; 0 for no limit."""
    number = len(arrays["interpolation"])
    step = largest or number
    passes = []
    for at in range(0, number, step):
        piece = {name: array[at : at + step] for name, array in arrays.items()}
        passes.append(Pass(Batch.from_arrays(piece, device), torch.from_numpy(piece["interpolation"]).to(device)))
    return passes


def _named(error: ScFeganError) -> tuple[str, str]:
    return type(error).__name__, str(error)


def _crossed(before: int, after: int, every: int) -> bool:
    return every > 0 and before // every != after // every
