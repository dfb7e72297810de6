"""The training loop of one rank, to be read from top to bottom; it knows neither Ray nor MLflow."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scfegan_ray.config import Config
from scfegan_ray.data.examples import TrainingExamples
from scfegan_ray.data.feed import Feed, Pool
from scfegan_ray.data.feed_process import Layout
from scfegan_ray.data.rows import PreparedDataset
from scfegan_ray.models.features import Features
from scfegan_ray.precision import check_native, name_of, resolve_precision, set_up
from scfegan_ray.training import ranks
from scfegan_ray.training.curves import ReferenceCurve
from scfegan_ray.training.hooks import HeldBack, Journal, Keeper, Unread, Written, crossed
from scfegan_ray.training.outcome import Outcome
from scfegan_ray.training.state import TrainingState
from scfegan_ray.training.step import cut_into_passes, train_step
from scfegan_ray.training.store import CheckpointStore, go_back, load_latest

if TYPE_CHECKING:
    from scfegan_ray.tracking import Tracker

logger = logging.getLogger(__name__)

_GO_ON, _STOP, _FAIL = 0.0, 1.0, 2.0
"""What rank 0 asks of all ranks."""
_DELAY = 2
"""Updates after which the host reads what became of one: enough that a GPU always has work while the host waits."""
_SETTLING_UPDATES = 3
"""Updates that do not count for the speed: libraries choose their ways in them."""


def train(
    config: Config,
    dataset_uri: str,
    store: CheckpointStore,
    features: Features,
    tracker: Tracker,
    *,
    device: torch.device,
    must_stop: Callable[[], bool] = lambda: False,
    report: Callable[[dict[str, float], Written | None], object] | None = None,
    make_pool: Callable[[dict[str, Any], int, Layout], Pool] | None = None,
    curve: ReferenceCurve | None = None,
    observe: Callable[[Mapping[str, float]], object] | None = None,
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
        report: called on every rank with the metrics of held-back images when they are due and, on rank 0, with what
            waits for the checkpoint that goes with them.
        make_pool: return who makes this rank's batches, given `TrainingExamples.said`, the size of its share and the
            layout of a batch. Default: processes of this machine.
        curve: how such runs usually go, where that is known.
        observe: called on every rank with what `timing.GAUGES` names, every `train.log_every_images`.

    Raises:
        DataError: the dataset cannot be used.
        StorageError: it cannot be reached.
    """
    rank, num_ranks = ranks.rank(), ranks.num_ranks()
    set_up(device)
    precision = resolve_precision(config.train.precision, device)
    batch_size, total = config.train.batch_size, config.train.images
    retry_seconds = config.storage.retry_seconds
    outcome = Outcome(features=features.description, first_metrics={}, last_metrics={})

    # State: built from the seed, then brought to the last checkpoint.
    state = TrainingState.build(config, device)
    with outcome.noting_failure():
        ranks.together(lambda: check_native(precision, device))
        resumed = load_latest(state, store, retry_seconds)
        ranks.make_same(state.tensors())
    if outcome.failure:
        return outcome
    if resumed is not None:
        logger.info("resuming at %d images", state.images_seen)
    features = features.to(device)
    if config.train.compile:
        state.generator.compile()
        features.compile()
    generator = ranks.distribute(state.generator, device, config.train.gradient_compression)
    discriminator = ranks.distribute(state.discriminator, device, config.train.gradient_compression)

    # Feed: this rank's share of each global batch, in passes that fit its memory.
    window = config.train.window_images
    assert window is not None, "settled when the run started"
    dataset = PreparedDataset.open(dataset_uri, whole=not window and make_pool is None, retry_seconds=retry_seconds)
    training = TrainingExamples(dataset, config.masks, config.seed, window)
    largest = config.train.max_images_per_pass
    keep_graph = largest == 0 or -(-batch_size // num_ranks) <= largest
    feed = Feed(
        training,
        batch_size=batch_size,
        rank=rank,
        num_workers=num_ranks,
        num_processes=config.train.loader_processes,
        device=device,
        retry_seconds=retry_seconds,
        make_pool=None if make_pool is None else functools.partial(make_pool, training.said(retry_seconds)),
    )

    # Hooks: what is done beside updates.
    tracker.tags({"features": features.description, "precision": name_of(precision), "tf32": config.train.tf32})
    journal = Journal(config, tracker, device, state.images_seen, curve, observe)
    held_back = None
    if dataset.info.num_test:
        held_back = HeldBack(config, dataset, features, device, precision, tracker, curve)
    keeper = Keeper(config, store, state.images_seen, journal.spent)

    def measure() -> None:
        if held_back is not None:
            with journal.spent.on("evaluation"):
                outcome.last_metrics = held_back.measure(state)

    measure()
    outcome.first_metrics = outcome.last_metrics
    if rank == 0 and resumed is None:
        keeper.save(state, outcome.last_metrics)  # something to go back to from the very first

    # What rank 0 asks of all ranks travels with the losses; averaged gradients are the same on every rank anyway.
    asks, agreed, told = _GO_ON, _GO_ON, torch.zeros(1, device=device)

    def refuses(name: str, loss: Tensor, gradient_norm: Tensor) -> Tensor:
        nonlocal told
        totals = ranks.total(torch.stack([loss.float(), torch.full((), asks, device=device)]))
        told = totals[1:]
        return state.sentinel.refuses(name, totals[0] / num_ranks, gradient_norm)

    with contextlib.closing(feed):
        batches = feed.batches(state.images_seen, state.sentinel.reseeded_at)
        unread, seconds = deque[Unread](), list[float]()
        while unread or (state.images_seen < total and agreed == _GO_ON):
            # Step: whatever is decided about it is decided on the device.
            began, before, after = time.perf_counter(), state.images_seen, state.images_seen + batch_size
            is_update = before < total and agreed == _GO_ON
            if is_update:
                if rank == 0:
                    asks = _FAIL if keeper.has_failed() else _STOP if asks == _STOP or must_stop() else _GO_ON
                with journal.spent.on("data"):
                    passes = cut_into_passes(next(batches), largest)
                rates = state.set_learning_rates(config.optimization, total)
                with journal.on_step(state.discriminator):
                    values = train_step(
                        state,
                        passes,
                        features,
                        config.losses,
                        generator=generator,
                        discriminator=discriminator,
                        precision=precision,
                        allow_tf32=config.train.tf32,
                        images_per_worker=batch_size / num_ranks,
                        keep_graph=keep_graph,
                        refuses=refuses,
                        with_gradient_norms=crossed(before, after, config.train.gradient_norms_every_images),
                    )
                    accepted, verdict = state.sentinel.conclude()
                    state.images_seen = after
                    state.update_ema(config.optimization.ema_half_life_images, batch_size, accepted)
                to_read = {"verdict": verdict, "told": told}
                unread.append(journal.add(values, accepted, before, state, rates, to_read, feed))

            # Verdict: read by all ranks after the same update, whatever their clocks say.
            if len(unread) > _DELAY or not is_update:
                update = unread.popleft()
                with journal.spent.on("step"):
                    found = update.copy.wait()
                known = state.sentinel.read(found["verdict"].tolist())
                agreed = max(agreed, *found["told"].tolist())
                journal.write(update, found, known)
                if known.reason:
                    logger.warning("skipped the batch at %d: %s", update.before, known.reason)
                if known.must_roll_back:
                    with outcome.noting_failure():
                        ranks.together(keeper.wait)
                        go_back(state, store, retry_seconds)
                    if outcome.failure:
                        break
                    batches = feed.batches(state.images_seen, state.sentinel.reseeded_at)
                    unread.clear()
                    continue
            seconds.append(time.perf_counter() - began)

            # Checkpoint: at positions that all ranks know, with metrics, or when rank 0's clock says so, without.
            is_due = is_update and (after >= total or crossed(before, after, config.train.checkpoint_every_images))
            if not is_due and not (is_update and rank == 0 and keeper.is_due()):
                continue
            with journal.spent.on("checkpoint"):
                latest = [state.sentinel.read(one.copy.wait()["verdict"].tolist()) for one in unread]
            will_roll_back = any(one.must_roll_back for one in latest)
            is_sound = not will_roll_back and not latest[-1].reason
            if is_due and is_sound:
                with outcome.noting_failure():
                    ranks.make_same(state.tensors())
                if outcome.failure:
                    break
                measure()
            written = None
            if rank == 0 and is_sound and asks != _FAIL:
                written = keeper.save(state, outcome.last_metrics if is_due else {}, by_clock=not is_due)
            if is_due and report is not None and not will_roll_back:
                report(outcome.last_metrics | {"images_seen": after}, written)

    if rank == 0 and agreed != _FAIL and not outcome.failure and keeper.saved_at != state.images_seen:
        keeper.save(state, {})
    last = keeper.close() or resumed
    if keeper.trouble is not None:
        outcome.fail(keeper.trouble)
    outcome.images_seen, outcome.stopped = state.images_seen, agreed == _STOP
    if counting := seconds[_SETTLING_UPDATES:]:
        outcome.images_per_second = batch_size * len(counting) / sum(counting)
    if rank == 0 and last is not None:
        outcome.checkpoint, outcome.weights_sha256 = store.uri(last), state.weights_sha256()
    return outcome
