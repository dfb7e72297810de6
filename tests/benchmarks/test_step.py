"""The benchmark of one update and one edit measures what it names."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from scfegan_ray.benchmarks import step
from scfegan_ray.benchmarks.calls import count_update
from scfegan_ray.config import Config


def test_benchmark_measures_all_it_names(tiny: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "_REPEATS", 1)
    config = replace(tiny, train=replace(tiny.train, batch_size=2, precision="bfloat16"))
    found = step.run(config)
    assert set(found["step_seconds"]) == set(found["inference_seconds"]) == {"plain", "float32", "bfloat16"}
    assert all(seconds > 0 for seconds in found["step_seconds"].values())
    assert found["step_ratio"] == found["step_seconds"]["bfloat16"] / found["step_seconds"]["plain"]
    assert max(found["part_differences"]["float32"].values()) < 1e-3
    assert max(found["part_differences"]["bfloat16"].values()) < 2e-2
    assert found["flops_per_step"] > 0
    assert 0 < found["flops_per_second"] < found["peak_flops_per_second"]
    assert found["peak_share"] == found["flops_per_second"] / found["peak_flops_per_second"]
    assert found["calls_per_update"] == count_update(config, torch.bfloat16).total, "of tensors without memory, too"
    assert found["synchronizations_per_update"] == 0
