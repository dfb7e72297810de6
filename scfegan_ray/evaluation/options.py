"""What people choose about an evaluation; light, so that `--help` need not wait for what measures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Holes = Literal["freeform", "thin", "thick", "eyes", "hair", "full", "wobbly"]
Identity = Literal["auto", "sface", "none"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuringConfig:
    """What is measured, and by how many."""

    holes: Holes = "freeform"
    """freeform: as in training; thin, thick: finer and broader strokes; eyes, hair: these regions; full: everything,
    so that only lines and color are left; wobbly: as freeform, with strokes such as people draw."""
    identity: Identity = "auto"
    """Tell faces apart by SFace, for likeness and for distances of sets; auto: with a warning not at all where its
    weights cannot be had."""
    lpips: str | None = None
    """File with torchvision's AlexNet weights (`alexnet-owt-7be5be79.pth`), local or s3://: LPIPS is measured, too."""
    inception: str | None = None
    """File with Inception as a TorchScript program (`inception-2015-12-05.pt`, which StyleGAN and clean-fid use), local
    or s3://, that you trust: FID and KID are measured, too."""
    num_workers: int = 0
    """Processes that measure, with a GPU each where `train.use_gpu`. 0: one per core, or per GPU."""


AS_USUAL = MeasuringConfig()
