"""From a config to a registered model: prepared data, a Ray Train run that resumes by name, and the registry."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import ray
import ray.train
import ray.train.torch
import torch
from ray.actor import ActorHandle
from ray.train.v2._internal import constants
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2.api.callback import UserCallback

from scfegan_ray import config as configuration
from scfegan_ray import errors, locks, nodes, places, registry, storage, tracking
from scfegan_ray.allocation import training_memory
from scfegan_ray.config import Config
from scfegan_ray.data import examples, prepare
from scfegan_ray.data.dataset import DatasetInfo, first_held_back
from scfegan_ray.errors import ConfigError, DataError, StorageError, deliberate_cause
from scfegan_ray.models.features import settle_features
from scfegan_ray.precision import check_available, has_bfloat16
from scfegan_ray.training import checkpoint, checks, curves, feeding, stopping
from scfegan_ray.training.curves import ReferenceCurve
from scfegan_ray.training.outcome import Outcome
from scfegan_ray.training.store import CheckpointStore
from scfegan_ray.training.worker import train_worker

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
    "train.loader_processes",
    "train.images",
    "train.log_every_images",
    "train.gradient_norms_every_images",
    "train.checkpoint_every_images",
    "train.checkpoint_every_seconds",
    "train.checkpoints_to_keep",
    "train.reference_curve",
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
        images_per_second: of this session's training loop, see `outcome.Outcome`.
        dataset: URI of the prepared dataset that it learnt from.
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
    dataset: str


def default_run_name(preset: str) -> str:
    """Name a run after its preset and the present time."""
    return f"{preset}-{time.strftime('%Y%m%d-%H%M%S')}"


def train(
    config: Config,
    *,
    session: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
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
        DataError: there is nothing to train on, or nothing to measure on.
        ModelError: weights that are needed cannot be had.
        StorageError: storage or tracking cannot be used.
        DivergenceError: training does not recover from losses that explode.
        KeyboardInterrupt: the user ended it, after a last checkpoint.
    """
    config = places.settle(config)
    assert config.run_name, "the caller names the run"
    place = storage.join(storage.absolute(config.storage.path), config.run_name)
    checks.before_training(config, place, registers=register)
    # What cannot be had is known before hours of preparation.
    curve = _given_curve(config)
    if not storage.exists(storage.join(place, _RECORD)):
        settle_features(config.losses.features)
    with (
        locks.held(place, f"run {config.run_name}") as lock,
        nodes.lasting(functools.partial(_cluster, config, session)) as cluster,
    ):
        dataset_uri = prepare.ensure_prepared(config, session=cluster)
        with cluster() as landmarks:
            return _train(config, place, dataset_uri, landmarks, lock, register, parent_run_id, callbacks, curve)


def _given_curve(config: Config) -> ReferenceCurve | None:
    """Read how such runs usually go from the file that says so; None where none is given.

    Raises:
        ConfigError: the file is no such curve.
        StorageError: it cannot be read.
    """
    file = config.train.reference_curve
    return None if file is None else ReferenceCurve.read(storage.read_bytes(file))


def _reference_curve(config: Config, given: ReferenceCurve | None) -> ReferenceCurve | None:
    """Return how runs of a config usually go: as was given, or as this package knows; None where nobody knows.

    Raises:
        ConfigError: what was given is of runs with other settings.
    """
    if given is None:
        return curves.find(config)
    if not given.agrees(config):
        raise ConfigError(
            f"the runs of --train.reference-curve {config.train.reference_curve} had other settings; give one of the "
            "same, or none"
        )
    return given


@contextlib.contextmanager
def _cluster(
    config: Config, session: Callable[[], contextlib.AbstractContextManager[object]]
) -> Iterator[nodes.Landmarks]:
    """Enter a session of Ray whose cluster is large enough, may log in to MLflow, and sees all places."""
    with session():
        check_resources(config)
        check_logins(config)
        with nodes.seen_by_all(*_places(config)) as landmarks:
            yield landmarks


