"""What the ranks of a run do together; where torch.distributed was not started there is one rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from scfegan_ray.errors import ScFeganError

ResultT = TypeVar("ResultT")


def rank() -> int:
    """Return this process's number among the ranks."""
    return dist.get_rank() if dist.is_initialized() else 0


def num_ranks() -> int:
    """Return how many there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def distribute(network: nn.Module, device: torch.device) -> nn.Module:
    """Wrap a network so that its backward averages gradients over the ranks; alone it is returned as it is."""
    if num_ranks() == 1:
        return network
    return DistributedDataParallel(
        network,
        device_ids=[device] if device.type == "cuda" else None,
        # Each rank moves the vectors of the spectral norm itself: they follow from the weights, which are the same on
        # every rank, and sending them between forward and backward would break the graph.
        forward_sync_buffers=False,
        gradient_as_bucket_view=True,
    )


def total(values: Tensor) -> Tensor:
    """Return the sum of every rank's tensor, which takes its place."""
    if num_ranks() > 1:
        dist.all_reduce(values)
    return values


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
