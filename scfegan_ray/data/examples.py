"""From prepared rows to training examples: masks, brushes and noise as pure functions of seed and position.

Nothing here depends on the number of workers, on who makes an example, or on what was made before: `order` says which
image a position of the global order has, and its randomness comes from (seed, epoch, image key). So a resume needs only
the number of images seen. From a position at which a run was reseeded, because training had to go back there, all that
follows has other randomness.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from scfegan_ray.config import Config, MaskConfig
from scfegan_ray.data import masks, strokes
from scfegan_ray.data.dataset import DatasetInfo, key_number
from scfegan_ray.data.order import Order
from scfegan_ray.data.rows import PreparedDataset
from scfegan_ray.errors import DataError

Example = dict[str, NDArray[Any]]


class TrainingExamples:
    """The examples of a run, by their positions in the global order.

    Args:
        dataset: what to draw from.
        masks: how holes and brushes are drawn.
        seed: of order and randomness.
        window_images: of the order, see `order.Order`.

    Raises:
        DataError: there is nothing to train on.
    """

    def __init__(self, dataset: PreparedDataset, masks: MaskConfig, seed: int, window_images: int = 0) -> None:
        if not dataset.train_sizes.sum():
            raise DataError(f"{dataset.uri} has no training images; lower data.test_fraction or add images")
        self.dataset = dataset
        self.order = Order(seed, dataset.train_sizes, window_images)
        self._masks, self._seed, self._window_images = masks, seed, window_images
        self._window = -1

    def said(self, retry_seconds: float = 0.0) -> dict[str, Any]:
        """Say in plain values what `open` needs, in another process of any machine, to make the same examples.

        Args:
            retry_seconds: how long it is to try storage that fails again.
        """
        return {
            "uri": self.dataset.uri,
            "info": asdict(self.dataset.info),
            "masks": asdict(self._masks),
            "seed": self._seed,
            "window_images": self._window_images,
            "retry_seconds": retry_seconds,
        }

    @classmethod
    def open(cls, said: Mapping[str, Any], cache_dir: str | None = None) -> TrainingExamples:
        """Open what another process said.

        Args:
            said: by `said`.
            cache_dir: of this machine. Default: `cache.cache_dir()`.

        Raises:
            DataError: the dataset is damaged.
            StorageError: it cannot be read, or the local cache cannot be written.
        """
        dataset = PreparedDataset.open(
            said["uri"],
            Path(cache_dir) if cache_dir else None,
            DatasetInfo(**said["info"]),
            whole=not said["window_images"],
            retry_seconds=said["retry_seconds"],
        )
        masks = Config.from_dict({"masks": said["masks"]}).masks
        return cls(dataset, masks, said["seed"], said["window_images"])

    def at(self, position: int, reseeded_at: tuple[int, ...] = ()) -> Example:
        """Return the example at a position, see `make_example`.

        Args:
            position: in the global order.
            reseeded_at: positions from which on order and randomness are others.

        Raises:
            DataError: its image is damaged.
            StorageError: it cannot be read.
        """
        epoch, number = self.order.at(position, reseeded_at)
        if self.order.has_windows:
            self._expect(self.order.window(position))
            row = self.dataset.train_row(number)
        else:
            row = self.dataset.row(int(self.dataset.train_rows[number]))
        reseeds = sum(one <= position for one in reseeded_at)
        entropy = [self._seed, epoch, key_number(row["key"])] + ([reseeds] if reseeds else [])
        return make_example(row, self._masks, np.random.default_rng(entropy))

    def fill(self, maps: Example, rows: Iterable[int], first: int, reseeded_at: tuple[int, ...] = ()) -> None:
        """Make some examples of a batch, each in its row.

        Args:
            maps: of the batch, stacked.
            rows: which.
            first: position of the batch's first example.
            reseeded_at: as in `at`.

        Raises:
            DataError: an image is damaged.
            StorageError: one cannot be read.
        """
        for row in rows:
            for name, array in self.at(first + row, reseeded_at).items():
                maps[name][row] = array

    def _expect(self, window: int) -> None:
        if window != self._window:
            self._window = window
            self.dataset.expect(self.order.shards(window), self.order.shards(window + 1))


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
