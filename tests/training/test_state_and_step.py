"""One update and the state it changes, on the CPU without Ray."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from updates import FEATURES, cut, make_batch, step, update, without_norms

from scfegan_ray import losses
from scfegan_ray.config import Config, LossConfig, OptimizationConfig
from scfegan_ray.training import state as states
from scfegan_ray.training.state import TrainingState
from scfegan_ray.training.step import Pass


def weights(state: TrainingState, name: str) -> dict[str, torch.Tensor]:
    return {key: value.detach().clone() for key, value in getattr(state, name).named_parameters()}


def gradients(state: TrainingState) -> dict[str, torch.Tensor]:
    """Return what both optimizers were given last."""
    found = {}
    for name in ("generator", "discriminator"):
        for key, parameter in getattr(state, name).named_parameters():
            assert parameter.grad is not None, key
            found[f"{name}.{key}"] = parameter.grad
    return found


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def assert_near(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Compare up to the order in which float32 sums are taken, each tensor on its own scale."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # Where terms cancel, as at the discriminator's last bias, only their rounding is left.
        error = float((found[name] - value).norm())
        assert error < 2e-4 * float(value.norm()) + 2e-7, name


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
        "generator/gradient_norm",
        "generator/per_pixel",
        "generator/perceptual",
        "generator/style_generated",
        "generator/style_composite",
        "generator/total_variation",
        "generator/adversarial",
        "discriminator/total",
        "discriminator/gradient_norm",
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


@pytest.mark.parametrize("keep_graph", [True, False])
@pytest.mark.parametrize("sizes", [(1, 3), (2, 2), (1, 1, 1, 1)])
def test_passes_add_up_to_one_update(tiny: Config, sizes: tuple[int, ...], keep_graph: bool) -> None:
    whole, cut_up = TrainingState.build(tiny), TrainingState.build(tiny)
    for optimizer in (
        o for state in (whole, cut_up) for o in (state.generator_optimizer, state.discriminator_optimizer)
    ):
        # Adam's first step is as long as the rate for the smallest gradient, whose sign is a matter of rounding.
        optimizer.param_groups[0]["eps"] = 1e-4
    batch, interpolation = make_batch(number=4)
    expected = update(whole, tiny, [Pass(batch, interpolation)])
    found = update(cut_up, tiny, cut(batch, interpolation, *sizes), keep_graph=keep_graph)
    assert_near(found, expected)
    assert_near(gradients(cut_up), gradients(whole))
    for name in ("generator", "discriminator"):
        for key, value in weights(whole, name).items():
            torch.testing.assert_close(weights(cut_up, name)[key], value, rtol=0, atol=1e-5)


def test_a_second_way_through_the_generator_changes_nothing(tiny: Config) -> None:
    once, twice = TrainingState.build(tiny), TrainingState.build(tiny)
    expected = step(once, tiny)
    assert same(step(twice, tiny, keep_graph=False), expected)
    assert once.weights_sha256() == twice.weights_sha256()


@pytest.mark.parametrize("shares", [(3, 1), (1, 1, 2)])
def test_images_count_the_same_whatever_the_workers_shares(tiny: Config, shares: tuple[int, ...]) -> None:
    def at_rest() -> TrainingState:
        state = TrainingState.build(tiny)
        for optimizer in (state.generator_optimizer, state.discriminator_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = 0.0  # DDP would average before the step
        return state

    alone, workers = at_rest(), [at_rest() for _ in shares]
    batch, interpolation = make_batch(number=4)
    expected = update(alone, tiny, [Pass(batch, interpolation)])
    parts = cut(batch, interpolation, *shares)
    found = [
        update(state, tiny, [part], images_per_worker=4 / len(shares))
        for state, part in zip(workers, parts, strict=True)
    ]

    def mean(values: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {name: torch.stack([one[name] for one in values]).mean(0) for name in values[0]}

    assert_near(mean([gradients(state) for state in workers]), gradients(alone))
    # The norm is of the averaged gradient, which these workers do not have.
    assert_near(without_norms(mean(found)), without_norms(expected))


def moments_of(state: TrainingState, name: str) -> list[torch.Tensor]:
    values = getattr(state, f"{name}_optimizer").state_dict()["state"].values()
    return [one.clone() for of_one in values for one in of_one.values()]


@pytest.mark.parametrize("refused", ["discriminator", "generator"])
def test_refused_update_leaves_weights_and_moments(tiny: Config, refused: str) -> None:
    state = TrainingState.build(tiny)
    step(state, tiny)
    before = copy.deepcopy(state)
    untouched = ("discriminator", "generator") if refused == "discriminator" else ("generator",)
    asked = []

    def refuses(name: str, loss: torch.Tensor, gradient_norm: torch.Tensor) -> torch.Tensor:
        asked.append(name)
        return torch.tensor(float(name in untouched))

    update(state, tiny, [Pass(*make_batch(1))], refuses=refuses)
    assert asked == ["discriminator", "generator"]
    for name in asked:
        assert same(weights(state, name), weights(before, name)) == (name in untouched), name
        then, now = moments_of(before, name), moments_of(state, name)
        assert all(torch.equal(a, b) for a, b in zip(then, now, strict=True)) == (name in untouched)
        steps = {
            float(moments["step"]) for moments in getattr(state, f"{name}_optimizer").state_dict()["state"].values()
        }
        assert steps == {1.0 if name in untouched else 2.0}
    update(state, tiny, [Pass(*make_batch(2))])
    for name in asked:
        assert not same(weights(state, name), weights(before, name)), "training goes on"


def test_what_is_decided_about_is_what_is_reported(tiny: Config) -> None:
    state = TrainingState.build(tiny)
    seen = {}

    def refuses(name: str, loss: torch.Tensor, gradient_norm: torch.Tensor) -> None:
        seen[f"{name}/total"], seen[f"{name}/gradient_norm"] = loss, gradient_norm

    values = step(state, tiny, refuses=refuses)
    assert {name: float(values[name]) for name in seen} == {name: float(value) for name, value in seen.items()}
    found = gradients(state)
    for name in ("generator", "discriminator"):
        norm = torch.cat([g.flatten() for key, g in found.items() if key.startswith(f"{name}.")]).norm()
        assert float(values[f"{name}/gradient_norm"]) == pytest.approx(float(norm), rel=1e-5)


def test_sentinel_keeps_damaged_images_out_of_the_weights(tiny: Config) -> None:
    state = TrainingState.build(tiny)
    step(state, tiny)
    before = copy.deepcopy(state)

    def watched(part: Pass) -> str:
        update(state, tiny, [part], refuses=state.sentinel.refuses)
        accepted, verdict = state.sentinel.conclude()
        state.images_seen += 400
        state.update_ema(100.0, 4, accepted)
        return state.sentinel.read(verdict.tolist()).reason

    batch, interpolation = make_batch(1)
    batch.ground_truth[0, 0, 0, 0] = float("nan")
    assert watched(Pass(batch, interpolation)) == "the discriminator's loss is nan"
    for name in ("generator", "discriminator", "ema"):
        assert same(weights(state, name), weights(before, name)), name
    for name in ("generator", "discriminator"):
        for a, b in zip(moments_of(before, name), moments_of(state, name), strict=True):
            assert torch.equal(a, b)
    assert watched(Pass(*make_batch(2))) == ""
    assert not same(weights(state, "ema"), weights(before, "ema"))
    assert all(
        value.isfinite().all() for network in state.networks().values() for value in network.state_dict().values()
    )


@pytest.mark.parametrize("penalty_in", ["discriminator", "generator"])
def test_gradient_norms_are_those_of_the_weighted_terms(tiny: Config, penalty_in: str) -> None:
    config = replace(tiny, losses=replace(tiny.losses, real_score_penalty_in=penalty_in))
    state, (batch, interpolation) = TrainingState.build(config), make_batch()
    # Refused, so that both networks stay as they were when the norms were taken.
    values = update(
        state,
        config,
        [Pass(batch, interpolation)],
        with_gradient_norms=True,
        refuses=lambda name, loss, norm: torch.tensor(float(name == "generator")),
    )
    generated = state.generator(batch.generator_input()).detach().requires_grad_(True)
    composite = batch.composite(generated)
    of_generated, of_composite, of_truth = (FEATURES(x) for x in (generated, composite, batch.ground_truth))
    weighted = {
        "perceptual": 0.05 * (losses.perceptual(of_generated, of_truth) + losses.perceptual(of_composite, of_truth)),
        "style_generated": 120.0 * losses.style(losses.gram(of_generated), losses.gram(of_truth)),
        "style_composite": 120.0 * losses.style(losses.gram(of_composite), losses.gram(of_truth)),
        "total_variation": 0.1 * losses.total_variation(composite, batch.mask),
        "adversarial": -0.001 * state.discriminator(composite, batch.conditions()).mean(),
    }
    expected = {
        name: float(torch.autograd.grad(term, generated, retain_graph=True)[0].norm())
        for name, term in weighted.items()
    }
    # By hand: each of N elements pulls with 1 / N, those of the hole with 6 / N.
    pull = (1 + 5 * batch.mask).expand_as(generated) / generated.numel()
    expected["per_pixel"] = float(pull.norm())
    if penalty_in == "generator":
        expected["real_score_penalty"] = 0.0
    found = {name: float(value) for name, value in values.items() if name.startswith("gradient_norm/")}
    assert found == pytest.approx({f"gradient_norm/{name}": value for name, value in expected.items()}, rel=1e-4)


def test_gradient_norms_change_no_update(tiny: Config) -> None:
    plain, measured = TrainingState.build(tiny), TrainingState.build(tiny)
    values, more = step(plain, tiny), step(measured, tiny, with_gradient_norms=True)
    assert same(values, {name: value for name, value in more.items() if not name.startswith("gradient_norm/")})
    assert plain.weights_sha256() == measured.weights_sha256()


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
    state.sentinel.rate_scale = 0.25
    assert state.set_learning_rates(config, 100) == pytest.approx((1.25e-4, 2.5e-4))
    assert state.generator_optimizer.param_groups[0]["lr"] == pytest.approx(1.25e-4)
