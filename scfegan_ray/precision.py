"""Which floating-point type a network computes in, and where GPUs may round float32."""

from __future__ import annotations

import contextlib
import math
import platform
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from scfegan_ray.errors import ConfigError


def resolve_precision(setting: str, device: torch.device) -> torch.dtype:
    """Turn a setting of precision into a type.

    Args:
        setting: "float32", "bfloat16", or "auto" for bfloat16 only where the hardware computes it natively.
        device: what computes.
    """
    if setting == "auto":
        return torch.bfloat16 if has_bfloat16(device) else torch.float32
    return torch.bfloat16 if setting == "bfloat16" else torch.float32


def has_bfloat16(device: torch.device) -> bool:
    """Tell whether the hardware computes bfloat16 natively."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def check_available(device: torch.device, otherwise: str) -> None:
    """Refuse a GPU that torch cannot use.

    Args:
        device: what shall compute.
        otherwise: how to do without a GPU.

    Raises:
        ConfigError: torch sees none, as where it was built without CUDA.
    """
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"torch {torch.__version__} sees no GPU on {platform.node()}; see with nvidia-smi whether its driver does, "
            f"install a torch built for CUDA there, or {otherwise}"
        )


def check_native(precision: torch.dtype, device: torch.device) -> None:
    """Refuse a type that this machine would have to emulate, many times slower.

    Raises:
        ConfigError: it would.
    """
    if precision == torch.bfloat16 and not has_bfloat16(device):
        what = "GPU" if device.type == "cuda" else "processor"
        raise ConfigError(
            f"this run computes in bfloat16, which the {what} of the worker on {platform.node()} lacks; keep the run "
            "to machines that have it, or start a new run with --train.precision float32"
        )


def autocast(precision: torch.dtype, device: torch.device) -> torch.autocast:
    """Return the context in which networks compute in a type that `resolve_precision` gave."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16)


def lowered(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return float32 weights in the type of an enabled autocast, otherwise as they are.

    Autocast would round the same, but one weight after the other, and one gradient after the other. All gradients of
    one call are there at once, so what DDP is to send early belongs into calls of its own. Differentiable once.

    Args:
        tensors: weights of several layers, on one device.
    """
    kind = tensors[0].device.type
    is_enabled = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    if not is_enabled or torch.compiler.is_compiling():  # a compiler fuses each cast with what reads it
        return tensors
    result: tuple[Tensor, ...] = _Lowered.apply(torch.get_autocast_dtype(kind), *tensors)  # type: ignore[no-untyped-call]
    return result


class _Lowered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.dtype = tensors[0].dtype
        ctx.strides = [tensor.stride() for tensor in tensors]
        return _cast(tensors, ctx.strides, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_cast(gradients, ctx.strides, ctx.dtype)


_ALIGNMENT = 64
"""Elements at whose multiples each tensor begins, as the fast ways of libraries want it."""
_BLOCK_BYTES = 31 << 20
"""Most that tensors share; glibc gives what is larger than 32 MiB back at once, and gets it again page by page."""


def _cast(tensors: Sequence[Tensor], strides: Sequence[tuple[int, ...]], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return copies in another type and layout, in few blocks of memory that one call fills."""
    blocks: list[list[int]] = [[]]
    for tensor in tensors:
        size = _ALIGNMENT * math.ceil(tensor.numel() / _ALIGNMENT)
        if blocks[-1] and (sum(blocks[-1]) + size) * dtype.itemsize > _BLOCK_BYTES:
            blocks.append([])
        blocks[-1].append(size)
    pieces: list[Tensor] = []
    for sizes in blocks:
        pieces += torch.split(torch.empty(sum(sizes), dtype=dtype, device=tensors[0].device), sizes)
    copies = tuple(
        piece.as_strided(tensor.shape, stride) for piece, tensor, stride in zip(pieces, tensors, strides, strict=True)
    )
    torch._foreach_copy_(copies, tuple(tensors))
    return copies


def name_of(precision: torch.dtype) -> str:
    """Return a type's name as the settings spell it."""
    return str(precision).removeprefix("torch.")


def set_up(device: torch.device) -> None:
    """Make a device the one of this process, whose libraries then choose their ways by trying, and round nothing."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.backends.cudnn.benchmark = True  # shapes never change
    set_tf32(convolutions=False, products=False)  # but where an update allows it


def set_tf32(*, convolutions: bool, products: bool) -> None:
    """Say where GPUs may round what goes into float32 arithmetic to the 10 bits of TF32.

    It holds for the whole process, so for a backward, too, whichever thread runs it.

    Args:
        convolutions: in convolutions, where torch would by default.
        products: in matrix products.
    """
    # The older of torch's two ways to say it: it sets the newer one, too, where the newer one alone leaves a mixture
    # that whoever reads the older, as torch.compile does, is refused.
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.backends.cuda.matmul.allow_tf32 = products
    # "off" would be "whatever holds for all backends".
    torch.backends.cudnn.conv.fp32_precision = "tf32" if convolutions else "ieee"  # type: ignore[attr-defined]


@contextlib.contextmanager
def tf32(*, convolutions: bool, products: bool) -> Iterator[None]:
    """Call `set_tf32` for a while; a backward must run within, as its forward does."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    set_tf32(convolutions=convolutions, products=products)
    try:
        yield
    finally:
        set_tf32(convolutions=before[0], products=before[1])
