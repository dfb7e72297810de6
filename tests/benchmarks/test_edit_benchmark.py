"""The benchmark of edits measures each runtime and precision that this machine has."""

from __future__ import annotations

import pytest
import torch

from scfegan_ray.benchmarks import edit, step
from scfegan_ray.config import Config
from scfegan_ray.precision import has_bfloat16


def test_benchmark_measures_all_that_this_machine_has(tiny: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "_REPEATS", 1)
    found = edit.run(tiny)
    precisions = ["float32", "bfloat16"] if has_bfloat16(torch.device("cpu")) else ["float32"]
    names = [(size, runtime, one) for size in (16, 32) for runtime in ("torch", "openvino") for one in precisions]
    assert [(one["size_px"], one["runtime"], one["precision"]) for one in found["edits"]] == names
    for one in found["edits"]:
        assert one["milliseconds"] > 0 and one["max_difference"] <= (1 if one["precision"] == "float32" else 4)
    assert [found["edits"][at]["ratio"] for at in (0, 2 * len(precisions))] == [1.0, 1.0]
    assert found["threads"] == torch.get_num_threads()
