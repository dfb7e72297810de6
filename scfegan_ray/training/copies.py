"""Tensors of a device, brought to the host without making the host wait."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class HostCopy:
    """Copies of tensors as they are now, on the host once `wait` returns; the tensors may change at once.

    From a GPU they go into pinned memory, in the order of its other work and beside the host's. On a CPU they are
    made here and now.

    Args:
        tensors: of one device, by name.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._event: torch.cuda.Event | None = None
        self._copies = {name: _copy(tensor.detach()) for name, tensor in tensors.items()}
        gpus = {tensor.device for tensor in tensors.values() if tensor.device.type == "cuda"}
        if gpus:
            (gpu,) = gpus
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(gpu))

    def wait(self) -> dict[str, Tensor]:
        """Return the copies, contiguous and on the CPU, when they are whole."""
        if self._event is not None:
            self._event.synchronize()
        return self._copies


def _copy(tensor: Tensor) -> Tensor:
    if tensor.device.type != "cuda":
        return tensor.clone(memory_format=torch.contiguous_format)
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return copy.copy_(tensor, non_blocking=True)
