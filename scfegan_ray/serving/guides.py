"""The lines and colors of a photograph as strokes to begin with, so that one changes a drawing instead of making one.

They are found by the code that finds those of training, so the model has learnt to follow such lines.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scfegan_ray.config import DataConfig
from scfegan_ray.data import colors, sketches


class GuideMaker:
    """Draws what training would have drawn of a photograph.

    Args:
        config: of the training.
    """

    def __init__(self, config: DataConfig) -> None:
        self._config = config
        self._detector: sketches.EdgeDetector | None = None
        self._lock = threading.Lock()

    def make(self, crop: NDArray[np.uint8]) -> list[dict[str, Any]]:
        """Draw lines and colors.

        Args:
            crop: (S, S, 3) uint8 sRGB.

        Returns:
            Two strokes, of sketch and of color, as an edit's document has them.

        Raises:
            ModelError: the weights that find lines cannot be had.
        """
        with self._lock:
            if self._detector is None:
                self._detector = sketches.make_detector(self._config.sketch)
            lines = sketches.make_sketches([crop], self._detector, self._config.sketch, len(crop))[0]
        painted = colors.make_color_map(crop, None, self._config.color)
        names, values = np.unique(painted.reshape(-1, 3), axis=0, return_inverse=True)
        common = {"kind": "map", "size": len(crop)}
        return [
            {**common, "layer": "sketch", "runs": _runs(lines.ravel())},
            {
                **common,
                "layer": "color",
                "runs": _runs(values.ravel() + 1),
                "colors": [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in names.tolist()],
            },
        ]


def _runs(values: NDArray[Any]) -> list[int]:
    starts = np.flatnonzero(np.diff(values, prepend=values[0] - 1.0))
    lengths = np.diff(starts, append=len(values))
    runs: list[int] = np.stack([values[starts], lengths], axis=1).astype(int).ravel().tolist()
    return runs
