"""Named starting points; each says only what differs from the published set-up that `Config` defaults to.

The small ones take what makes a fill look right at the hole's border at 64 px (README, "The border of the hole"); that
it does so at 256 px, too, is a guess. `paper_512` is as published.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from scfegan_ray.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    LossConfig,
    ModelConfig,
    OptimizationConfig,
    SketchConfig,
    TrainConfig,
)
from scfegan_ray.errors import ConfigError

_QUICKSTART = Config(
    data=DataConfig(num_embedded=224, size_px=64, test_fraction=1 / 8, shard_images=16),
    model=ModelConfig(
        base_channels=24,
        num_downsamples=4,
        output="residual",
        discriminator_base_channels=16,
        discriminator_num_layers=4,
    ),
    losses=LossConfig(border=6.0, features="auto"),
    optimization=OptimizationConfig(
        generator_learning_rate=2e-3,
        discriminator_learning_rate=4e-4,
        final_rate_fraction=0.1,
        ema_half_life_images=500.0,
    ),
    train=TrainConfig(batch_size=4, images=3_200, log_every_images=120, checkpoint_every_images=1_600),
    evaluation=EvaluationConfig(num_images=24),
)
"""Embedded faces, two CPU workers, minutes: shows the whole path and a model that visibly follows strokes."""

_SKETCH = SketchConfig(detector="hed")
"""Days of training deserve the real thing or a refusal: plain gradients must be asked for by name."""

_SMALL_256 = Config(
    data=DataConfig(size_px=256, sketch=_SKETCH),
    model=ModelConfig(base_channels=32, num_downsamples=6, output="residual"),
    losses=LossConfig(border=6.0),
    optimization=OptimizationConfig(generator_learning_rate=1e-3, warmup_images=1_000, final_rate_fraction=0.02),
    train=TrainConfig(
        use_gpu=True,
        num_workers=1,
        cpus_per_worker=4,
        loader_processes=2,
        images=500_000,
        checkpoint_every_images=20_000,
    ),
)
"""One GPU and a folder of photographs: a usable editor in a day."""

_PAPER_512 = Config(
    data=DataConfig(sketch=_SKETCH),
    optimization=OptimizationConfig(generator_learning_rate=1.4e-4, discriminator_learning_rate=5.6e-4),
    train=TrainConfig(
        use_gpu=True,
        num_workers=4,
        cpus_per_worker=8,
        loader_processes=4,
        batch_size=64,
        images=3_000_000,
        log_every_images=3_200,
    ),
)
"""The published network at the published size.

Sixteen images a GPU: an update of any number of images takes the same thousand calls, which must not be what a GPU
waits for. By the sizes of its tensors it takes 17 GB in bfloat16, weights and moments included; with less, give
--train.max-images-per-pass 8. The default rates belong to half that batch; Adam's grow with its root (Malladi et al.,
"On the SDEs and Scaling Rules for Adaptive Gradient Algorithms", NeurIPS 2022). Kernels lie channels last on any GPU
(`TrainingState.build`). `train.compile` is off, as no GPU has shown yet what it saves.
"""

PRESETS: Mapping[str, Config] = MappingProxyType(
    {"quickstart": _QUICKSTART, "small_256": _SMALL_256, "paper_512": _PAPER_512}
)


def preset(name: str) -> Config:
    """Return a preset.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
