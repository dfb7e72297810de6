"""Weights as the authors published theirs, drawn at random: what they published cannot be had from a package index."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scfegan_ray.config import ModelConfig
from scfegan_ray.models.released import expected_variables

SMALL = ModelConfig(base_channels=4, num_downsamples=3, dilations=(2, 4))

CHECKPOINT = Path(__file__).parent / "golden" / "released" / "SC-FEGAN.ckpt"
"""What TensorFlow wrote of `draw_variables(SMALL)`."""


def draw_variables(config: ModelConfig) -> dict[str, NDArray[np.float32]]:
    """Draw weights by the rule that the golden output of the released graph was made with."""
    variables = {}
    for name, shape in expected_variables(config).items():
        seed = int.from_bytes(hashlib.sha256(f"dev{name}".encode()).digest()[:8], "little")
        values = np.random.default_rng(seed).standard_normal(shape)
        if len(shape) == 1:
            variables[name] = (0.05 * values).astype(np.float32)
        else:
            fan = shape[0] * shape[1] * (shape[3] / 4 if name.endswith("/w:0") else shape[2])
            variables[name] = (values * np.sqrt(1.5 / fan)).astype(np.float32)
    return variables
