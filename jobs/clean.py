"""List what accumulates and nobody uses any more, with sizes; delete it only with --delete.

Prepared datasets under the storage path that no run was trained on, this machine's copies of datasets and weights that
no process holds (they are made or fetched again when they are needed), and folders of Rays that have ended.
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

    delete: bool = False
    """Delete what is listed as unused; without it nothing is changed."""


def job(arguments: Arguments) -> dict[str, Any]:
    """List or delete."""
    from scfegan_ray import cleaning

    return cleaning.clean(arguments.config, delete=arguments.delete)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; see --help."""
    return cli.run_job(__doc__ or "", Arguments, job, argv)


if __name__ == "__main__":
    sys.exit(main())
