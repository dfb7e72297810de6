"""A process of `feed`: makes the training examples it is asked for, in memory that it shares with the trainer.

It imports neither torch nor Ray and remembers nothing: what it needs to know of an example comes with the request. It
ends when the other end of its socket is gone, however the trainer ended.
"""

from __future__ import annotations

import contextlib
import functools
import json
import mmap
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from scfegan_ray import errors
from scfegan_ray.data.examples import Example, TrainingExamples
from scfegan_ray.errors import ScFeganError

MOST_BYTES = 1 << 16
"""Longest message."""

_CHANNELS = {"image": 3, "mask": 1, "sketch": 1, "color": 3, "noise": 1}
_ALIGNMENT = 64


class Layout:
    """Where the maps of a batch lie in one block of bytes, so that a batch is one copy.

    Attributes:
        num_bytes: of the block.
        places: of each map: offset in bytes, shape, name of its type.
    """

    def __init__(self, count: int, size_px: int) -> None:
        self.num_bytes = 0
        self.places: dict[str, tuple[int, tuple[int, ...], str]] = {}
        for name, channels in _CHANNELS.items():
            self._add(name, (count, size_px, size_px, channels), "uint8")
        self._add("interpolation", (count,), "float32")

    def _add(self, name: str, shape: tuple[int, ...], kind: str) -> None:
        self.places[name] = self.num_bytes, shape, kind
        ends = self.num_bytes + int(np.prod(shape)) * np.dtype(kind).itemsize
        self.num_bytes = -(-ends // _ALIGNMENT) * _ALIGNMENT

    def arrays(self, buffer: Any, offset: int = 0) -> Example:
        """Return the maps of a batch as views of a buffer, in which the block begins at an offset."""
        return {
            name: np.frombuffer(buffer, kind, int(np.prod(shape)), offset + at).reshape(shape)
            for name, (at, shape, kind) in self.places.items()
        }


Trouble = tuple[str, str]
"""What ended some work: the class of a deliberate error, or nothing, and what it says."""


def trouble_of(work: Callable[[], object]) -> Trouble | None:
    """Do some work; return what ended it, for whoever waits for it to say, or None."""
    try:
        work()
    except ScFeganError as error:
        return type(error).__name__, str(error)
    except Exception:
        return "", traceback.format_exc()[-MOST_BYTES // 8 :]
    return None


def error_of(trouble: Trouble) -> Exception:
    """Return the error to raise where some work is waited for."""
    kind, text = trouble
    return getattr(errors, kind)(text) if kind else RuntimeError(f"a process of the feed failed: {text}")


def main(arguments: str) -> None:
    """Make examples until the trainer is gone.

    Args:
        arguments: JSON of socket and memory (handles), examples and cache_dir (see `TrainingExamples.open`), count
            (images of a batch) and num_slots (batches that fit the memory).
    """
    settings = json.loads(arguments)
    cv2.setNumThreads(1)
    layout = Layout(settings["count"], settings["examples"]["info"]["size_px"])
    memory = mmap.mmap(settings["memory"], 0)
    slots = [layout.arrays(memory, slot * layout.num_bytes) for slot in range(settings["num_slots"])]
    opened: TrainingExamples | None = None

    def make(slot: int, begin: int, end: int, first: int, reseeded_at: list[int]) -> None:
        nonlocal opened
        opened = opened or TrainingExamples.open(settings["examples"], settings["cache_dir"])
        opened.fill(slots[slot], range(begin, end), first, tuple(reseeded_at))

    with socket.socket(fileno=settings["socket"]) as trainer, contextlib.suppress(ConnectionError):
        while request := trainer.recv(MOST_BYTES):
            slot, *what = json.loads(request)
            trouble = trouble_of(functools.partial(make, slot, *what))
            trainer.send(json.dumps([slot, trouble]).encode())


if __name__ == "__main__":
    main(sys.argv[1])
