"""A run small enough for tests: no network, no pretrained weights, seconds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scfegan_ray.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    LossConfig,
    ModelConfig,
    SketchConfig,
    TrainConfig,
    TuneConfig,
)
from scfegan_ray.data.dataset import SCHEMA_VERSION, DatasetInfo

TINY = Config(
    data=DataConfig(
        num_embedded=12, size_px=32, test_fraction=0.25, shard_images=4, sketch=SketchConfig(detector="opencv")
    ),
    model=ModelConfig(base_channels=4, num_downsamples=2, discriminator_base_channels=4, discriminator_num_layers=2),
    losses=LossConfig(features="random"),
    train=TrainConfig(
        images=16,
        batch_size=4,
        window_images=0,
        log_every_images=4,
        checkpoint_every_images=8,
        precision="float32",
        loader_processes=0,
    ),
    evaluation=EvaluationConfig(num_images=2, grid_images=2, batch_size=2),
    tune=TuneConfig(num_trials=2, reports=2),
)

DATASET = DatasetInfo(
    schema_version=SCHEMA_VERSION,
    size_px=32,
    num_images=12,
    num_train=9,
    num_test=3,
    num_rejected=0,
    num_shards=3,
    test_fraction=0.25,
    fingerprint="f",
    license="CC0-1.0",
    source="embedded",
    sketch_detector="opencv",
    sketch_precision="float32",
    color_segments="labels",
    eyes="labels",
    hair="labels",
    preparation={},
)
"""What `dataset.json` of a small prepared dataset may say."""


def maps_of(config: Config) -> dict[str, NDArray[np.uint8]]:
    """Return black maps of one image, as a registered model takes them."""
    size = config.data.size_px
    shapes = (("image", 3), ("mask", 1), ("sketch", 1), ("color", 3))
    return {name: np.zeros((1, size, size, channels), np.uint8) for name, channels in shapes}
