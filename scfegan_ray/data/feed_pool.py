"""The processes of a `feed`, seen from the trainer: memory they share, and the socket that each takes its work from."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import socket
import struct
import subprocess
import time

import numpy as np
import torch
from torch import Tensor

from scfegan_ray import children
from scfegan_ray.allocation import KEEP_MEMORY
from scfegan_ray.data.examples import TrainingExamples
from scfegan_ray.data.feed_process import MOST_BYTES, Layout, Trouble, error_of
from scfegan_ray.errors import FeedError

NUM_SLOTS = 5
"""Batches in shared memory: two that the trainer may look at, and three that are being made or wait."""

_REQUESTS_PER_PROCESS = 2
"""Into which a batch is cut: few, for each wakes the trainer; enough that a slow process takes fewer."""
_MOST_REQUESTS = 32
"""Into which a batch is cut at most, so that all that is under way fits the socket's buffers."""
_LOOK_SECONDS = 1
_END_SECONDS = 5.0


class FeedPool:
    """Processes, and a ring of slots that each hold a batch.

    Args:
        examples: what they make.
        retry_seconds: how long they try storage that fails again.
        share: examples of a batch.
        layout: of a batch.
        number: of processes.

    Attributes:
        slots: (`NUM_SLOTS`, bytes of a batch) uint8.
    """

    def __init__(
        self, examples: TrainingExamples, retry_seconds: float, share: int, layout: Layout, number: int
    ) -> None:
        self._share = share
        self._missing = [0] * NUM_SLOTS
        self._troubles: list[Trouble | None] = [None] * NUM_SLOTS
        self._children: list[subprocess.Popen[bytes]] = []
        handle = os.memfd_create("scfegan-feed")
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # In the system, which costs nothing; a timeout of Python's would be two more calls for each answer.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _LOOK_SECONDS, 0))
        settings = {
            "socket": theirs.fileno(),
            "memory": handle,
            "examples": examples.said(retry_seconds),
            "cache_dir": str(examples.dataset.cache_dir),
            "count": share,
            "num_slots": NUM_SLOTS,
        }
        environment = KEEP_MEMORY | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        try:
            os.ftruncate(handle, NUM_SLOTS * layout.num_bytes)
            for _ in range(number):  # they outlive a Ctrl-C, as the trainer's last batch may be to come
                self._children.append(
                    children.start(
                        "scfegan_ray.data.feed_process",
                        settings,
                        environment=environment,
                        pass_fds=(handle, theirs.fileno()),
                    )
                )
            memory = np.frombuffer(mmap.mmap(handle, 0), np.uint8)
        except BaseException:
            self.close()
            raise
        finally:
            theirs.close()
            os.close(handle)
        self.slots = torch.from_numpy(memory).view(NUM_SLOTS, layout.num_bytes)

    @property
    def ids(self) -> list[int]:
        """Of the processes."""
        return [child.pid for child in self._children]

    def ask(self, slot: int, first: int, reseeded_at: tuple[int, ...]) -> None:
        """Have the batch whose first example is at a position made in a slot.

        Raises:
            FeedError: a process died.
        """
        self._check_alive()
        step = -(-self._share // min(_REQUESTS_PER_PROCESS * len(self._children), _MOST_REQUESTS))
        self._troubles[slot] = None
        for at in range(0, self._share, step):
            request = [slot, at, min(at + step, self._share), first, reseeded_at]
            self._missing[slot] += 1
            try:
                self._socket.send(json.dumps(request).encode())
            except ConnectionError:
                self._check_alive(is_over=True)

    def is_made(self, slot: int) -> bool:
        """Tell whether `wait` would give a batch without waiting."""
        while self._missing[slot] and self._receive(socket.MSG_DONTWAIT):
            pass
        return not self._missing[slot] and self._troubles[slot] is None

    def wait(self, slot: int) -> Tensor:
        """Return the bytes of a batch once they are made.

        Raises:
            ScFeganError: what a process raised meanwhile, of the same class.
            FeedError: a process died.
        """
        self._await(slot)
        trouble = self._troubles[slot]
        if trouble is not None:
            raise error_of(trouble)
        return self.slots[slot]

    def settle(self) -> None:
        """Wait until nothing is under way, whatever comes of it.

        Raises:
            FeedError: a process died.
        """
        for slot in range(NUM_SLOTS):
            self._await(slot)

    def close(self) -> None:
        """End the processes."""
        self._socket.close()
        end = time.monotonic() + _END_SECONDS
        for child in self._children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, end - time.monotonic()))
            child.kill()
            child.wait()

    def _await(self, slot: int) -> None:
        while self._missing[slot]:
            if not self._receive():
                self._check_alive()

    def _receive(self, flags: int = 0) -> bool:
        """Take one answer; False where none comes for a while, or at once."""
        try:
            answer = self._socket.recv(MOST_BYTES, flags)
        except BlockingIOError:
            return False
        except ConnectionError:
            answer = b""
        if not answer:
            self._check_alive(is_over=True)
        slot, trouble = json.loads(answer)
        self._missing[slot] -= 1
        self._troubles[slot] = self._troubles[slot] or trouble
        return True

    def _check_alive(self, *, is_over: bool = False) -> None:
        """Find out whether a process died, or, where their end of the socket is closed, which.

        Raises:
            FeedError: one did.
        """
        for child in self._children:
            code = child.wait(_END_SECONDS) if is_over else child.poll()
            if code is not None:
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
                raise FeedError(
                    f"process {child.pid}, which makes training images, {how}; where memory ran out, lower "
                    "train.loader_processes, and run the same command again"
                )
