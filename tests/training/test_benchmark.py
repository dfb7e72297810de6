"""The fast update and the one written straight from the paper do the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch

from scfegan_ray.config import Config
from scfegan_ray.images import Batch
from scfegan_ray.models.features import vgg_random
from scfegan_ray.training import benchmark
from scfegan_ray.training.plain import PlainGenerator, PlainStep
from scfegan_ray.training.state import TrainingState
from scfegan_ray.training.step import train_step


def make_batch(seed: int) -> tuple[Batch, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    mask = torch.zeros(2, 1, 32, 32)
    mask[0, :, 8:20, 8:24] = 1
    mask[1, :, 4:12, 10:31] = 1
    batch = Batch(
        ground_truth=torch.rand(2, 3, 32, 32, generator=rng) * 2 - 1,
        mask=mask,
        sketch=torch.randint(0, 2, (2, 1, 32, 32), generator=rng) * mask,
        color=(torch.rand(2, 3, 32, 32, generator=rng) * 2 - 1) * mask,
        noise=torch.randint(0, 2, (2, 1, 32, 32), generator=rng) * mask,
    )
    return batch, torch.rand(2, generator=rng)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_both_updates_agree(tiny: Config, reduction: Literal["mean", "sum"]) -> None:
    config = replace(tiny, losses=replace(tiny.losses, gradient_penalty_reduction=reduction))
    features = vgg_random()
    state = TrainingState.build(config)
    batch, interpolation = make_batch(0)
    with torch.no_grad():
        for _ in range(50):  # more power iterations must change nothing
            state.discriminator(batch.ground_truth, batch.conditions())
    plain = PlainStep(state, features, config.losses, config.optimization)
    for seed in range(3):
        batch, interpolation = make_batch(seed)
        expected = plain(
            batch.ground_truth, batch.mask, batch.sketch, batch.color, batch.noise, interpolation=interpolation
        )
        parts = train_step(
            state,
            batch,
            interpolation,
            features,
            config.losses,
            generator=state.generator,
            discriminator=state.discriminator,
        )
        assert parts.keys() == expected.keys()
        for name, value in expected.items():
            assert float(parts[name]) == pytest.approx(float(value), rel=1e-3, abs=1e-3), (seed, name)
    packed = batch.generator_input()
    with torch.no_grad():
        assert torch.allclose(state.generator(packed), plain.generator(packed), atol=1e-3)


def test_plain_generator_is_the_generator(tiny: Config) -> None:
    state = TrainingState.build(tiny)
    packed = make_batch(0)[0].generator_input()
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
