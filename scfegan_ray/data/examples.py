"""From prepared rows to training examples: order, masks, brushes and noise as pure functions of seed and position.

Nothing here depends on the number of workers, on shuffling, or on what was drawn before: position p of the global
order is image `p % n` of epoch `p // n`'s permutation, and its randomness comes from (seed, epoch, image key).
So a resume needs only the number of images seen. From a position at which a run was reseeded, because training had to
go back there, what is left of its epoch comes in another order, and all that follows with other randomness.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from scfegan_ray.config import MaskConfig
from scfegan_ray.data import masks, strokes
from scfegan_ray.data.dataset import PreparedDataset, key_number

Example = dict[str, NDArray[Any]]


def row_at(position: int, seed: int, num_rows: int, reseeded_at: tuple[int, ...] = ()) -> tuple[int, int]:
    """Return (epoch, index among the training rows) of a position in the global order."""
    epoch, at = divmod(position, num_rows)
    breaks = tuple(one - epoch * num_rows for one in reseeded_at if one // num_rows == epoch)
    return epoch, int(_permutation(seed, epoch, num_rows, breaks)[at])


def make_example(row: dict[str, Any], config: MaskConfig, rng: np.random.Generator) -> Example:
    """Draw one hole, its brushed color and its noise over a decoded row.

    Args:
        row: as `decode_row` gives it.
        config: how holes and brushes are drawn.
        rng: all randomness of this example.

    Returns:
        image: (S, S, 3) uint8 RGB; mask: (S, S, 1) uint8 {0, 1}, 1 marks pixels to fill; sketch, noise: (S, S, 1)
        uint8 {0, 1}, 0 outside the hole; color: (S, S, 3) uint8 RGB, black where unpainted; interpolation: ()
        float32 in [0, 1), where the gradient penalty looks between composite and ground truth.
    """
    mask = masks.draw_mask(row["image"].shape[0], row["eyes"], row["hair"], config, rng)
    example = fill_in(row, mask, config, rng)
    return example | {"interpolation": np.asarray(rng.random(), np.float32)}


def fill_in(row: Mapping[str, Any], mask: NDArray[np.uint8], config: MaskConfig, rng: np.random.Generator) -> Example:
    """Draw lines, brushed color and noise into a hole.

    Args:
        row: as `decode_row` gives it.
        mask: (S, S) uint8 {0, 1}; 1 marks pixels to fill.
        config: how brushes are drawn, and how strokes miss the photograph's.
        rng: all randomness of this example.

    Returns:
        As `make_example`, but for interpolation.
    """
    color: NDArray[Any] = cv2.copyTo(row["color"], masks.draw_brush(mask, config, rng))  # black elsewhere
    noise = masks.draw_noise(mask, config, rng)
    sketch, color = strokes.vary(row["sketch"], color, config.strokes, rng)
    return {
        "image": row["image"],
        "mask": mask[..., None],
        "sketch": (sketch & mask)[..., None],
        "color": color,
        "noise": noise[..., None],
    }


def training_example(
    dataset: PreparedDataset, config: MaskConfig, seed: int, position: int, reseeded_at: tuple[int, ...] = ()
) -> Example:
    """Return the example at a position of the global order."""
    epoch, at = row_at(position, seed, len(dataset.train_rows), reseeded_at)
    row = dataset.row(int(dataset.train_rows[at]))
    reseeds = sum(one <= position for one in reseeded_at)
    entropy = [seed, epoch, key_number(row["key"])] + ([reseeds] if reseeds else [])
    return make_example(row, config, np.random.default_rng(entropy))


def evaluation_example(row: dict[str, Any], config: MaskConfig) -> Example:
    """Return the example of a held-back row; its hole is the same in every run, whatever the run's seed."""
    return make_example(row, config, np.random.default_rng([key_number(row["key"])]))


def evaluation_batches(
    dataset: PreparedDataset, config: MaskConfig, count: int, batch_size: int, share: tuple[int, int] = (0, 1)
) -> Iterator[Example]:
    """Yield held-back examples in batches, always the same.

    Args:
        dataset: whose.
        config: how holes and brushes are drawn.
        count: how many, over all shares.
        batch_size: most of a batch.
        share: of the examples, and how many shares there are; they are as large as each other, or differ by one.
    """
    rows = dataset.held_back(count)[share[0] :: share[1]]
    for at in range(0, len(rows), batch_size):
        yield stack([evaluation_example(dataset.row(row), config) for row in rows[at : at + batch_size]])


def stack(examples: list[Example]) -> Example:
    """Stack examples along a new leading axis."""
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, num_rows: int, breaks: tuple[int, ...]) -> NDArray[np.int64]:
    """Return an epoch's order; what comes after each break is shuffled once more."""
    order = np.random.default_rng([seed, epoch]).permutation(num_rows)
    for number, at in enumerate(breaks, start=1):
        order[at:] = np.random.default_rng([seed, epoch, number]).permutation(order[at:])
    return order
