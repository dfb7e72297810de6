"""Register the weights that the authors of SC-FEGAN published, as a version that edits like any other.

They are for non-commercial use only (CC BY-NC 4.0), which the version's license tag says. To import them again changes
nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scfegan_ray import cli


@dataclass(frozen=True)
class Arguments(cli.Arguments):
    """Arguments of this job."""

    checkpoint: str = ""
    """The published checkpoint, SC-FEGAN.ckpt, whose files lie beside each other (.index, .data-00000-of-00001); or an
    .npz of its variables. Local or s3://."""


def job(arguments: Arguments) -> dict[str, Any]:
    """Import."""
    from scfegan_ray import importing

    return {"model_uri": importing.import_released(arguments.config, arguments.checkpoint)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; see --help."""
    return cli.run_job(__doc__ or "", Arguments, job, argv)


if __name__ == "__main__":
    sys.exit(main())
