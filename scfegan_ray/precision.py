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


def autocast(precision: torch.dtype, device: torch.device) -> torch.autocast:
    """Return the context in which networks compute in a type that `resolve_precision` gave."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16)


def name_of(precision: torch.dtype) -> str:
    """Return a type's name as the settings spell it."""
    return str(precision).removeprefix("torch.")


def _cpu_has_bf16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
