"""Where a rank's time goes, how far ranks are apart, and what operators are told of it; nothing waits for a device."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

GAUGES: Mapping[str, str] = MappingProxyType(
    {
        "images_seen": "Images seen, over all ranks",
        "images_per_second": "Images per second over all ranks, all pauses included",
        "step_seconds": "Seconds of an update without the wait for its batch, mean of the interval",
        "data_seconds": "Seconds for which an update waited for its batch, mean of the interval",
        "compute_seconds": "Seconds of one update of the interval until the rank first needs the others",
        "skew_data_seconds": "Seconds by which the slowest rank waits longer for its batches than the mean",
        "skew_compute_seconds": "Seconds by which the slowest rank computes longer than the mean",
        "checkpoint_seconds": "Seconds of the interval for which the rank stood still for checkpoints",
        "evaluation_seconds": "Seconds of the interval for which the rank measured held-back images",
        "feed_ready_batches": "Batches that are made and wait for the rank",
        "skipped_batches": "Batches that were skipped since the run began",
        "rollbacks": "Returns to an earlier checkpoint since the run began",
    }
)
"""What operators see of each rank, once for each interval of `train.log_every_images`, and what it means."""


class TimeSpent:
    """Where the time since the last record went.

    Attributes:
        num_images: trained on in it, over all ranks.
    """

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self.num_images = 0
        self._began = time.perf_counter()
        self._seconds = dict.fromkeys(("data", "step", "checkpoint", "evaluation"), 0.0)

    @contextlib.contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Count the time within; nothing waits for the device to know it."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[what] += time.perf_counter() - began

    def take(self) -> dict[str, float]:
        """Return images_per_second, all pauses included, and seconds by purpose; start anew."""
        rate = self.num_images / max(time.perf_counter() - self._began, 1e-9)
        found = {"images_per_second": rate} | {f"seconds/{name}": value for name, value in self._seconds.items()}
        self._restart()
        return found


class OwnWork:
    """Times what a rank computes in an update before it first needs the others.

    How long whole updates take says nothing of who is slow: all ranks end them together. What each does until its last
    gradient of the first network is there depends on no other; only then DDP makes it wait.

    Args:
        device: of the rank.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._began = self._ended = 0.0
        self._events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        if device.type == "cuda":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            self._events = first, last

    @contextlib.contextmanager
    def timed(self, parameters: Iterable[Tensor]) -> Iterator[None]:
        """Time the update within, until the last gradient of some parameters is known."""
        stream = None if self._events is None else torch.cuda.current_stream(self._device)

        def note(_: Tensor) -> None:
            if self._events is None:
                self._ended = time.perf_counter()
            else:
                self._events[1].record(stream)

        hooks = [
            one.register_hook(note)  # type: ignore[no-untyped-call]
            for one in parameters
            if one.requires_grad
        ]
        self._began = self._ended = time.perf_counter()
        if self._events is not None:
            self._events[0].record(stream)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def seconds(self) -> float:
        """Return what the last update took that was timed; 0 where it is not over on the device."""
        if self._events is None:
            return self._ended - self._began
        first, last = self._events
        return first.elapsed_time(last) / 1000 if last.query() else 0.0  # type: ignore[no-untyped-call]


def skew(values: Iterable[float]) -> float:
    """Return by how much the largest value exceeds the mean; 0 where there are none."""
    found = list(values)
    return max(found) - sum(found) / len(found) if found else 0.0
