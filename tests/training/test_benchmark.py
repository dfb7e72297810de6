"""The fast update and the one written straight from the paper do the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from updates import FEATURES, make_batch, step, without_norms

from scfegan_ray.config import Config
from scfegan_ray.training import benchmark
from scfegan_ray.training.plain import PlainGenerator, PlainStep
from scfegan_ray.training.state import TrainingState


@pytest.mark.parametrize(
    "choices",
    [
        {"gradient_penalty_reduction": "mean", "real_score_penalty_in": "discriminator"},
        {"gradient_penalty_reduction": "mean", "real_score_penalty_in": "generator"},
        {"gradient_penalty_reduction": "sum", "real_score_penalty_in": "discriminator"},
        {"gradient_penalty_reduction": "sum", "real_score_penalty_in": "generator"},
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


def test_benchmark_measures_all_it_names(tiny: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "_REPEATS", 1)
    config = replace(tiny, train=replace(tiny.train, batch_size=2, precision="bfloat16"))
    found = benchmark.run(config)
    assert set(found["step_seconds"]) == set(found["inference_seconds"]) == {"plain", "float32", "bfloat16"}
    assert all(seconds > 0 for seconds in found["step_seconds"].values())
    assert found["step_ratio"] == found["step_seconds"]["bfloat16"] / found["step_seconds"]["plain"]
    assert max(found["part_differences"]["float32"].values()) < 1e-3
    assert max(found["part_differences"]["bfloat16"].values()) < 2e-2
    assert found["flops_per_step"] > 0
    assert 0 < found["flops_per_second"] < found["peak_flops_per_second"]