def _places(config: Config) -> tuple[dict[str, str | None], dict[str, str | None]]:
    """Return what all nodes must see: settings and their places, of folders that are written to and of others."""
    uri = tracking.tracking_uri(config)
    database = places.sqlite_path(uri)
    written = {
        "storage.path": config.storage.path,
        "tracking.uri": None if database is None else str(Path(database).parent),
    }
    made = config.data.prepared and storage.exists(storage.join(config.data.prepared, "dataset.json"))
    return written, {"data.prepared": config.data.prepared if made else None}


def _train(
    config: Config,
    place: str,
    dataset_uri: str,
    landmarks: nodes.Landmarks,
    lock: locks.Lock,
    register: bool,
    parent_run_id: str | None,
    callbacks: Sequence[UserCallback],
    given: ReferenceCurve | None,
) -> TrainingResult:
    """Train on a prepared dataset, on the cluster that is there, while nobody else trains the same run."""
    assert config.run_name, "the caller names the run"
    dataset = DatasetInfo.read(dataset_uri)
    assert dataset is not None, "it was just prepared"
    check_held_back(dataset, needed=bool(callbacks))
    uri = tracking.tracking_uri(config)
    tags = {
        "data_fingerprint": dataset.fingerprint,
        "data_license": config.data.license or dataset.license,
        "data_source": dataset.source,
        "sketch_detector": dataset.sketch_detector,
    }
    run = _open_run(config, place, dataset, tags, parent_run_id)
    run_id = run["run_id"]
    # What is made says what it learnt from, so that an evaluation can tell which images it knows.
    settled = replace(
        config,
        data=dataset.named_in(config.data, dataset_uri),
        train=replace(config.train, precision=run["precision"], window_images=run["window_images"]),
    )
    feed, why = feeding.choose(settled, dataset, run["window_images"])
    tags |= {"precision": run["precision"], "tf32": config.train.tf32}
    logger.info("run %s, MLflow run %s at %s", config.run_name, run_id, uri)
    logger.info("data.feed %s: %s", feed, why)

    curve = _reference_curve(settled.changed({"losses.features": run["features"]}), given)
    if curve is None:
        logger.info("nothing tells how runs with these settings usually go; jobs/tune.py --grid seeds would")
    store = CheckpointStore(storage.join(place, "checkpoints"))
    status = "KILLED"
    try:
        outcome = _fit(
            config,
            {
                "landmarks": landmarks,
                "config": settled.to_dict(),
                "dataset": dataset_uri,
                "feed": feed,
                "checkpoints": store.place,
                "tracking_uri": uri,
                "run_id": run_id,
                "features": run["features"],
                "curve": curve.to_json() if curve else None,
            },
            place,
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
            row = storage.retrying(
                lambda: first_held_back(dataset_uri, dataset), config.storage.retry_seconds, logger.warning
            )
            example = examples.stack([examples.evaluation_example(row, config.masks)])
            model_uri = registry.register(
                generator,
                settled,
                run_id,
                weights_sha256=outcome.weights_sha256,
                tags=tags
                | {
                    "features": outcome.features,
                    "images_seen": str(outcome.images_seen),
                    "checkpoint": outcome.checkpoint,
                },
                example=example,
            )
            logger.info("registered %s", model_uri)
        if curve is not None:
            histories = {name: tracking.history(config, run_id, name) for name in curves.NAMES}
            tracking.record(config, run_id, {}, {"reference_curve.svg": curve.draw(histories)})
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
        dataset=dataset_uri,
    )


