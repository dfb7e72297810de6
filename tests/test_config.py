"""Settings: round trip, checks that name the cure, presets."""

from __future__ import annotations

import json

import pytest

from scfegan_ray import config as configuration
from scfegan_ray.config import (
    Config,
    DataConfig,
    LossConfig,
    MaskConfig,
    ModelConfig,
    ParserConfig,
    SentinelConfig,
    StorageConfig,
    TrackingConfig,
    TrainConfig,
)
from scfegan_ray.errors import ConfigError
from scfegan_ray.presets import PRESETS, preset


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_survives_json(name: str) -> None:
    config = preset(name)
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_parser_survives_json() -> None:
    parser = ParserConfig(
        model="s3://models/parser.onnx",
        classes="bisenet",
        channel_order="bgr",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 0.5, 2.0),
    )
    config = Config(data=DataConfig(parser=parser, eyes=(0.3, 0.4, 0.7, 0.5)))
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_defaults_are_the_published_ones() -> None:
    config = Config()
    losses = config.losses
    assert (losses.perceptual, losses.adversarial, losses.style) == (0.05, 0.001, 120.0)
    assert (losses.total_variation, losses.real_score_penalty, losses.gradient_penalty) == (0.1, 0.001, 10.0)
    assert (config.data.size_px, config.model.base_channels, config.model.num_downsamples) == (512, 64, 7)
    assert preset("paper_512").losses == losses
    assert preset("paper_512").model == config.model


@pytest.mark.parametrize(
    ("name", "detector", "features"),
    [("quickstart", "auto", "auto"), ("small_256", "hed", "hed"), ("paper_512", "hed", "hed")],
)
def test_only_the_quickstart_makes_do_without_weights(name: str, detector: str, features: str) -> None:
    config = preset(name)
    assert (config.data.sketch.detector, config.losses.features) == (detector, features)


def test_unknown_key_is_named() -> None:
    values = Config().to_dict()
    values["losses"]["styl"] = 1.0
    with pytest.raises(ConfigError, match=r"losses\.styl"):
        Config.from_dict(values)


def test_retired_setting_is_dropped_where_it_was_and_unknown_elsewhere() -> None:
    values = Config().to_dict()
    values["train"]["loader_threads"] = 2
    assert Config.from_dict(values) == Config()
    values["data"]["loader_threads"] = 2
    with pytest.raises(ConfigError, match=r"unknown setting data\.loader_threads"):
        Config.from_dict(values)


def test_section_must_be_a_mapping() -> None:
    with pytest.raises(ConfigError, match="losses is 3"):
        Config.from_dict({"losses": 3})


