"""Search for better loss weights, and write a config for jobs/train.py; or train and evaluate variants side by side.

The same --run-name goes on where it was stopped.
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from scfegan_ray import cli

logger = logging.getLogger("scfegan_ray.jobs")


@dataclass(frozen=True)
class Arguments(cli.MeasuringArguments):
    """Arguments of this job."""

    grid: str | None = None
    """Search nothing, but train each of these variants to its end and evaluate them side by side: ablations,
    adversarial, border, seeds or strokes; or a JSON file, {"NAME": {"losses.hole": 12}, …}."""


def job(arguments: Arguments) -> dict[str, Any]:
    """Search, or compare."""
    from scfegan_ray import grids
    from scfegan_ray.evaluation import run
    from scfegan_ray.training import launch
    from scfegan_ray.tuning import search

    variants = grids.find(arguments.grid) if arguments.grid else None
    config = cli.named(arguments.config, f"tune-{launch.default_run_name(arguments.preset)}")
    found = search.search(config, variants=variants, session=cli.ray_session)
    logger.info("best of %d trials: %s", found.num_trials, found.best_metrics)
    logger.info("train with it: python jobs/train.py --config %s", shlex.quote(found.best_config))
    answer = {"best_config": found.best_config, "num_trials": found.num_trials, "table": found.table}
    if variants is None:
        return answer
    evaluated = run.evaluate(
        replace(config, data=replace(config.data, prepared=found.dataset)),
        found.runs,
        arguments.measuring,
        session=cli.ray_session,
    )
    return answer | {"protocol": evaluated.protocol, "report": evaluated.report, "result": evaluated.result}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; see --help."""
    return cli.run_job(__doc__ or "", Arguments, job, argv)


if __name__ == "__main__":
    sys.exit(main())
