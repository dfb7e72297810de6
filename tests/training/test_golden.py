"""A loss curve that no refactoring may change.

`PYTHONPATH=tests python tests/training/test_golden.py` writes it anew, after a change that is meant to.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from updates import without_norms

from scfegan_ray import faces
from scfegan_ray.config import Config, LossConfig, MaskConfig, ModelConfig, OptimizationConfig
from scfegan_ray.data import colors, examples, parsing, sketches
from scfegan_ray.images import Batch
from scfegan_ray.models.features import vgg_random
from scfegan_ray.training.state import TrainingState
from scfegan_ray.training.step import Pass, train_step

GOLDEN = Path(__file__).parent.parent / "golden" / "loss_curve.json"
NUM_STEPS = 6


def curve() -> list[dict[str, float]]:
    """Train a tiny network on two drawn faces, from raw faces on."""
    config = Config(
        model=ModelConfig(base_channels=4, num_downsamples=2, discriminator_base_channels=4),
        losses=LossConfig(features="random"),
        optimization=OptimizationConfig(generator_learning_rate=1e-3),
    )
    config = replace(config, masks=MaskConfig(hair_probability=0.5))
    detector = sketches.OpenCvDetector()
    rows = []
    for index in range(2):
        face = faces.draw_face(0, index, 32)
        rows.append(
            {
                "key": str(index),
                "image": face.image,
                "sketch": sketches.make_sketches([face.image], detector, config.data.sketch, 32)[0],
                "color": colors.make_color_map(face.image, face.labels, config.data.color),
                "hair": parsing.hair_region(face.labels),
                "eyes": np.asarray(face.eyes, np.float32),
            }
        )
    state, features = TrainingState.build(config), vgg_random()
    values = []
    for step in range(NUM_STEPS):
        arrays = examples.stack(
            [examples.make_example(row, config.masks, np.random.default_rng([step, at])) for at, row in enumerate(rows)]
        )
        terms = train_step(
            state,
            [Pass(Batch.from_arrays(arrays, torch.device("cpu")), torch.from_numpy(arrays["interpolation"]))],
            features,
            config.losses,
            generator=state.generator,
            discriminator=state.discriminator,
        )
        values.append({name: float(value) for name, value in without_norms(terms).items()})
    return values


def test_curve_is_the_golden_one() -> None:
    for step, (now, golden) in enumerate(zip(curve(), json.loads(GOLDEN.read_text()), strict=True)):
        assert now.keys() == golden.keys()
        for name, value in golden.items():
            # Other processors sum in another order; after a few updates that shows in the fourth digit.
            assert now[name] == pytest.approx(value, rel=2e-3, abs=2e-4), f"step {step}, {name}"


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(curve(), indent=1) + "\n")
