"""The order in which a run sees its training images: a pure function of seed and position.

Position p of the global order is in epoch p // n. An epoch is either a permutation of all images, or, where a dataset
is too large to have at once, a walk through its shards in random order that shuffles images within windows of a fixed
number of them: whoever follows it reads shards one after the other and needs no more of them than two windows.
Either way each image comes once an epoch, and a position tells all that a resume needs.

From a position at which a run was reseeded, because training had to go back there, what is left of its epoch comes in
another order: with windows, what is left of that window and all the windows after it, of the same images each.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_WINDOW, _SHARDS = 1, 2
"""Last words of the seeds of what is shuffled; not 0, with which numpy would take two seeds for one."""


class Order:
    """The order of one run.

    Args:
        seed: of the run.
        sizes: training images of each shard.
        window_images: within how many images an epoch is shuffled; 0: all of them, whatever their shards.
    """

    def __init__(self, seed: int, sizes: Sequence[int] | NDArray[np.int64], window_images: int = 0) -> None:
        self._seed, self._window = seed, window_images
        self._sizes = np.asarray(sizes, np.int64)
        self._begins = np.cumsum(self._sizes) - self._sizes
        self.num_images = int(self._sizes.sum())
        self._walked: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None

    @property
    def has_windows(self) -> bool:
        """Whether shards come one after the other."""
        return self._window > 0

    def at(self, position: int, reseeded_at: tuple[int, ...] = ()) -> tuple[int, int]:
        """Return what comes at a position.

        Args:
            position: in the global order.
            reseeded_at: positions from which on the order is another.

        Returns:
            Epoch, and which training image: with windows its number among those of all shards in turn, else among
            the sorted keys.
        """
        epoch, at = divmod(position, self.num_images)
        breaks = tuple(one - epoch * self.num_images for one in reseeded_at if one // self.num_images == epoch)
        if not self._window:
            return epoch, int(_shuffled((self._seed, epoch), self.num_images, breaks)[at])
        number, within = divmod(at, self._window)
        begin, end = self._span(number)
        breaks = tuple(max(one - begin, 0) for one in breaks if one < end)
        walked = begin + int(_shuffled((self._seed, epoch, number, _WINDOW), end - begin, breaks)[within])
        shards, ends = self._walk(epoch)
        turn = int(np.searchsorted(ends, walked, side="right"))
        return epoch, int(self._begins[shards[turn]] + self._sizes[shards[turn]] - (ends[turn] - walked))

    def window(self, position: int) -> int:
        """Return the number of a position's window, counted over all epochs."""
        epoch, at = divmod(position, self.num_images)
        return epoch * self._num_windows + at // self._window

    def shards(self, window: int) -> list[int]:
        """Return the shards of a window, counted over all epochs, as they come."""
        epoch, number = divmod(window, self._num_windows)
        begin, end = self._span(number)
        shards, ends = self._walk(epoch)
        first, last = (int(one) for one in np.searchsorted(ends, (begin, end - 1), side="right"))
        return [int(one) for one in shards[first : last + 1] if self._sizes[one]]

    @property
    def _num_windows(self) -> int:
        return -(-self.num_images // self._window)

    def _span(self, number: int) -> tuple[int, int]:
        return number * self._window, min((number + 1) * self._window, self.num_images)

    def _walk(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the shards in an epoch's order, and how many images have come after each."""
        if self._walked is None or self._walked[0] != epoch:
            shards = _shuffled((self._seed, epoch, _SHARDS), len(self._sizes), ())
            self._walked = epoch, shards, np.cumsum(self._sizes[shards])
        return self._walked[1:]


@lru_cache(maxsize=4)
def _shuffled(seeds: tuple[int, ...], count: int, breaks: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the numbers up to a count in random order; what comes after each break is shuffled once more."""
    order = np.random.default_rng(seeds).permutation(count)
    for number, at in enumerate(breaks, start=1):
        order[at:] = np.random.default_rng([*seeds, number]).permutation(order[at:])
    return order
