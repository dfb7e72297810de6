"""The fast update and the one written straight from the paper do the same."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from updates import FEATURES, make_batch, step, without_norms

from scfegan_ray.config import Config
from scfegan_ray.data import pipeline
from scfegan_ray.training import benchmark, launch
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


def test_loops_are_compared_within_their_round(tiny: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions, trained = [], []
    processes = iter([40.0, 30.0, 20.0, 20.0])  # alone and beside Ray, for each of two rounds
    workers = iter([30.0, 15.0, 10.0, 10.0])  # one and two

    @contextlib.contextmanager
    def session() -> Iterator[None]:
        sessions.append("Ray runs")
        yield
        sessions.pop()

    def alone(config: Config) -> float:
        assert config.data.prepared == "somewhere"
        return next(processes)

    def train(config: Config, register: bool) -> SimpleNamespace:
        assert sessions and not register and Path(config.storage.path).is_dir()
        trained.append(config)
        return SimpleNamespace(images_per_second=next(workers))

    monkeypatch.setattr(benchmark, "_ROUNDS", 2)
    monkeypatch.setattr(benchmark, "_updates_in_a_process", alone)
    monkeypatch.setattr(pipeline, "ensure_prepared", lambda config: "somewhere")
    monkeypatch.setattr(launch, "train", train)
    assert benchmark.run_loops(tiny, session=session) == {
        "images_per_second": {"alone": 30.0, "beside_ray": 25.0, "one_worker": 20.0, "two_workers": 12.5},
        "ray_share": (30 / 40 + 10 / 20) / 2,
        "loop_share": (30 / 30 + 10 / 20) / 2,
        "workers_share": (15 / 30 + 10 / 10) / 2,
    }
    assert [config.train.num_workers for config in trained] == [1, 2, 1, 2]
    assert len({config.run_name for config in trained}) == 4, "none resumes another"
    assert all(config.train.images % tiny.train.batch_size == 0 for config in trained)
    assert not Path(trained[0].storage.path).exists(), "nothing is kept"


def test_updates_alone_are_counted(tiny: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "_LOOP_SECONDS", 0.0)
    clock = iter([100.0, 102.0, 104.0])
    monkeypatch.setattr(benchmark, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    done = benchmark._FEWEST_UPDATES * tiny.train.batch_size
    assert benchmark.updates_alone(json.dumps(tiny.to_dict())) == done / 4.0
