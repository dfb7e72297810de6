"""Promote a version: move an alias to it, if it is better than the one that the alias names now.

A refusal is an answer: it says why, and the job ends with 0. Without images it takes those that the version held back
of what it learnt from.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scfegan_ray import cli


@dataclass(frozen=True)
class Arguments(cli.MeasuringArguments):
    """Arguments of this job."""

    model: str = ""
    """Version to promote: models:/NAME/VERSION."""
    alias: str = "champion"
    """To be moved."""
    roll_back: bool = False
    """Move the alias back to the version that its present one replaced, and measure nothing."""


def job(arguments: Arguments) -> dict[str, Any]:
    """Promote, or roll back."""
    from scfegan_ray import promotion

    if arguments.roll_back:
        found = promotion.roll_back(arguments.config, alias=arguments.alias)
    else:
        found = promotion.promote(
            arguments.config,
            arguments.model,
            arguments.measuring,
            alias=arguments.alias,
            session=cli.ray_session,
        )
    return {name: getattr(found, name) for name in ("model_uri", "alias", "promoted", "reason", "report")}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; see --help."""
    return cli.run_job(__doc__ or "", Arguments, job, argv)


if __name__ == "__main__":
    sys.exit(main())
