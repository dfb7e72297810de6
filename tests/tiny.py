"""A run small enough for tests: no network, no pretrained weights, seconds."""

from __future__ import annotations

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

TINY = Config(
    data=DataConfig(
        num_embedded=12, size_px=32, test_fraction=0.25, shard_images=4, sketch=SketchConfig(detector="opencv")
    ),
    model=ModelConfig(base_channels=4, num_downsamples=2, discriminator_base_channels=4, discriminator_num_layers=2),
    losses=LossConfig(features="random"),
    train=TrainConfig(images=16, batch_size=4, log_every_images=4, checkpoint_every_images=8, precision="float32"),
    evaluation=EvaluationConfig(num_images=2, grid_images=2, batch_size=2),
    tune=TuneConfig(num_trials=2, reports=2),
)
