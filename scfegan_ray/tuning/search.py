"""Train several configs and compare them. A trial is training's own launch, with its own workers; no second trainer.

Either a search draws weights of the losses and ends weak trials early, or each of some named variants is trained to its
end. Both go on under the same run name where they were stopped.

| path under `<storage.path>/<run name>` | holds |
| --- | --- |
| `search.json` | what is compared, and MLflow's run; written when it starts |
| `<trial>` | a trial's run, as of any training |
| `tune`, `halving.pkl` | what Ray Tune goes on from: pickles, to be trusted as far as who can write there |
| `best.json` | the best config, for `jobs/train.py --config` |
| `trials.csv` | a row per trial, the best first |
| `reference_curve.json` | where variants differ by their seeds alone: how such runs usually go |
"""

from __future__ import annotations

import contextlib
import csv
import functools
import importlib.util
import io
import json
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.basic_variant import BasicVariantGenerator

from scfegan_ray import config as configuration
from scfegan_ray import locks, nodes, places, storage, tracking
from scfegan_ray.config import Config
from scfegan_ray.data import prepare
from scfegan_ray.data.dataset import DatasetInfo
from scfegan_ray.errors import ConfigError, deliberate_cause
from scfegan_ray.grids import Variants
from scfegan_ray.models.features import settle_features
from scfegan_ray.training import checks, curves, feeding, launch
from scfegan_ray.training.curves import ReferenceCurve
from scfegan_ray.tuning import pictures
from scfegan_ray.tuning.halving import RememberingASHA, first_scores

logger = logging.getLogger(__name__)

SEARCHED = tuple(
    f"losses.{name}"
    for name in (
        "hole", "border", "perceptual", "style", "total_variation", "adversarial", "real_score_penalty",
        "gradient_penalty",
    )
)  # fmt: skip
SPREAD = 5.0
"""Each weight is drawn between a SPREADth of the configured one and SPREAD times it, evenly on a log scale."""

