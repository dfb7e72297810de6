"""Make a prepared dataset from raw photographs: sketch, color map, hair region and eye positions of each face."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from scfegan_ray import cli
from scfegan_ray.config import Config


def job(config: Config, preset: str) -> dict[str, Any]:
    """Prepare."""
    from scfegan_ray.data import pipeline

    made = pipeline.prepare(config)
    return {
        "dataset": made.uri,
        "num_images": made.info.num_images,
        "num_rejected": made.info.num_rejected,
        "rejected": [{"key": key, "reason": reason} for key, reason in made.rejected],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; see --help."""
    return cli.run_job(__doc__ or "", job, argv)


if __name__ == "__main__":
    sys.exit(main())
