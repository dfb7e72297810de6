"""The benchmarks of training give finite figures on a GPU; they are too short here to say how fast it is."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from prepared_set import write_dataset
from running import run_code

from scfegan_ray.benchmarks import feed, step
from scfegan_ray.config import Config

pytestmark = pytest.mark.gpu

RecordProperty = Callable[[str, object], None]

RUN_LOOPS = """
import json, sys
from scfegan_ray import cli
from scfegan_ray.benchmarks import ray
from scfegan_ray.config import Config
if __name__ == "__main__":
    ray._ROUNDS, ray._LOOP_SECONDS = 1, 1.0
    config = Config.from_dict(json.loads({config!r}))
    print(json.dumps(ray.run_loops(config, session=cli.ray_session)))
"""


@pytest.fixture
def config(tiny: Config, gpu: torch.device) -> Config:
    train = replace(tiny.train, use_gpu=gpu.type == "cuda", precision="auto", loader_processes=1)
    return replace(tiny, train=train)


def figures(found: Any) -> Iterator[float]:
    if isinstance(found, dict):
        for value in found.values():
            yield from figures(value)
    else:
        yield float(found)


def assert_finite(found: dict[str, Any]) -> None:
    assert found
    assert all(math.isfinite(value) for value in figures(found)), found


def test_step(config: Config, record_property: RecordProperty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "_REPEATS", 2)
    found = step.run(config)
    assert_finite(found)
    assert max(found["part_differences"]["float32"].values()) < 1e-3
    assert 0 < found["flops_per_second"] < found["peak_flops_per_second"]
    record_property("ms/update", 1000 * list(found["step_seconds"].values())[-1])
    record_property("TFLOP/s", found["flops_per_second"] / 1e12)
    record_property("MFU", found["flops_per_second"] / found["peak_flops_per_second"])


def test_feed(config: Config, tmp_path: Path, record_property: RecordProperty, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_ROUNDS", 2), ("_FEED_SECONDS", 0.1), ("_UPDATE_SECONDS", 0.0)):
        monkeypatch.setattr(feed, name, value)
    config = replace(config, data=replace(config.data, prepared=write_dataset(tmp_path / "set")))
    found = json.loads(feed.measure(json.dumps(config.to_dict())))
    assert_finite(found)
    record_property("images/s of one process", found["images_per_second"]["1"])
    record_property("cost of an update", found["update_cost"])


@pytest.mark.ray
def test_ray(config: Config, tmp_path: Path, record_property: RecordProperty) -> None:
    made = run_code(RUN_LOOPS.format(config=json.dumps(config.to_dict())), tmp_path, seconds=400.0)
    found = json.loads(made.splitlines()[-1])
    assert_finite(found)
    assert min(figures(found)) > 0
    has_two = not config.train.use_gpu or torch.cuda.device_count() > 1
    assert ("two_workers" in found["images_per_second"]) == ("workers_share" in found) == has_two
    for name, rate in found["images_per_second"].items():
        record_property(f"images/s {name}", rate)