_TRIAL, _TRIAL_CPUS = "trial-", 0.01
_REPORTED = ("objective_db", "hole_psnr", "hole_ssim", "seam", "sketch_f1", "images_seen")
_RECORD, _HALVING, _BEST, _TABLE = "search.json", "halving.pkl", "best.json", "trials.csv"
_FREE_WHEN_GOING_ON = (
    "run_name", "storage", "tracking", "data.feed", "tune.max_concurrent_trials", "train.loader_processes",
    "train.threads_per_worker", "train.max_failures", "train.wait_for_nodes",
)  # fmt: skip
_CURVE = "reference_curve.json"
_OF_CURVES = ("masks", "model", "losses", "optimization", "train", "sentinel", "evaluation")
_SECONDS_BETWEEN_SNAPSHOTS = "5"
"""Of Tune's state: less than a trial takes to begin, so that none is forgotten that has left anything."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TuningResult:
    """What was found.

    Attributes:
        best_config: URI of the best config, for `jobs/train.py --config`.
        best_metrics: of the best trial's last report.
        num_trials: trials that reported at least once.
        table: URI of a CSV file with one row per trial, the best first.
        runs: URIs of the trials' runs, in the same order.
        dataset: URI of the prepared dataset that they shared.
    """

    best_config: str
    best_metrics: dict[str, float]
    num_trials: int
    table: str
    runs: list[str]
    dataset: str


def search(
    config: Config,
    *,
    variants: Variants | None = None,
    session: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> TuningResult:
    """Train several runs with different settings and compare them on held-back images.

    The objective is `held_back.objective_db`, which shares neither a network nor a term with the losses. Without
    variants the first trial has the configured weights, `tune.sampler` draws those of the others, and weak trials end
    early (ASHA). With variants each is trained to its end.

    Args:
        config: `run_name` must be set, and names what goes on; `train.images` is the length of a full trial.
        variants: what to train instead of a search's trials; data are the same for all.
        session: Ray must run within it; default: it runs already.

    Raises:
        BusyError: another process does the same search.
        ConfigError: not even one trial fits the cluster; a variant is refused; or what is to go on was started with
            other settings.
        DataError: there is nothing to train on.
        StorageError: storage or tracking cannot be used.
        KeyboardInterrupt: the user ended it; the same run name goes on.
    """
    config = places.settle(config)
    assert config.run_name, "the caller names the search"
    place = storage.join(storage.absolute(config.storage.path), config.run_name)
    # Trials are compared, so that none may choose for itself what is left to `auto`.
    losses = replace(config.losses, features=settle_features(config.losses.features))
    config = replace(config, losses=losses, train=replace(config.train, checkpoints_to_keep=1))
    _check_sampler(config)
    for name, settings in (variants or {}).items():
        _check_variant(config, name, settings)
    num_trials = len(variants) if variants else config.tune.num_trials
    checks.before_training(config, place, num_runs=num_trials, registers=False)
    _begun(config, variants, place)
    with (
        locks.held(place, f"search {config.run_name}"),
        nodes.lasting(functools.partial(_cluster, config, num_trials, session)) as cluster,
    ):
        # Trials share one dataset, made before they start, so that none waits for CPUs that another one holds.
        prepared = prepare.ensure_prepared(config, session=cluster)
        with cluster() as at_once:
            return _search(config, variants, place, prepared, num_trials, at_once)


def _check_sampler(config: Config) -> None:
    if config.tune.sampler == "optuna" and importlib.util.find_spec("optuna") is None:
        raise ConfigError("--tune.sampler optuna needs Optuna: pip install 'scfegan-ray[optuna]'")


def _check_variant(config: Config, name: str, settings: Mapping[str, Any]) -> None:
    if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        raise ConfigError(f"the variant {name!r} has no usable name; use letters, digits, dot, dash and underscore")
    apart = [one for one in settings if one.partition(".")[0] in ("data", "storage", "tracking", "tune", "run_name")]
    if apart:
        raise ConfigError(f"the variant {name} changes {apart[0]}, which is the same for all; leave it out")
    try:
        config.changed(settings)
    except ConfigError as error:
        raise ConfigError(f"the variant {name}: {error}") from None


@contextlib.contextmanager
def _cluster(
    config: Config, num_trials: int, session: Callable[[], contextlib.AbstractContextManager[object]]
) -> Iterator[int]:
    """Enter a session of Ray whose cluster takes trials; give how many at a time."""
    with session():
        launch.check_logins(config)
        yield min(_trials_at_once(config), num_trials)


def _search(
    config: Config, variants: Variants | None, place: str, prepared: str, num_trials: int, at_once: int
) -> TuningResult:
    """Search on a prepared dataset, on the cluster that is there."""
    dataset = DatasetInfo.read(prepared)
    assert dataset is not None, "it was just prepared"
    launch.check_held_back(dataset, needed=True)
    parent = _open(config, variants, place)
    every = max(config.train.batch_size, config.train.images // config.tune.reports)
    trial_config = replace(
        config,
        data=dataset.named_in(config.data, prepared),
        # When a search goes on, all that failed before begin at once, whatever limits it: they wait for each other.
        train=replace(
            config.train,
            precision=launch.settle_precision(config),
            checkpoint_every_images=every,
            wait_for_nodes=True,
        ),
        tune=replace(config.tune, max_concurrent_trials=at_once),
        storage=replace(config.storage, path=place),
        tracking=replace(config.tracking, uri=tracking.tracking_uri(config)),
    )
    logger.info("%d trials, %d at a time, under %s", num_trials, at_once, place)
    status = "FAILED"
    failed: set[str] = set()
    try:
        with places.variables({"TUNE_GLOBAL_CHECKPOINT_S": _SECONDS_BETWEEN_SNAPSHOTS}):
            results = _tuner(trial_config, variants, place, parent, at_once, every).fit()
        if results.num_terminated + results.num_errors < num_trials:
            raise KeyboardInterrupt  # which Tune takes for itself, and keeps what it has
        for result in results:
            if result.error:
                failed.add(Path(result.path).name)
                logger.warning("a trial failed: %s", deliberate_cause(result.error) or result.error)
        found = _conclude(config, place, prepared, list(results), parent)
        if variants and failed:
            names = ", ".join(sorted(failed))
            raise ConfigError(f"{names} of {num_trials} variants failed, see above; the same command tries them again")
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        logger.warning("the same command with --run-name %s goes on", config.run_name)
        raise
    finally:
        # Tune ends a weak trial by killing its processes, which then cannot end their run.
        tracking.end_children(config, parent, failed)
        tracking.end_run(config, parent, status)
    return found


def _open(config: Config, variants: Variants | None, place: str) -> str:
    """Return MLflow's run: a new one, or that of the search that is to go on."""
    assert config.run_name, "the caller names the search"
    known = _begun(config, variants, place)
    if known is not None:
        tracking.resume_run(config, known)
        return known
    run_id = tracking.start_run(config, config.run_name, tags={"kind": "search"})
    values = {"run_id": run_id, "config": config.to_dict(), "variants": _plain(variants)}
    storage.write_bytes(storage.join(place, _RECORD), json.dumps(values, indent=2).encode())
    return run_id


