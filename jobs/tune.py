"""Search for better loss weights; writes a config for jobs/train.py."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from scfegan_ray import cli

logger = logging.getLogger("scfegan_ray.jobs")


def job(arguments: cli.Arguments) -> dict[str, Any]:
    """Search."""
    from scfegan_ray import tuning
    from scfegan_ray.training import launch

    config = cli.named(arguments.config, f"tune-{launch.default_run_name(arguments.preset)}")
    found = tuning.search(config, session=cli.ray_session)
    logger.info("best of %d trials: %s", found.num_trials, found.best_metrics)
    logger.info("train with it: python jobs/train.py --config %s", shlex.quote(found.best_config))
    return {"best_config": found.best_config, "num_trials": found.num_trials, "table": found.table}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; see --help."""
    return cli.run_job(__doc__ or "", cli.Arguments, job, argv)


if __name__ == "__main__":
    sys.exit(main())
