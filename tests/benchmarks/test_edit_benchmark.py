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
    most = {"float32": 1, "bfloat16": 4, "int8": 8}
    floats = ["float32", "bfloat16"] if has_bfloat16(torch.device("cpu")) else ["float32"]
    precisions = {"torch": floats, "openvino": [*floats, "int8"]}
    names = [(size, runtime, one) for size in (16, 32) for runtime, kinds in precisions.items() for one in kinds]
    assert [(one["size_px"], one["runtime"], one["precision"]) for one in found["edits"]] == names
    for one in found["edits"]:
        assert one["milliseconds"] > 0 and one["max_difference"] <= most[one["precision"]]
    assert [one["ratio"] for one in found["edits"] if one["runtime"] == "torch"][:: len(floats)] == [1.0, 1.0]
    assert found["threads"] == torch.get_num_threads()
