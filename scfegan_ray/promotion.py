"""Promotion with a gate: an alias of the registry moves only to a version that is measurably better.

The candidate and the version that the alias names now are evaluated side by side, on the same images and holes. The
alias moves where the candidate wins on every one of `MUST_WIN`, by more than the difference's interval, and loses on
none of `GUARDS`. Where the alias names nothing yet, the references stand in: the candidate must win on `FIRST_MUST_WIN`
over what needs no network, and lose to none of it on `FIRST_GUARDS`.

Two promotions at once cannot both win: the alias is moved under a lock in storage, and only from the version that the
candidate was held against. It is moved last, so that whatever fails before leaves the old version in its place.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from scfegan_ray import card, locks, places, registry, storage
from scfegan_ray.config import Config
from scfegan_ray.errors import BusyError, ConfigError
from scfegan_ray.evaluation import run
from scfegan_ray.evaluation.measure import METRICS
from scfegan_ray.evaluation.options import AS_USUAL, MeasuringConfig
from scfegan_ray.evaluation.references import REFERENCES
from scfegan_ray.evaluation.summary import PHOTOGRAPH
from scfegan_ray.serving import loading

logger = logging.getLogger(__name__)


MUST_WIN = ("hole_psnr", "hole_flip")
GUARDS = ("sketch_f1", "foreign_sketch_f1", "recolored_delta_e", "seam", "seam_step", "identity", "outside")
FIRST_MUST_WIN = ("hole_psnr", "sketch_f1")
FIRST_GUARDS = ("ssim", "seam", "identity")

_REPLACED = "replaced"


@dataclass(frozen=True, kw_only=True, slots=True)
class Promotion:
    """What came of it.

    Attributes:
        model_uri: the version that was put forward, or that the alias was moved back to.
        alias: that was to be moved.
        promoted: it was.
        reason: why, or why not.
        report: URI of the evaluation's page; None where nothing was measured.
    """

    model_uri: str
    alias: str
    promoted: bool
    reason: str
    report: str | None = None


def promote(
    config: Config,
    model: str,
    measuring: MeasuringConfig = AS_USUAL,
    *,
    alias: str = registry.CHAMPION,
    session: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> Promotion:
    """Move an alias to a version, if it is better than the one that the alias names.

    Args:
        config: as `evaluation.run.evaluate` takes it: it names images that the version has not learnt from.
        model: `models:/NAME/VERSION`.
        measuring: as `evaluate` takes it.
        alias: to be moved.
        session: Ray must run within it; entered only where something is left to measure.

    Raises:
        ConfigError: the model is no version of the registry.
        BusyError: the alias was moved by somebody else meanwhile.
        ModelError, DataError, StorageError: as `evaluate`.
    """
    config = places.settle(config)
    if not model.startswith("models:"):
        raise ConfigError(
            f"{model!r} is no version of a registry; give models:/NAME/VERSION, as jobs/train.py prints it"
        )
    uri = registry.version_uri(config, model)
    now = registry.version_of_alias(config, registry.parts(uri)[0], alias)
    if now == uri:
        return Promotion(model_uri=uri, alias=alias, promoted=False, reason=f"{uri} is the {alias} already")
    models = [uri] if now is None else [uri, now]
    found = run.evaluate(config, models, measuring, session=session)
    result = json.loads(storage.read_bytes(found.result))
    reasons = verdict(result, loading.name_of(uri), None if now is None else loading.name_of(now))
    if reasons:
        return Promotion(model_uri=uri, alias=alias, promoted=False, reason="; ".join(reasons), report=found.report)
    tags = {
        _REPLACED: "" if now is None else now,
        "promoted_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "promoted_by": f"{found.protocol}, images {result['images']['fingerprint']}",
        "evaluation_run": result["tracking"]["run_id"],
    }
    _move(config, uri, alias, before=now, tags=tags, description=card.write(config, uri, result))
    against = "the references" if now is None else now
    return Promotion(
        model_uri=uri,
        alias=alias,
        promoted=True,
        reason=f"better than {against} on {', '.join(MUST_WIN if now else FIRST_MUST_WIN)}, and worse on no guard",
        report=found.report,
    )


def roll_back(config: Config, *, alias: str = registry.CHAMPION) -> Promotion:
    """Move an alias back to the version that its present one replaced.

    Args:
        config: names the registered model.
        alias: to be moved.

    Raises:
        ConfigError: the alias names nothing, or nothing was replaced.
        BusyError: the alias was moved by somebody else meanwhile.
    """
    config = places.settle(config)
    now = registry.version_of_alias(config, config.tracking.model_name, alias)
    if now is None:
        raise ConfigError(f"{config.tracking.model_name} has no {alias} that could be rolled back")
    before = registry.tags_of(config, now).get(_REPLACED)
    if not before:
        raise ConfigError(f"{now} replaced no other {alias}; delete the alias in MLflow, or promote another version")
    _move(config, before, alias, before=now, tags={}, description=None)
    return Promotion(model_uri=before, alias=alias, promoted=True, reason=f"rolled back from {now}")


def verdict(result: Mapping[str, Any], candidate: str, champion: str | None) -> list[str]:
    """Say why a candidate must not be promoted; nothing where it may be.

    Args:
        result: of their evaluation, as `result.json` has it.
        candidate: name of its row.
        champion: name of the row that it must beat; None where there is none.
    """
    seen = result["models"][candidate]["trained_on"]
    reasons = []
    if seen:
        reasons.append(
            f"{candidate} was trained on {seen} of these images; give images that it has not seen, as --data.source"
        )
    rivals = [champion] if champion else [name for name in REFERENCES if name != PHOTOGRAPH]
    must_win, guards = (MUST_WIN, GUARDS) if champion else (FIRST_MUST_WIN, FIRST_GUARDS)
    differences = {(one["first"], one["second"]): one["metrics"] for one in result["differences"]}
    for rival in rivals:
        metrics = differences[candidate, rival]
        for name in (*must_win, *guards):
            if name not in metrics:
                continue
            low, high = metrics[name]["low"], metrics[name]["high"]
            said = METRICS[name].verdict(low, high)
            wins, loses = said == "better", said == "worse"
            # Without a champion color that is put where it was painted need not be beaten, but lines must.
            if (name in must_win and not wins and (champion or not _is_given(rival, name))) or loses:
                reasons.append(
                    f"{name} {'is worse than' if loses else 'does not beat'} {rival}'s: "
                    f"{metrics[name]['mean']:+.3g} ({low:+.3g} to {high:+.3g})"
                )
    return reasons


def _is_given(rival: str, metric: str) -> bool:
    """Tell whether a reference is handed what the metric asks for, as paint is most of the photograph's color."""
    return rival.startswith("painted_color") and metric == "hole_psnr"


def _move(
    config: Config, uri: str, alias: str, *, before: str | None, tags: Mapping[str, str], description: str | None
) -> None:
    """Move an alias, unless it names another version than before.

    Raises:
        BusyError: it does, or somebody else moves it now.
    """
    name, _ = registry.parts(uri)
    place = storage.join(storage.absolute(config.storage.path), "promotions", name)
    with locks.held(place, f"the {alias} of {name}"):
        now = registry.version_of_alias(config, name, alias)
        if now != before:
            raise BusyError(
                f"the {alias} of {name} is {now} now, no longer {before}: somebody else moved it; run it again"
            )
        if tags:
            registry.tag_version(config, uri, tags)
        if description is not None:
            registry.describe_version(config, uri, description)
        registry.set_alias(config, uri, alias)
    logger.info("%s of %s is %s now", alias, name, uri)