def _begun(config: Config, variants: Variants | None, place: str) -> str | None:
    """Return MLflow's run of a search that was begun; None where none was.

    Raises:
        ConfigError: it was begun with other settings.
    """
    record = storage.join(place, _RECORD)
    if not storage.exists(record):
        return None
    known = json.loads(storage.read_bytes(record))
    cure = f"use another --run-name than {config.run_name} or the old setting"
    started = Config.from_dict(known["config"])
    for name, before, now in configuration.differences(started, config, free=_FREE_WHEN_GOING_ON):
        raise ConfigError(f"the search was started with {name} = {before}, now it is {now}; {cure}")
    if known["variants"] != _plain(variants):
        raise ConfigError(f"the search was started with other variants; {cure}")
    run_id: str = known["run_id"]
    return run_id


def _plain(variants: Variants | None) -> dict[str, dict[str, Any]]:
    """Return variants as JSON gives them back."""
    plain: dict[str, dict[str, Any]] = json.loads(
        json.dumps({name: dict(settings) for name, settings in (variants or {}).items()})
    )
    return plain


def _tuner(
    trial_config: Config, variants: Variants | None, place: str, parent: str, at_once: int, every: int
) -> tune.Tuner:
    """Return what trains trials: those of a new search, or those that lack of one that was begun."""
    filesystem, path = storage.resolve(place)
    trainable = tune.with_resources(
        tune.with_parameters(_trial, config=trial_config.to_dict(), parent_run_id=parent), {"CPU": _TRIAL_CPUS}
    )
    begun = f"{path}/tune"
    if tune.Tuner.can_restore(begun, storage_filesystem=filesystem):
        logger.info("going on with the trials that are there")
        return tune.Tuner.restore(
            begun, trainable, resume_unfinished=True, resume_errored=True, storage_filesystem=filesystem
        )
    weights = _weights(trial_config)
    return tune.Tuner(
        trainable,
        param_space=_space(variants, weights),
        tune_config=tune.TuneConfig(
            metric="objective_db",
            mode="max",
            num_samples=1 if variants else trial_config.tune.num_trials,
            search_alg=_sampler(trial_config, [] if variants else [weights], at_once),
            scheduler=None
            if variants
            else RememberingASHA(
                storage.join(place, _HALVING),
                time_attr="images_seen",
                # One more than a trial's length: a trial that got there ends by itself and says so to MLflow.
                max_t=trial_config.train.images + 1,
                grace_period=every,
                reduction_factor=trial_config.tune.reduction_factor,
            ),
            trial_name_creator=_short_name,
            trial_dirname_creator=_short_name,
        ),
        # From a URI Ray would find another place where it holds # or %.
        run_config=tune.RunConfig(name="tune", storage_path=path, storage_filesystem=filesystem, verbose=0),
    )


def _weights(config: Config) -> dict[str, float]:
    """Return the configured weights that a search varies: those that are not off."""
    settings = configuration.flatten(config.to_dict())
    return {name: settings[name] for name in SEARCHED if settings[name] > 0}


def _space(variants: Variants | None, weights: Mapping[str, float]) -> dict[str, Any]:
    if variants:
        return {"variant": tune.grid_search([{"name": n, "settings": dict(s)} for n, s in variants.items()])}
    return {name: tune.loguniform(weight / SPREAD, weight * SPREAD) for name, weight in weights.items()}


def _sampler(config: Config, first: Sequence[dict[str, float]], at_once: int) -> Any:
    """Return what draws trials, so many at a time, the given ones first."""
    if first and config.tune.sampler == "optuna":
        from ray.tune.search.optuna import OptunaSearch

        logging.getLogger("optuna").setLevel(logging.WARNING)
        return ConcurrencyLimiter(OptunaSearch(points_to_evaluate=list(first), seed=config.seed), at_once)
    # `max_concurrent_trials` beside it would be ignored: this generator limits itself.
    return BasicVariantGenerator(
        max_concurrent=at_once, points_to_evaluate=list(first) or None, random_state=config.seed
    )


