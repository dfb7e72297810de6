"""The benchmark of very many images measures what it says, and keeps nothing."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from scfegan_ray.benchmarks import rows
from scfegan_ray.config import Config


def test_driver_and_worker_are_measured(tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = rows.run(replace(tiny, data=replace(tiny.data, num_embedded=2_500)))
    assert found["images"] == 2_500
    assert 0.0 < found["driver"]["peak_gb"] < 2.0 and found["driver"]["prepare_seconds"] > 0.0
    worker = found["worker"]
    assert worker["ready_seconds"] >= 0.0 and worker["memory_gb"].keys() == {"1000", "20000"}
    assert not list(tmp_path.glob("scfegan-benchmark-*"))
