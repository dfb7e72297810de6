"""The benchmark of two nodes wants a core for each."""

from __future__ import annotations

import os

import pytest

from scfegan_ray.benchmarks import scale
from scfegan_ray.cli import ray_session
from scfegan_ray.config import Config
from scfegan_ray.errors import ConfigError


def test_one_core_is_refused(tiny: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3})
    with pytest.raises(ConfigError, match="each on a core of its own: give two cores"):
        scale.run(tiny, session=ray_session)


def test_table_is_logged(caplog: pytest.LogCaptureFixture, tiny: Config) -> None:
    rates = {"one_node": 10.0, "two_nodes": 19.0, "speedup": 1.9}
    plain = rates | {"plain": 12.5, "ray_share": 0.8}
    with caplog.at_level("INFO"):
        scale._log(
            tiny, {"prepare": rates, "feed": plain, "train": plain, "eater": {"one_node": 0.31, "two_nodes": 0.02}}
        )
    assert "prepare  one node       10  two nodes       19  1.90 of one" in caplog.text
    assert "train    one node       10  two nodes       19  1.90 of one; without Ray 12.5, share 0.80" in caplog.text
    assert "waits 31 % of its time on one node, 2 % on two" in caplog.text
