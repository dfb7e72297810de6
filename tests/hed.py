"""Weights for HED without a network."""

from __future__ import annotations

import numpy as np

_WIDTHS = {"conv1": (3, 64), "conv2": (64, 128), "conv3": (128, 256), "conv4": (256, 512), "conv5": (512, 512)}
_COUNTS = {"conv1": 2, "conv2": 2, "conv3": 3, "conv4": 3, "conv5": 3}


def random_arrays() -> dict[str, np.ndarray]:
    """Draw filters that keep the scale of what they are given, by name as `weights.hed_arrays` gives them."""
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}

    def add(name: str, size: int, inputs: int, outputs: int, scale: float) -> None:
        arrays[f"{name}/kernel"] = (rng.standard_normal((size, size, inputs, outputs)) * scale).astype(np.float32)
        arrays[f"{name}/bias"] = np.zeros(outputs, np.float32)

    for level, (block, (inputs, width)) in enumerate(_WIDTHS.items(), 1):
        for index in range(1, _COUNTS[block] + 1):
            previous = inputs if index == 1 else width
            add(f"{block}_{index}", 3, previous, width, (2 / (9 * previous)) ** 0.5)
        add(f"side{level}", 1, width, 1, 1e-3)
    add("fuse", 1, 5, 1, 0.2)
    return arrays