def _fit(
    config: Config, settings: dict[str, Any], place: str, callbacks: Sequence[UserCallback], lock: locks.Lock
) -> Outcome:
    """Run the workers to their end; where the user interrupts, let them write a checkpoint first."""
    stop = stopping.StopSender()

    def check() -> None:
        lock.check()
        stop.check()

    train = config.train
    if train.wait_for_nodes and not train.min_workers:
        # Else Ray Train reports a failed start, at length, each minute. With a range of numbers it waits quietly, but
        # may ask for a node that was lost, and has to think again.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(24 * 3600))
    # From a URI Ray would find another place where it holds # or %.
    filesystem, path = storage.resolve(storage.join(place, "ray"))
    trainer = _Trainer(
        train_worker,
        train_loop_config=settings | {"stop": stop.flag},
        scaling_config=ray.train.ScalingConfig(
            num_workers=(train.min_workers, train.num_workers) if train.min_workers else train.num_workers,
            use_gpu=train.use_gpu,
            resources_per_worker=feeding.worker_resources(config),
        ),
        run_config=ray.train.RunConfig(
            # Another one each time: under a name that it knows Ray would go on from checkpoints of its own.
            name=f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(
                max_failures=train.max_failures,
                # Of starts, which fail after a while where the cluster lacks what they need, or it is in use.
                controller_failure_limit=-1 if train.wait_for_nodes else 3,
            ),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=train.checkpoints_to_keep),
            callbacks=list(callbacks),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
            worker_runtime_env={"env_vars": training_memory(train.use_gpu)},
        ),
    )
    # What Ray Train starts would otherwise look for a Ray of this machine, and fail where there are several.
    constants.ENV_VARS_TO_PROPAGATE.add("RAY_ADDRESS")
    try:
        with places.variables({"RAY_ADDRESS": ray.get_runtime_context().gcs_address}):
            result = stopping.interruptible(trainer.fit, stop.tell, check)
    except ray.train.ControllerError as error:
        if isinstance(error.controller_failure, WorkerGroupStartupTimeoutError):
            raise ConfigError(
                f"no {_fewest_workers(config)} workers could be started: the cluster has what they need, but "
                "something else uses it; wait until it has ended, or give --train.wait-for-nodes"
            ) from error
        raise
    return Outcome(**result.return_value)


class _Trainer(ray.train.torch.TorchTrainer):  # type: ignore[misc]
    """Leaves Ctrl-C to `stopping.interruptible`; by itself Ray Train aborts its workers at the first one."""

    def _register_sigint_handler(self, controller: ActorHandle) -> None:
        """Register none."""


def _fewest_workers(config: Config) -> int:
    return config.train.min_workers or config.train.num_workers


def check_resources(config: Config) -> None:
    """Refuse a run that Ray would let wait for ever, or whose workers could not use their GPUs.

    Raises:
        ConfigError: the cluster lacks CPUs or GPUs for all workers, and is not said to grow; or torch sees no GPU on a
            node that has one to give.
    """
    needs, fewest = feeding.worker_resources(config), _fewest_workers(config)
    with_feed = config.data.feed == "ray"
    nodes.require(
        {name: each * fewest for name, each in needs.items()} | {"CPU": feeding.fewest_cpus(config, fewest)},
        f"{fewest} workers{' and the feed of each' if with_feed else ''} need",
        "lower --train.num-workers or --train.cpus-per-worker" + (", or give --data.feed local" if with_feed else ""),
        may_wait=config.train.wait_for_nodes,
    )
    if config.train.use_gpu:
        question = functools.partial(check_available, torch.device("cuda"), "give --train.no-use-gpu")
        nodes.ask(question, nodes.able(needs))


def check_held_back(dataset: DatasetInfo, *, needed: bool = False) -> None:
    """Refuse a dataset that was to hold images back and holds none.

    Args:
        dataset: its description.
        needed: refuse also one that holds none back on purpose.

    Raises:
        DataError: there is nothing to measure on.
    """
    if dataset.num_test:
        return
    if dataset.test_fraction > 0 or needed:
        raise DataError(
            f"none of the {dataset.num_images} images of {dataset.source} is held back at a data.test_fraction of "
            f"{dataset.test_fraction:.3g}, so nothing can be measured; prepare them with a larger one, such as "
            "--data.test-fraction 0.2" + ("" if needed else ", or with 0 to train without measuring")
        )
    logger.warning(
        "nothing is held back (data.test_fraction 0): nothing is measured, no checkpoint is kept as the best"
    )


def settle_precision(config: Config) -> Literal["float32", "bfloat16"]:
    """Return the precision for all workers of a run; what is left to `auto` is what all nodes compute natively."""
    if config.train.precision != "auto":
        return config.train.precision
    each = feeding.worker_resources(config)
    fitting = nodes.able(each)
    kind = torch.device("cuda" if config.train.use_gpu else "cpu")
    if fitting == [ray.get_runtime_context().get_node_id()] and not config.train.use_gpu:
        return "bfloat16" if has_bfloat16(kind) else "float32"
    answers = nodes.ask(functools.partial(has_bfloat16, kind), fitting)
    if not answers:  # nodes are yet to come: the first one that takes a worker tells
        task = ray.remote(num_cpus=each["CPU"], num_gpus=each.get("GPU", 0.0), max_retries=3)(has_bfloat16)
        answers = [ray.get(task.remote(kind))]
    return "bfloat16" if all(answers) else "float32"


