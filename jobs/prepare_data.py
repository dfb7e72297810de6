"""Make a prepared dataset from raw photographs: sketch, color map, hair region and eye positions of each face.

The same command goes on with what an interrupted one left, and does nothing where all is done.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scfegan_ray import cli


@dataclass(frozen=True)
class Arguments(cli.Arguments):
    """Arguments of this job."""

    inspect: str | None = None
    """Prepare nothing, but say what the dataset at this URI holds, and whether it is whole."""
    benchmark: bool = False
    """Prepare nothing to keep, but time each stage alone, all in one process, the Ray pipeline, and training's own
    loading, on the first photographs of the source: half a minute's work, or data.max_images."""
    measure_faces: bool = False
    """Prepare nothing, but measure how well faces are found: the first 200 photographs of the source, or
    data.max_images, whose faces must be aligned as in CelebA-HQ, are turned, scaled and pasted into other pictures."""


def job(arguments: Arguments) -> dict[str, Any]:
    """Prepare, inspect or measure."""
    session = functools.partial(cli.ray_session, dashboard=False)
    if arguments.inspect:
        from scfegan_ray.data import report

        return report.inspect(arguments.inspect, arguments.config.masks)
    if arguments.benchmark:
        from scfegan_ray.benchmarks import data

        return data.run(arguments.config, session=session)
    if arguments.measure_faces:
        from scfegan_ray.benchmarks import alignment

        return alignment.run(arguments.config)
    from scfegan_ray.data import prepare

    made = prepare.prepare(arguments.config, session=session)
    return {
        "dataset": made.uri,
        "num_images": made.info.num_images,
        "num_rejected": made.info.num_rejected,
        "rejected": [{"key": key, "reason": reason} for key, reason in made.rejected],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; see --help."""
    return cli.run_job(__doc__ or "", Arguments, job, argv)


if __name__ == "__main__":
    sys.exit(main())
