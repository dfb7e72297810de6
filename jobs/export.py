"""Write a model as one ONNX file that needs neither Python nor torch, in a browser for instance.

It is checked under ONNX Runtime before it is written. Wants `pip install 'scfegan-ray[onnx]'`.
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

    model: str = ""
    """Model: models:/NAME/VERSION; or the folder of a checkpoint, a run or a downloaded version, local or s3://."""
    out: str = ""
    """File to write, local or s3://."""
    size_px: int | None = None
    """Side of the images that it takes. Default: that of the model's training."""
    float16_weights: bool = False
    """Keep weights in 16 bits, for half the size; what is computed stays float32."""


def job(arguments: Arguments) -> dict[str, Any]:
    """Export."""
    from scfegan_ray.serving import export

    return export.export(
        arguments.config,
        arguments.model,
        arguments.out,
        size_px=arguments.size_px,
        float16_weights=arguments.float16_weights,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; see --help."""
    return cli.run_job(__doc__ or "", Arguments, job, argv)


if __name__ == "__main__":
    sys.exit(main())
