"""Search for loss weights. A trial is training's own launch, with its own Train workers; never a second trainer."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator

from scfegan_ray import locks, nodes, places, storage, tracking
from scfegan_ray.config import Config
from scfegan_ray.data import prepare
from scfegan_ray.data.dataset import DatasetInfo
from scfegan_ray.errors import ConfigError, deliberate_cause
from scfegan_ray.models.features import settle_features
from scfegan_ray.training import checks, launch

logger = logging.getLogger(__name__)

SEARCHED = ("hole", "perceptual", "style", "total_variation", "adversarial", "real_score_penalty", "gradient_penalty")
SPREAD = 5.0
"""Each weight is drawn between a SPREADth of the configured one and SPREAD times it, evenly on a log scale."""

_TRIAL_CPUS = 0.01
_REPORTED = ("objective", "hole_psnr", "perceptual_distance", "images_seen")


@dataclass(frozen=True, kw_only=True, slots=True)
class TuningResult:
    """What a search found.

    Attributes:
        best_config: URI of a config with the best weights, for `jobs/train.py --config`.
        best_metrics: of the best trial's last report.
        num_trials: trials that reported at least once.
        table: URI of a CSV file with one row per trial.
    """

    best_config: str
    best_metrics: dict[str, float]
    num_trials: int
    table: str


def search(
    config: Config, *, session: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
) -> TuningResult:
    """Train several runs with different loss weights and compare them on held-back images.

    The objective is `evaluation.objective_db`, in which no loss weight enters. The first trial has the configured
    weights. Weak trials end early (ASHA).

    Args:
        config: `run_name` must be set; `train.images` is the length of a full trial.
        session: Ray must run within it; default: it runs already.

    Raises:
        BusyError: another process does the same search.
        ConfigError: not even one trial fits the cluster.
        DataError: there is nothing to train on.
        StorageError: storage or tracking cannot be used.
    """
    config = places.settle(config)
    assert config.run_name, "the caller names the search"
    place = storage.join(storage.absolute(config.storage.path), config.run_name)
    # Trials are compared, so that none may choose for itself what is left to `auto`.
    losses = replace(config.losses, features=settle_features(config.losses.features))
    config = replace(config, losses=losses, train=replace(config.train, checkpoints_to_keep=1))
    checks.before_training(config, place, num_runs=config.tune.num_trials, registers=False)
    with (
        locks.held(place, f"search {config.run_name}"),
        nodes.lasting(functools.partial(_cluster, config, session)) as cluster,
    ):
        # Trials share one dataset, made before they start, so that none waits for CPUs that another one holds.
        prepared = prepare.ensure_prepared(config, session=cluster)
        with cluster() as at_once:
            return _search(config, place, prepared, at_once)


@contextlib.contextmanager
def _cluster(config: Config, session: Callable[[], contextlib.AbstractContextManager[object]]) -> Iterator[int]:
    """Enter a session of Ray whose cluster takes trials; give how many at a time."""
    with session():
        launch.check_logins(config)
        yield _trials_at_once(config)


def _search(config: Config, place: str, prepared: str, at_once: int) -> TuningResult:
    """Search on a prepared dataset, on the cluster that is there."""
    assert config.run_name, "the caller names the search"
    dataset = DatasetInfo.read(prepared)
    assert dataset is not None, "it was just prepared"
    launch.check_held_back(dataset, needed=True)
    parent = tracking.start_run(config, config.run_name, tags={"kind": "search"})
    every = max(config.train.batch_size, config.train.images // config.tune.reports)
    trial_config = replace(
        config,
        data=replace(config.data, prepared=prepared),
        train=replace(config.train, precision=launch.settle_precision(config), checkpoint_every_images=every),
        storage=replace(config.storage, path=place),
        tracking=replace(config.tracking, uri=tracking.tracking_uri(config)),
    )
    logger.info("%d trials, %d at a time, under %s", config.tune.num_trials, at_once, place)
    filesystem, path = storage.resolve(place)
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(_trial, config=trial_config.to_dict(), parent_run_id=parent), {"CPU": _TRIAL_CPUS}
        ),
        param_space={"losses": {name: _around(getattr(config.losses, name)) for name in SEARCHED}},
        tune_config=tune.TuneConfig(
            metric="objective",
            mode="max",
            num_samples=config.tune.num_trials,
            # `max_concurrent_trials` beside it would be ignored: this generator limits itself.
            search_alg=BasicVariantGenerator(
                max_concurrent=at_once,
                points_to_evaluate=[{"losses": {name: getattr(config.losses, name) for name in SEARCHED}}],
                random_state=config.seed,
            ),
            scheduler=ASHAScheduler(
                time_attr="images_seen",
                # One more than a trial's length: a trial that got there ends by itself and says so to MLflow.
                max_t=config.train.images + 1,
                grace_period=every,
                reduction_factor=config.tune.reduction_factor,
            ),
            trial_name_creator=_short_name,
            trial_dirname_creator=_short_name,
        ),
        # From a URI Ray would find another place where it holds # or %.
        run_config=tune.RunConfig(name="tune", storage_path=path, storage_filesystem=filesystem, verbose=0),
    )
    status = "FAILED"
    failed: set[str] = set()
    try:
        results = tuner.fit()
        rows = [_row(result) for result in results]
        for result in results:
            if result.error:
                failed.add(Path(result.path).name)
                logger.warning("a trial failed: %s", deliberate_cause(result.error) or result.error)
        finished = [row for row in rows if math.isfinite(row["objective"])]
        if not finished:
            first = next((result.error for result in results if result.error), None)
            raise deliberate_cause(first) or ConfigError(f"no trial reported anything: {first}")
        best = max(finished, key=lambda row: row["objective"])
        weights = {name: best[name] for name in SEARCHED}
        winner = replace(config, run_name=None, losses=replace(config.losses, **weights))
        best_config = storage.join(place, "best.json")
        storage.write_bytes(best_config, json.dumps(winner.to_dict(), indent=2).encode())
        table = storage.join(place, "trials.csv")
        storage.write_bytes(table, _csv(sorted(rows, key=lambda row: row["objective"], reverse=True)))
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        # Tune ends a weak trial by killing its processes, which then cannot end their run.
        tracking.end_children(config, parent, failed)
        tracking.end_run(config, parent, status)
    return TuningResult(
        best_config=best_config,
        best_metrics={name: best[name] for name in _REPORTED},
        num_trials=len(finished),
        table=table,
    )


def _trials_at_once(config: Config) -> int:
    """Return how many trials run side by side, so that all of them, with all their workers, fit the cluster."""
    launch.check_resources(config)
    resources = ray.cluster_resources()
    cpus = config.train.num_workers * config.train.cpus_per_worker + _TRIAL_CPUS
    fitting = int(resources.get("CPU", 0.0) // cpus)
    if config.train.use_gpu:
        fitting = min(fitting, int(resources.get("GPU", 0.0) // config.train.num_workers))
    if fitting < 1 and not config.train.wait_for_nodes:
        raise ConfigError(
            f"a trial needs {cpus:g} CPUs, the cluster has {resources.get('CPU', 0.0):g}; "
            "lower --train.num-workers or --train.cpus-per-worker"
        )
    return min(max(fitting, 1), config.tune.max_concurrent_trials or fitting or 1, config.tune.num_trials)


def _around(weight: float) -> Any:
    return tune.loguniform(weight / SPREAD, weight * SPREAD) if weight > 0 else weight


def _short_name(trial: Any) -> str:
    return _run_name(trial.trial_id)


def _run_name(trial_id: str) -> str:
    """Name a trial's run, and its folder at Tune."""
    return f"trial-{trial_id}"


def _trial(parameters: dict[str, Any], config: dict[str, Any], parent_run_id: str) -> None:
    """Run in a Tune worker: launch one training."""
    base = Config.from_dict(config)
    trial = replace(
        base,
        run_name=_run_name(tune.get_context().get_trial_id()),
        losses=replace(base.losses, **parameters["losses"]),
    )
    launch.train(trial, register=False, parent_run_id=parent_run_id, callbacks=[TuneReportCallback()])


def _row(result: Any) -> dict[str, Any]:
    metrics = result.metrics or {}
    weights = (result.config or {}).get("losses", {})
    return {name: metrics.get(name, float("-inf") if name == "objective" else "") for name in _REPORTED} | {
        name: weights.get(name, "") for name in SEARCHED
    }


def _csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