def _conclude(config: Config, place: str, prepared: str, results: Sequence[Any], parent: str) -> TuningResult:
    """Choose the best; write and record what was found."""
    rows = sorted((_row(result) for result in results), key=lambda row: row["objective_db"], reverse=True)
    finished = [row for row in rows if math.isfinite(row["objective_db"])]
    if not finished:
        first = next((result.error for result in results if result.error), None)
        raise deliberate_cause(first) or ConfigError(f"no trial reported anything: {first}")
    best = finished[0]
    winner = replace(config.changed(best["settings"]), run_name=None)
    files = {
        _BEST: json.dumps(winner.to_dict(), indent=2).encode(),
        _TABLE: _csv(rows),
    }
    if "variant" not in (results[0].config or {}):
        files |= _draw(finished, first_scores(storage.join(place, _HALVING)))
    elif len(finished) > 1 and all(row["settings"].keys() == {"seed"} for row in finished):
        files[_CURVE] = _curve(config, place, [row["trial"] for row in finished]).to_json()
    for name in {_BEST, _TABLE, _CURVE} & files.keys():
        storage.write_bytes(storage.join(place, name), files[name])
    metrics = {name: float(best[name]) for name in _REPORTED if best[name] != ""}
    tracking.record(config, parent, {f"best/{name}": value for name, value in metrics.items()}, files)
    return TuningResult(
        best_config=storage.join(place, _BEST),
        best_metrics=metrics,
        num_trials=len(finished),
        table=storage.join(place, _TABLE),
        runs=[storage.join(place, row["trial"]) for row in finished],
        dataset=prepared,
    )


def _curve(config: Config, place: str, runs: Sequence[str]) -> ReferenceCurve:
    """Join runs that differ by their seeds to a reference curve."""
    records = [launch.read_record(storage.join(place, run)) for run in runs]
    histories = [
        {name: tracking.history(config, record["run_id"], name) for name in curves.NAMES} for record in records
    ]
    data = Config.from_dict(records[0]["config"]).data  # as the dataset says
    # Places, and how many trials there were, are nobody else's business.
    plain = replace(Config(), data=data, **{name: getattr(config, name) for name in _OF_CURVES})
    return ReferenceCurve.of(plain.changed({"data.prepared": None, "train.reference_curve": None}), histories)


def _draw(rows: Sequence[Mapping[str, Any]], first: Mapping[str, float]) -> dict[str, bytes]:
    """Draw the trials of a search; returns pictures by name.

    Args:
        rows: of trials that reported.
        first: what each reached when all were equally far, by its id.
    """
    weights = {name: [row["settings"][name] for row in rows] for name in rows[0]["settings"]}
    drawn = {"parallel_coordinates.svg": pictures.draw_coordinates(weights, [row["objective_db"] for row in rows])}
    scores = [first.get(row["trial"].removeprefix(_TRIAL), math.nan) for row in rows]
    importance = pictures.importance(weights, scores)
    return drawn | ({"importance.svg": pictures.draw_importance(importance, len(rows))} if importance else {})


def _trials_at_once(config: Config) -> int:
    """Return how many trials run side by side, so that all of them, with all their workers, fit the cluster."""
    launch.check_resources(config)
    resources = ray.cluster_resources()
    cpus = feeding.fewest_cpus(config, config.train.num_workers) + _TRIAL_CPUS
    fitting = int(resources.get("CPU", 0.0) // cpus)
    if config.train.use_gpu:
        fitting = min(fitting, int(resources.get("GPU", 0.0) // config.train.num_workers))
    if fitting < 1 and not config.train.wait_for_nodes:
        raise ConfigError(
            f"a trial needs {cpus:g} CPUs, the cluster has {resources.get('CPU', 0.0):g}; "
            "lower --train.num-workers or --train.cpus-per-worker"
        )
    return min(max(fitting, 1), config.tune.max_concurrent_trials or fitting or 1)


def _short_name(trial: Any) -> str:
    return _run_name(trial.config, trial.trial_id)


def _run_name(parameters: Mapping[str, Any], trial_id: str) -> str:
    """Name a trial's run, and its folder at Tune."""
    return str(parameters["variant"]["name"]) if "variant" in parameters else f"{_TRIAL}{trial_id}"


def _settings(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a trial changes, by dotted name."""
    return dict(parameters["variant"]["settings"] if "variant" in parameters else parameters)


def _trial(parameters: dict[str, Any], config: dict[str, Any], parent_run_id: str) -> None:
    """Run in a Tune worker: launch one training, or go on with it."""
    trial = replace(
        Config.from_dict(config).changed(_settings(parameters)),
        run_name=_run_name(parameters, tune.get_context().get_trial_id()),
    )
    launch.train(trial, register=False, parent_run_id=parent_run_id, callbacks=[TuneReportCallback()])


def _row(result: Any) -> dict[str, Any]:
    metrics = result.metrics or {}
    return {"trial": Path(result.path).name, "settings": _settings(result.config or {})} | {
        name: metrics.get(name, float("-inf") if name == "objective_db" else "") for name in _REPORTED
    }


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    names = list(dict.fromkeys(name for row in rows for name in row["settings"]))
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=["trial", *_REPORTED, *names], restval="", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(dict(row) | row["settings"] for row in rows)
    return text.getvalue().encode()