def check_logins(config: Config) -> None:
    """Refuse a run whose workers could not log in to MLflow as this process can.

    Raises:
        StorageError: the nodes of a cluster that was joined lack what the environment holds here.
    """
    here = places.logins(tracking.tracking_uri(config))
    # Where no node takes a worker yet, those that are there stand for those to come.
    asked = nodes.able(feeding.worker_resources(config)) or nodes.able({})
    answers = nodes.ask(functools.partial(places.present, here), asked) if here else []
    missing = [name for name in here if any(name not in present for present in answers)]
    if missing:
        raise StorageError(
            f"the cluster's nodes have no {' and '.join(missing)}, with which this machine logs in to MLflow; set it "
            "on each of them before `ray start` there"
        )


_RECORD = "run.json"


def read_record(place: str) -> dict[str, Any]:
    """Return what `run.json` knows of the run in a folder.

    Raises:
        StorageError: it cannot be read.
    """
    known: dict[str, Any] = json.loads(storage.read_bytes(storage.join(place, _RECORD)))
    return known


def _open_run(
    config: Config, place: str, dataset: DatasetInfo, tags: dict[str, str], parent_run_id: str | None
) -> dict[str, Any]:
    """Return what `run.json` knows of a run: written when it starts, so that a resume goes on with the same."""
    record = storage.join(place, _RECORD)
    if storage.exists(record):
        known = {"window_images": 0} | read_record(place)  # of a version that knew no windows
        _check_same(config, known, dataset)
        said = tracking.resume_run(config, known["run_id"])
        if "precision" not in known:
            # Of version 0.1.0, whose workers settled `auto` for themselves, and said so in a tag.
            started = known["config"]["train"]["precision"]
            known["precision"] = started if started != "auto" else said.get("precision") or settle_precision(config)
            storage.write_bytes(record, json.dumps(known, indent=2).encode())
            logger.warning(
                "the run was started by a version that did not fix its precision; it goes on in %s, and without TF32 "
                "on GPUs unless --train.tf32 says otherwise",
                known["precision"],
            )
        return known
    assert config.run_name
    values = {
        "run_id": tracking.start_run(config, config.run_name, tags=tags, parent_run_id=parent_run_id),
        "features": settle_features(config.losses.features),
        "precision": settle_precision(config),
        "window_images": dataset.window_images if config.train.window_images is None else config.train.window_images,
        "data_fingerprint": dataset.fingerprint,
        "config": config.to_dict(),
    }
    storage.write_bytes(record, json.dumps(values, indent=2).encode())
    return values


def _check_same(config: Config, known: dict[str, Any], dataset: DatasetInfo) -> None:
    # Settings that did not exist yet when the run was started are as by default; what was left to `auto` has been
    # settled since, and now means just that.
    started = Config.from_dict(known["config"])
    settled = {
        "losses.features": known["features"],
        "train.precision": known.get("precision", started.train.precision),
        "train.window_images": known["window_images"],
    }
    before = started.changed(settled)
    left = configuration.flatten(config.to_dict())
    now = config.changed({name: value for name, value in settled.items() if left[name] in ("auto", None)})
    cure = f"use another --run-name than {config.run_name} or the old setting"
    for name, old, new in configuration.differences(_with_places(before), _with_places(now), _FREE_ON_RESUME):
        raise ConfigError(f"the run was started with {name} = {old}, now it is {new}; {cure}")
    if known["data_fingerprint"] != dataset.fingerprint:
        raise ConfigError(f"the run was started on another dataset than {dataset.source} as prepared now; {cure}")


def _with_places(config: Config) -> Config:
    """Let one file of weights be one, wherever it was named from."""
    features = config.losses.features
    return config if features in ("hed", "random") else config.changed({"losses.features": storage.absolute(features)})
