"""Search for better loss weights; prints arguments for jobs/train.py."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from scfegan_ray import cli
from scfegan_ray.config import Config

logger = logging.getLogger("scfegan_ray.jobs")


def job(config: Config, preset: str) -> dict[str, Any]:
    """Search."""
    from scfegan_ray import tuning
    from scfegan_ray.training import launch

    found = tuning.search(cli.named(config, f"tune-{launch.default_run_name(preset)}"))
    arguments = [preset, *found.best_arguments]
    logger.info("best of %d trials: %s", found.num_trials, found.best_metrics)
    logger.info("train with it: python jobs/train.py %s", shlex.join(arguments))
    return {"best_config": arguments, "num_trials": found.num_trials, "table": found.table}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; see --help."""
    return cli.run_job(__doc__ or "", job, argv)


if __name__ == "__main__":
    sys.exit(main())
