"""From a config to a registered model: prepared data, a Ray Train run that resumes by name, and the registry."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
import ray.train
import ray.train.torch
from ray.train.v2.api.callback import UserCallback

from scfegan_ray import config as configuration
from scfegan_ray import errors, locks, storage, tracking
from scfegan_ray.allocation import KEEP_MEMORY
from scfegan_ray.config import Config
from scfegan_ray.data import examples, pipeline, prepared
from scfegan_ray.errors import ConfigError, deliberate_cause
from scfegan_ray.models.features import settle_features
from scfegan_ray.training import checkpoint, checks
from scfegan_ray.training.store import CheckpointStore
from scfegan_ray.training.worker import Outcome, train_worker

logger = logging.getLogger(__name__)

# Settings that a run may change when it is resumed: they change neither the network nor what it has learnt from.
_FREE_ON_RESUME = (
    "run_name",
    "data",
    "evaluation",
    "tune",
    "storage",
    "tracking",
    "train.num_workers",
    "train.min_workers",
    "train.max_images_per_pass",
    "train.use_gpu",
    "train.compile",
    "train.cpus_per_worker",
    "train.wait_for_nodes",
    "train.threads_per_worker",
    "train.loader_threads",
    "train.images",
    "train.log_every_images",
    "train.gradient_norms_every_images",
    "train.checkpoint_every_images",
    "train.checkpoint_every_seconds",
    "train.checkpoints_to_keep",
    "train.max_failures",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingResult:
    """What a run left behind.

    Attributes:
        run_name: the same name resumes the run.
        run_id: MLflow's.
        model_uri: registered version, or None where `register` was False.
        checkpoint: URI of the last checkpoint.
        images_seen: over all sessions of the run.
        weights_sha256: digest over generator, discriminator and moving average.
        first_metrics: of held-back images when this session started.
        last_metrics: of held-back images at the end.
        images_per_second: of this session's training loop, see `worker.Outcome`.
    """

    run_name: str
    run_id: str
    model_uri: str | None
    checkpoint: str
    images_seen: int
    weights_sha256: str
    first_metrics: dict[str, float]
    last_metrics: dict[str, float]
    images_per_second: float


def default_run_name(preset: str) -> str:
    """Name a run after its preset and the present time."""
    return f"{preset}-{time.strftime('%Y%m%d-%H%M%S')}"


def train(
    config: Config,
    *,
    session: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    register: bool = True,
    parent_run_id: str | None = None,
    callbacks: Sequence[UserCallback] = (),
) -> TrainingResult:
    """Train, or go on training, the run that a config names.

    Whatever can be checked without Ray is checked before it: see `checks`.

    Args:
        config: `run_name` must be set.
        session: Ray must run within it; default: it runs already.
        register: make a new version in the registry at the end.
        parent_run_id: MLflow run under which a new run is filed; its owner then marks the run if it does not finish.
        callbacks: passed on to Ray Train.

    Raises:
        BusyError: another process trains the same run.
        ConfigError: the run exists with other settings, or the cluster is too small.
        DataError: there is nothing to train on.
        StorageError: storage or tracking cannot be used.
        DivergenceError: training does not recover from losses that explode.
        KeyboardInterrupt: the user ended it, after a last checkpoint.
    """
    assert config.run_name, "the caller names the run"
    place = storage.join(storage.absolute(config.storage.path), config.run_name)
    checks.before_training(config, place, registers=register)
    with (
        locks.held(place, f"run {config.run_name}") as lock,
        lasting(session, functools.partial(check_resources, config)) as cluster,
    ):
        dataset_uri = pipeline.ensure_prepared(config, session=cluster)
        with cluster():
            return _train(config, place, dataset_uri, lock, register, parent_run_id, callbacks)


def _train(
    config: Config,
    place: str,
    dataset_uri: str,
    lock: locks.Lock,
    register: bool,
    parent_run_id: str | None,
    callbacks: Sequence[UserCallback],
) -> TrainingResult:
    """Train on a prepared dataset, on the cluster that is there, while nobody else trains the same run."""
    assert config.run_name, "the caller names the run"
    dataset = prepared.DatasetInfo.read(dataset_uri)
    assert dataset is not None, "it was just prepared"
    uri = tracking.tracking_uri(config)
    tags = {
        "data_fingerprint": dataset.fingerprint,
        "data_license": config.data.license or dataset.license,
        "data_source": dataset.source,
        "sketch_detector": dataset.sketch_detector,
    }
    run = _open_run(config, place, dataset, tags, parent_run_id)
    run_id = run["run_id"]
    logger.info("run %s, MLflow run %s at %s", config.run_name, run_id, uri)

    store = CheckpointStore(storage.join(place, "checkpoints"))
    status = "KILLED"
    try:
        outcome = _fit(
            config,
            {
                "config": config.to_dict(),
                "dataset": dataset_uri,
                "checkpoints": store.place,
                "tracking_uri": uri,
                "run_id": run_id,
                "features": run["features"],
                "report": bool(callbacks),
            },
            callbacks,
            lock,
        )
        if outcome.stopped:
            raise KeyboardInterrupt
        if outcome.failure is not None:
            kind, text = outcome.failure
            kept = f"; the last checkpoint is {outcome.checkpoint}" if outcome.checkpoint else ""
            raise getattr(errors, kind)(f"{text}{kept}")
        assert outcome.checkpoint is not None, "every run ends with a checkpoint"
        model_uri = None
        if register:
            with storage.local_copy(outcome.checkpoint) as folder:
                generator, _ = checkpoint.load_generator(folder)
            rows = prepared.PreparedDataset.open(dataset_uri)
            example = next(examples.evaluation_batches(rows, config.masks, 1, 1))
            model_uri = tracking.register(
                generator,
                config,
                run_id,
                weights_sha256=outcome.weights_sha256,
                tags=tags | {"features": outcome.features, "images_seen": str(outcome.images_seen)},
                example=example,
            )
            logger.info("registered %s", model_uri)
        status = "FINISHED"
    except Exception as error:
        status = "FAILED"
        raise deliberate_cause(error) or error from None
    finally:
        # A parent that stops this run on purpose knows better what to call an end before its time.
        if status == "FINISHED" or parent_run_id is None:
            tracking.end_run(config, run_id, status)
    return TrainingResult(
        run_name=config.run_name,
        run_id=run_id,
        model_uri=model_uri,
        checkpoint=outcome.checkpoint,
        images_seen=outcome.images_seen,
        weights_sha256=outcome.weights_sha256,
        first_metrics=outcome.first_metrics,
        last_metrics=outcome.last_metrics,
        images_per_second=outcome.images_per_second,
    )


@contextlib.contextmanager
def lasting(
    session: Callable[[], contextlib.AbstractContextManager[None]], check: Callable[[], object]
) -> Iterator[Callable[[], contextlib.AbstractContextManager[None]]]:
    """Give a session that begins where it is first entered and ends with this context.

    Args:
        session: to enter once.
        check: done in it first.
    """
    with contextlib.ExitStack() as stack:
        has_begun = False

        @contextlib.contextmanager
        def enter() -> Iterator[None]:
            nonlocal has_begun
            if not has_begun:
                stack.enter_context(session())
                has_begun = True
                check()
            yield

        yield enter


def _fit(config: Config, settings: dict[str, Any], callbacks: Sequence[UserCallback], lock: locks.Lock) -> Outcome:
    """Run the workers to their end; where the user interrupts, let them write a checkpoint first."""
    stop = ray.remote(num_cpus=0)(_StopFlag).remote()
    train = config.train
    with tempfile.TemporaryDirectory(prefix="scfegan-ray-", ignore_cleanup_errors=True) as scratch:
        trainer = ray.train.torch.TorchTrainer(
            train_worker,
            train_loop_config=settings | {"stop": stop},
            scaling_config=ray.train.ScalingConfig(
                num_workers=(train.min_workers, train.num_workers) if train.min_workers else train.num_workers,
                use_gpu=train.use_gpu,
                resources_per_worker=_resources(config),
            ),
            run_config=ray.train.RunConfig(
                name=config.run_name,
                storage_path=scratch,  # for Ray's own notes, which nobody needs afterwards
                failure_config=ray.train.FailureConfig(max_failures=train.max_failures, controller_failure_limit=3),
                callbacks=list(callbacks),
                logging_config=ray.train.LoggingConfig(log_level="WARNING"),
                worker_runtime_env={"env_vars": KEEP_MEMORY},
            ),
        )
        result = _interruptible(trainer.fit, lambda: stop.set.remote(), lock.check)
    return Outcome(**result.return_value)


class _StopFlag:
    """Carries the user's wish to end from the driver to the workers."""

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        self._is_set = True

    def is_set(self) -> bool:
        return self._is_set


