"""Which floating-point type a network computes in."""

from __future__ import annotations

import torch


def resolve_precision(setting: str, device: torch.device) -> torch.dtype:
    """Turn a setting of precision into a type.

    Args:
        setting: "float32", "bfloat16", or "auto" for bfloat16 only where the hardware computes it natively.
        device: what computes.
    """
    if setting == "auto":
        native = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else _cpu_has_bf16()
        return torch.bfloat16 if native else torch.float32
    return torch.bfloat16 if setting == "bfloat16" else torch.float32


def _cpu_has_bf16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