def test_unknown_preset_lists_those_that_exist() -> None:
    with pytest.raises(ConfigError, match="quickstart, small_256, paper_512"):
        preset("huge")


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: DataConfig(align="ffhq"), "data.align is 'ffhq'; give one of auto, celeba_hq, none"),  # type: ignore
        (lambda: Config(data=DataConfig(size_px=100)), "data.size_px 100 is not divisible by"),
        (
            lambda: TrainConfig(batch_size=3, num_workers=4),
            "train.batch_size 3 cannot be shared by train.num_workers 4",
        ),
        (lambda: TrainConfig(num_workers=2, min_workers=3), "train.min_workers is 3; give 0 to train.num_workers = 2"),
        (lambda: TrainConfig(min_workers=-1), "train.min_workers is -1"),
        (lambda: TrainConfig(max_images_per_pass=-1), "train.max_images_per_pass is -1"),
        (lambda: TrainConfig(gradient_norms_every_images=-1), "train.gradient_norms_every_images is -1"),
        (lambda: TrainConfig(checkpoint_every_seconds=0.0), "train.checkpoint_every_seconds is 0.0"),
        (lambda: TrainConfig(loader_processes=-1), "train.loader_processes is -1; give 0 or more"),
        (lambda: TrainConfig(checkpoints_to_keep=0), "train.checkpoints_to_keep is 0"),
        (lambda: SentinelConfig(explosion_factor=1.0), "sentinel.explosion_factor is 1.0; give a value above 1"),
        (lambda: SentinelConfig(max_skipped=0), "sentinel.max_skipped is 0"),
        (lambda: SentinelConfig(rate_fraction=0.0), "sentinel.rate_fraction is 0.0"),
        (lambda: SentinelConfig(rate_fraction=1.1), "sentinel.rate_fraction is 1.1"),
        (lambda: SentinelConfig(max_rollbacks=-1), "sentinel.max_rollbacks is -1"),
        (lambda: StorageConfig(retry_seconds=-1.0), "storage.retry_seconds is -1.0"),
        (lambda: TrackingConfig(patience_seconds=-1.0), "tracking.patience_seconds is -1.0"),
        (lambda: LossConfig(real_score_penalty_in="both"), "give one of discriminator, generator"),  # type: ignore[arg-type]
        (lambda: LossConfig(gradient_penalty_reduction="max"), "losses.gradient_penalty_reduction is 'max'"),  # type: ignore[arg-type]
        (lambda: LossConfig(total_variation_region="face"), "give one of dilated_hole, hole, image"),  # type: ignore[arg-type]
        (lambda: LossConfig(feature_scale="torch"), "losses.feature_scale is 'torch'; give one of imagenet, caffe"),  # type: ignore[arg-type]
        (lambda: LossConfig(total_variation=float("nan")), "losses.total_variation is nan"),
        (lambda: TrainConfig(images=0), "train.images is 0"),
        (lambda: LossConfig(style=-1.0), "losses.style is -1.0"),
        (lambda: MaskConfig(hair_probability=1.5), "masks.hair_probability is 1.5"),
        (lambda: MaskConfig(min_hole_area=0.6), "masks.min_hole_area 0.6"),
        (lambda: ModelConfig(base_channels=0), "model.base_channels is 0"),
        (lambda: ModelConfig(output="both"), "model.output is 'both'; give direct or residual"),
        (lambda: Config(run_name="a/b"), "run_name is 'a/b'"),
        (lambda: Config(run_name="prepared"), "run_name is 'prepared'"),
        (lambda: Config(seed=-1), "seed is -1"),
        (lambda: ParserConfig(classes=" "), "data.parser.classes is empty; give celebamask, bisenet"),
        (lambda: ParserConfig(size_px=0), "data.parser.size_px is 0"),
        (lambda: ParserConfig(mean=(0.5,)), "data.parser.mean has 1 values; give 3"),  # type: ignore[arg-type]
        (lambda: ParserConfig(std=(1.0, 1.0, 0.0)), "a value of data.parser.std is 0.0"),
        (lambda: DataConfig(eyes=(0.4, 0.5, 0.6)), "data.eyes has 3 values; give 4"),  # type: ignore[arg-type]
        (lambda: DataConfig(eyes=(0.4, 0.5, 0.6, 1.5)), "a value of data.eyes is 1.5"),
        (lambda: DataConfig(eyes=(0.6, 0.5, 0.4, 0.5)), "left and right are the image's: swap them"),
    ],
)
def test_bad_value_is_named(make: object, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()  # type: ignore[operator]
    assert named in str(caught.value)


def test_bounds_themselves_are_allowed() -> None:
    train = TrainConfig(num_workers=3, min_workers=3, batch_size=3, max_images_per_pass=1)
    assert TrainConfig(num_workers=3, batch_size=7).batch_size % 3, "no need to be divisible"
    sentinel = SentinelConfig(rate_fraction=1.0, max_rollbacks=0)
    config = Config(
        train=train,
        sentinel=sentinel,
        storage=StorageConfig(retry_seconds=0.0),
        tracking=TrackingConfig(patience_seconds=0.0),
    )
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_flatten_uses_dotted_names() -> None:
    flat = configuration.flatten(Config().to_dict())
    assert flat["losses.style"] == 120.0
    assert flat["data.sketch.detector"] == "auto"
