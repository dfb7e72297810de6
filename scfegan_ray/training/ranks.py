"""What the ranks of a run do together; where torch.distributed was not started there is one rank."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from scfegan_ray.errors import DivergenceError, ScFeganError

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

_ROUNDING = 1e-3
"""Of a tensor's largest value: what the sums of thousands of updates may differ by between kinds of hardware."""


def rank() -> int:
    """Return this process's number among the ranks."""
    return dist.get_rank() if dist.is_initialized() else 0


def num_ranks() -> int:
    """Return how many there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def distribute(network: nn.Module, device: torch.device, compression: str = "off") -> nn.Module:
    """Wrap a network so that its backward averages gradients over the ranks; alone it is returned as it is.

    Args:
        network: on the device.
        device: of this rank.
        compression: "bfloat16" sends gradients rounded to it, half the bytes; "off" sends them as they are.
    """
    if num_ranks() == 1:
        return network
    wrapped = DistributedDataParallel(
        network,
        device_ids=[device] if device.type == "cuda" else None,
        # Each rank moves the vectors of the spectral norm itself: they follow from the weights, which are the same on
        # every rank, and sending them between forward and backward would break the graph.
        forward_sync_buffers=False,
        gradient_as_bucket_view=True,
    )
    if compression == "bfloat16":
        # By its own name DDP would refuse the function where there is no GPU, though gloo sums bfloat16, too.
        wrapped.register_comm_hook(None, lambda group, bucket: bf16_compress_hook(group, bucket))
    return wrapped


def total(values: Tensor) -> Tensor:
    """Return the sum of every rank's tensor, which takes its place."""
    if num_ranks() > 1:
        dist.all_reduce(values)
    return values


def table(values: Sequence[float], device: torch.device) -> Tensor:
    """Return numbers of every rank, (ranks, numbers) float32; the host does not wait for the device, nor copies."""
    rows = torch.zeros(num_ranks(), len(values), device=device)
    for place, value in zip(rows[rank()], values, strict=True):
        place.fill_(value)
    return total(rows)


def together(work: Callable[[], ResultT]) -> ResultT:
    """Do something on every rank, and return rank 0's result; a deliberate error of one rank is raised on all."""
    found: tuple[ResultT | None, ScFeganError | None]
    try:
        found = work(), None
    except ScFeganError as error:
        found = None, error
    everywhere = [found]
    if num_ranks() > 1:
        everywhere *= num_ranks()
        dist.all_gather_object(everywhere, found)
    for _, trouble in everywhere:
        if trouble is not None:
            raise trouble
    return cast("ResultT", everywhere[0][0])


def make_same(tensors: Mapping[str, Tensor]) -> None:
    """Check that tensors are the same on every rank; what differs by rounding becomes rank 0's, with a warning.

    Only checksums are sent as long as nothing differs. Waits for the device.

    Args:
        tensors: float32 by name, the same names and shapes on every rank; those that differ are changed.

    Raises:
        DivergenceError: on every rank, where some differ by more than rounding.
    """
    if num_ranks() == 1:
        return
    sums = torch.stack([_checksum(tensor) for tensor in tensors.values()])
    everywhere = [torch.empty_like(sums) for _ in range(num_ranks())]
    dist.all_gather(everywhere, sums)
    differs = (torch.stack(everywhere) != everywhere[0]).any(dim=2).any(dim=0).tolist()
    names = [name for name, one in zip(tensors, differs, strict=True) if one]
    for name in names:
        tensor = tensors[name].detach()
        first = tensor.clone()
        dist.broadcast(first, src=0)
        away = (tensor - first).abs().max() / first.abs().max().clamp(min=torch.finfo(first.dtype).tiny)
        away = away.nan_to_num(nan=float("inf"))
        dist.all_reduce(away, dist.ReduceOp.MAX)
        if float(away) > _ROUNDING:
            raise DivergenceError(
                f"{name} is not the same on all ranks: it differs from rank 0's by {float(away):.1e} of its largest "
                f"value, as do {len(names) - 1} other tensors in some way; look for a broken machine, and go on from "
                "the last checkpoint without it"
            )
        tensor.copy_(first)
    if names and rank() == 0:
        logger.warning(
            "%s and %d other tensors were not quite the same on all ranks; all have rank 0's now",
            names[0],
            len(names) - 1,
        )


def _checksum(tensor: Tensor) -> Tensor:
    """Return two sums over a tensor's bits: (2,) int64."""
    bits = tensor.detach().reshape(-1).view(torch.int32).long()
    return torch.stack([bits.sum(), (bits * bits).sum()])
