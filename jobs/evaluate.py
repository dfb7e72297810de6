"""Measure how good models are: whether they look right, and whether they obey strokes.

Without images it takes those that the first model held back of what it learnt from. The same command goes on with an
evaluation that was stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from scfegan_ray import cli


@dataclass(frozen=True)
class Arguments(cli.MeasuringArguments):
    """Arguments of this job."""

    model: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A model to measure: models:/NAME/VERSION or models:/NAME@ALIAS, a run, or a checkpoint. Give it several times for
    models side by side."""
    max_images: int | None = None
    """Measure no more images than these, the first ones by name. Default: all."""
    benchmark: bool = False
    """Evaluate nothing, but time each measurement, and a pass of the configured network, on one thread."""


def job(arguments: Arguments) -> dict[str, Any]:
    """Evaluate."""
    if arguments.benchmark:
        from scfegan_ray.benchmarks import evaluation

        return evaluation.run(arguments.config, arguments.measuring)
    from scfegan_ray.evaluation import run

    found = run.evaluate(
        arguments.config,
        arguments.model,
        arguments.measuring,
        max_images=arguments.max_images,
        session=cli.ray_session,
    )
    return {"protocol": found.protocol, "metrics": found.metrics, "report": found.report, "result": found.result}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; see --help."""
    return cli.run_job(__doc__ or "", Arguments, job, argv)


if __name__ == "__main__":
    sys.exit(main())
