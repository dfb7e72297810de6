"""The fast update and the one written straight from the paper do the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from updates import FEATURES, make_batch, step, without_norms

from scfegan_ray.benchmarks.plain import PlainGenerator, PlainStep
from scfegan_ray.config import Config
from scfegan_ray.training.state import TrainingState


@pytest.mark.parametrize(
    "choices",
    [
        {"gradient_penalty_reduction": "mean", "real_score_penalty_in": "discriminator"},
        {"gradient_penalty_reduction": "mean", "real_score_penalty_in": "generator"},
        {"gradient_penalty_reduction": "sum", "real_score_penalty_in": "discriminator"},
        {"gradient_penalty_reduction": "sum", "real_score_penalty_in": "generator"},
        {"gradient_penalty_reduction": "root"},
        {"total_variation_region": "hole"},
        {"total_variation_region": "image"},
        {"feature_scale": "caffe"},
        {"feature_scale": "caffe", "total_variation_region": "image", "gradient_penalty_reduction": "sum"},
    ],
    ids=lambda choices: "-".join(choices.values()),
)
def test_both_updates_agree(tiny: Config, choices: dict[str, Any]) -> None:
    losses = replace(tiny.losses, **choices)
    config = replace(tiny, losses=losses)
    state = TrainingState.build(config)
    batch, _ = make_batch()
    for _ in range(50):  # more power iterations must change nothing
        state.discriminator.advance_spectral_norm()
    plain = PlainStep(state, FEATURES, config.losses, config.optimization)
    for seed in range(3):
        expected = plain(*make_batch(seed))
        parts = without_norms(step(state, config, seed))
        assert parts.keys() == expected.keys()
        for name, value in expected.items():
            assert float(parts[name]) == pytest.approx(float(value), rel=1e-3, abs=1e-3), (seed, name)
    packed = batch.generator_input()
    with torch.no_grad():
        assert torch.allclose(state.generator(packed), plain.generator(packed), atol=1e-3)


def test_plain_generator_is_the_generator(tiny: Config) -> None:
    state = TrainingState.build(tiny)
    packed = make_batch()[0].generator_input()
    with torch.no_grad():
        assert torch.allclose(state.generator(packed), PlainGenerator(state.generator)(packed), atol=1e-5)