ResultT = TypeVar("ResultT")


def _interruptible(work: Callable[[], ResultT], stop: Callable[[], object], check: Callable[[], object]) -> ResultT:
    """Do long work; the first Ctrl-C or SIGTERM asks it to stop, the second one is a KeyboardInterrupt.

    Ray Train would abort its workers at the first one, but only where it runs on the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()  # a trial of a search, which Tune ends in its own way
    done: Future[ResultT] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    asked = False

    def on_signal(number: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        logger.warning("stopping after a last checkpoint; interrupt once more to stop without one")
        stop()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        threading.Thread(target=run, name="train", daemon=True).start()
        while not done.done():
            wait([done], timeout=0.5)  # a wait without an end would keep signals from being handled
            check()  # what it raises ends the work, too: Ray's workers end with this process's session
        return done.result()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _resources(config: Config) -> dict[str, float]:
    return {"CPU": config.train.cpus_per_worker} | ({"GPU": 1} if config.train.use_gpu else {})


def check_resources(config: Config) -> None:
    """Refuse a run that Ray would let wait for ever.

    Raises:
        ConfigError: the cluster lacks CPUs or GPUs for all workers, and is not said to grow.
    """
    there = ray.cluster_resources()
    for name, each in _resources(config).items():
        fewest = config.train.min_workers or config.train.num_workers
        needed = each * fewest
        if needed > there.get(name, 0.0) and not config.train.wait_for_nodes:
            raise ConfigError(
                f"{fewest} workers need {needed:g} {name}, the cluster has {there.get(name, 0.0):g}; "
                "lower --train.num-workers or --train.cpus-per-worker, or give --train.wait-for-nodes where the "
                "cluster grows by itself"
            )


def _open_run(
    config: Config, place: str, dataset: prepared.DatasetInfo, tags: dict[str, str], parent_run_id: str | None
) -> dict[str, Any]:
    """Return what `run.json` knows of a run: written when it starts, so that a resume goes on with the same."""
    record = storage.join(place, "run.json")
    if storage.exists(record):
        known: dict[str, Any] = json.loads(storage.read_bytes(record))
        _check_same(config, known, dataset)
        tracking.resume_run(config, known["run_id"])
        return known
    assert config.run_name
    values = {
        "run_id": tracking.start_run(config, config.run_name, tags=tags, parent_run_id=parent_run_id),
        "features": settle_features(config.losses.features),
        "data_fingerprint": dataset.fingerprint,
        "config": config.to_dict(),
    }
    storage.write_bytes(record, json.dumps(values, indent=2).encode())
    return values


def _check_same(config: Config, known: dict[str, Any], dataset: prepared.DatasetInfo) -> None:
    before, now = (configuration.flatten(values) for values in (known["config"], config.to_dict()))
    cure = f"use another --run-name than {config.run_name} or the old setting"
    for name in sorted(before.keys() | now.keys()):
        free = name in _FREE_ON_RESUME or name.partition(".")[0] in _FREE_ON_RESUME
        if not free and before.get(name) != now.get(name):
            raise ConfigError(
                f"the run was started with {name} = {before.get(name)}, now it is {now.get(name)}; {cure}"
            )
    if known["data_fingerprint"] != dataset.fingerprint:
        raise ConfigError(f"the run was started on another dataset than {dataset.source} as prepared now; {cure}")
