"""The order of training images: each once an epoch, shards one after the other where windows are asked for."""

from __future__ import annotations

import numpy as np
import pytest

from scfegan_ray.data.order import Order

SIZES = [5, 0, 7, 4, 9]
NUM, WINDOW = sum(SIZES), 6
SHARD_OF = np.repeat(np.arange(len(SIZES)), SIZES)


def epoch(number: int, *reseeded_at: int, window: int = WINDOW, seed: int = 3) -> list[int]:
    order = Order(seed, SIZES, window)
    found = [order.at(number * NUM + at, reseeded_at) for at in range(NUM)]
    assert {one for one, _ in found} == {number}
    return [image for _, image in found]


@pytest.mark.parametrize("window", [1, 2, WINDOW, NUM - 1, NUM, 99])
def test_each_image_once_an_epoch(window: int) -> None:
    epochs = [epoch(number, window=window) for number in range(4)]
    assert all(sorted(one) == list(range(NUM)) for one in epochs)
    assert len({tuple(one) for one in epochs}) > 2, "there are few orders of four shards"
    assert epoch(0, window=window, seed=4) != epochs[0]


def test_windows_follow_the_shards() -> None:
    """By hand: what a window holds is what the shards that are said for it hold, in their order, cut to its size."""
    order = Order(3, SIZES, WINDOW)
    for number in range(3):
        drawn, taken = epoch(number), list[int]()
        for window in range(5):
            shards = order.shards(number * 5 + window)
            assert order.window(number * NUM + window * WINDOW) == number * 5 + window
            images = drawn[window * WINDOW : (window + 1) * WINDOW]
            assert {int(SHARD_OF[one]) for one in images} == set(shards)
            taken += [one for one in shards if one not in taken]
        assert sorted(taken) == [0, 2, 3, 4], "the empty one is not read"
        walked = [one for shard in taken for one in np.flatnonzero(shard == SHARD_OF)]
        for window in range(5):
            span = slice(window * WINDOW, (window + 1) * WINDOW)
            assert sorted(drawn[span]) == sorted(walked[span])


def test_images_of_a_window_are_mixed() -> None:
    order = Order(0, [64] * 8, 256)
    mixed = [order.at(at)[1] // 64 for at in range(256)]
    changes = sum(one != other for one, other in zip(mixed, mixed[1:], strict=False))
    assert changes > 150, "three of four neighbors are of different shards"


def test_reseeding_mixes_what_is_left_of_its_window_and_all_after_it() -> None:
    plain, once, twice = epoch(1), epoch(1, NUM + 8), epoch(1, NUM + 8, NUM + 8)
    assert once[:8] == plain[:8] == twice[:8]
    assert len({tuple(one[8:]) for one in (plain, once, twice)}) == 3
    for begin in range(0, NUM, WINDOW):
        span = slice(begin, begin + WINDOW)
        assert sorted(once[span]) == sorted(plain[span]), "the same images of each window"
    assert once[WINDOW * 2 :] != plain[WINDOW * 2 :]
    assert epoch(2, NUM + 8) == epoch(2) and epoch(0, NUM + 8) == epoch(0), "epochs of their own"
    later = epoch(1, NUM + 8, NUM + 20)
    assert later[:20] == once[:20] and later[20:] != once[20:]


def test_position_alone_tells(seed: int = 7) -> None:
    """Asked for in any order, by others who asked for nothing before."""
    order = Order(seed, SIZES, WINDOW)
    forward = [order.at(at) for at in range(3 * NUM)]
    backward = [Order(seed, SIZES, WINDOW).at(at) for at in reversed(range(3 * NUM))]
    assert forward == backward[::-1]


def test_no_windows_ignore_the_shards() -> None:
    assert epoch(1, window=0) == [Order(3, [NUM]).at(NUM + at)[1] for at in range(NUM)]


def test_ten_thousand_shards_cost_nothing_an_image() -> None:
    order = Order(0, [1000] * 10_000, 4096)
    calls = []
    walk = order._walk

    def counted(epoch: int) -> tuple[np.ndarray, np.ndarray]:
        calls.append(epoch)
        return walk(epoch)

    first = walk(0)
    assert walk(0)[0] is first[0] and walk(0)[1] is first[1], "an epoch's walk is drawn once"
    assert order.at(10_000_000)[0] == 1
