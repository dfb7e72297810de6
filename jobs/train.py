"""Train a face editing model, from raw photographs to a version in the registry.

The same --run-name resumes. Without arguments: the quickstart preset on embedded faces.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from scfegan_ray import cli
from scfegan_ray.config import Config


def job(config: Config, preset: str) -> dict[str, Any]:
    """Train and register."""
    from scfegan_ray.training import launch

    result = asdict(launch.train(cli.named(config, launch.default_run_name(preset))))
    return {
        name: result[name]
        for name in ("run_name", "run_id", "model_uri", "checkpoint", "images_seen", "weights_sha256")
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; see --help."""
    return cli.run_job(__doc__ or "", job, argv)


if __name__ == "__main__":
    sys.exit(main())
