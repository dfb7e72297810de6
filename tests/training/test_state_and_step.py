"""One update and the state it changes, on the CPU without Ray."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from updates import step

from scfegan_ray.config import Config, LossConfig, OptimizationConfig
from scfegan_ray.training import state as states
from scfegan_ray.training.state import TrainingState


def test_weights_come_from_the_seed(tiny: Config) -> None:
    first = TrainingState.build(tiny)
    torch.rand(5)
    assert TrainingState.build(tiny).weights_sha256() == first.weights_sha256()
    assert TrainingState.build(replace(tiny, seed=1)).weights_sha256() != first.weights_sha256()


def test_building_leaves_the_global_generator_alone(tiny: Config) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    TrainingState.build(tiny)
    assert torch.equal(torch.rand(3), expected)


def test_digest_covers_all_three_networks(tiny: Config) -> None:
    state = TrainingState.build(tiny)
    digests = {state.weights_sha256()}
    for network in (state.generator, state.discriminator, state.ema):
        with torch.no_grad():
            next(network.parameters()).view(-1)[0] += 1.0
        digests.add(state.weights_sha256())
    assert len(digests) == 4


def test_step_changes_both_networks_and_names_every_part(tiny: Config) -> None:
    state = TrainingState.build(tiny)
    before = copy.deepcopy(state)
    parts = step(state, tiny)
    assert set(parts) == {
        "generator/total",
        "generator/per_pixel",
        "generator/perceptual",
        "generator/style_generated",
        "generator/style_composite",
        "generator/total_variation",
        "generator/adversarial",
        "discriminator/total",
        "discriminator/real_scores",
        "discriminator/fake_scores",
        "discriminator/gradient_penalty",
        "discriminator/real_score_penalty",
    }
    assert all(torch.isfinite(value) for value in parts.values())
    for name in ("generator", "discriminator"):
        old, new = getattr(before, name).parameters(), getattr(state, name).parameters()
        assert any(not torch.equal(a, b) for a, b in zip(old, new, strict=True)), name
    assert all(p.requires_grad for p in state.discriminator.parameters())


def test_generator_total_is_the_weighted_sum(tiny: Config) -> None:
    parts = {name: float(value) for name, value in step(TrainingState.build(tiny), tiny).items()}
    losses = tiny.losses
    expected = (
        parts["generator/per_pixel"]
        + losses.perceptual * parts["generator/perceptual"]
        + losses.style * (parts["generator/style_generated"] + parts["generator/style_composite"])
        + losses.total_variation * parts["generator/total_variation"]
        + losses.adversarial * parts["generator/adversarial"]
    )
    assert parts["generator/total"] == pytest.approx(expected, rel=1e-5)


def test_real_score_penalty_may_live_in_the_generator(tiny: Config) -> None:
    config = replace(tiny, losses=LossConfig(features="random", real_score_penalty_in="generator"))
    parts = step(TrainingState.build(config), config)
    assert "generator/real_score_penalty" in parts
    assert "discriminator/real_score_penalty" not in parts


def test_training_learns_one_batch(tiny: Config) -> None:
    config = replace(
        tiny,
        optimization=OptimizationConfig(generator_learning_rate=3e-3),
        losses=LossConfig(features="random", style=0.0, perceptual=0.0),
    )
    state = TrainingState.build(config)
    per_pixel = [float(step(state, config)["generator/per_pixel"]) for _ in range(30)]
    assert per_pixel[-1] < 0.85 * per_pixel[0]


def test_bfloat16_stays_near_float32(tiny: Config) -> None:
    full = step(TrainingState.build(tiny), tiny)
    reduced = step(TrainingState.build(tiny), tiny, precision=torch.bfloat16)
    for name, value in full.items():
        assert float(reduced[name]) == pytest.approx(float(value), rel=0.03, abs=3e-3), name


def test_average_halves_the_past_after_its_half_life(tiny: Config) -> None:
    state = TrainingState.build(tiny)
    state.images_seen = 1_000_000
    average, value = next(state.ema.parameters()), next(state.generator.parameters())
    with torch.no_grad():
        average.zero_()
        value.fill_(1.0)
    for _ in range(10):
        state.update_ema(half_life_images=100.0, batch_size=10)
    assert average.flatten()[0].item() == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize(("half_life", "images_seen"), [(0.0, 1000), (1000.0, 0)])
def test_average_is_the_generator_at_first_or_when_off(tiny: Config, half_life: float, images_seen: int) -> None:
    state = TrainingState.build(tiny)
    state.images_seen = images_seen
    with torch.no_grad():
        next(state.generator.parameters()).fill_(3.0)
    state.update_ema(half_life, 4)
    assert torch.equal(next(state.ema.parameters()), next(state.generator.parameters()))


def test_rate_rises_and_falls() -> None:
    config = OptimizationConfig(warmup_images=99, final_rate_fraction=0.1)
    rates = [states.rate_fraction(config, seen, 1099) for seen in (0, 49, 99, 599, 1099, 5000)]
    assert rates == pytest.approx([0.01, 0.5, 1.0, 0.55, 0.1, 0.1])
    assert states.rate_fraction(OptimizationConfig(), 12345, 100) == 1.0


def test_rates_reach_the_optimizers(tiny: Config) -> None:
    state = TrainingState.build(tiny)
    config = OptimizationConfig(generator_learning_rate=1e-3, discriminator_learning_rate=2e-3, final_rate_fraction=0.5)
    state.images_seen = 100
    assert state.set_learning_rates(config, 100) == pytest.approx((5e-4, 1e-3))
    assert state.generator_optimizer.param_groups[0]["lr"] == pytest.approx(5e-4)
    assert state.discriminator_optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)
