"""Places that not every node sees are refused; several nodes stand on this machine, so a node's view is pretended."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from running import run_code

from scfegan_ray import nodes
from scfegan_ray.errors import ConfigError

TWO = [{"NodeID": name, "Alive": True} for name in ("a", "b")]


def see(monkeypatch: pytest.MonkeyPatch, there: list[dict[str, Any]]) -> list[list[str]]:
    """Let Ray have some nodes, which look from this process; return who is asked."""
    asked: list[list[str]] = []

    def ask(question: Callable[[], None], names: list[str]) -> None:
        asked.append(names)
        question()

    monkeypatch.setattr(ray, "nodes", lambda: there)
    monkeypatch.setattr(nodes, "ask", ask)
    return asked


def test_one_node_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = see(monkeypatch, [TWO[0], {"NodeID": "gone", "Alive": False}])
    with nodes.seen_by_all({"storage.path": str(tmp_path)}, {}) as landmarks:
        assert landmarks.files == () and list(tmp_path.iterdir()) == []
    assert asked == []


def test_shared_places_pass_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = see(monkeypatch, TWO)
    source = tmp_path / "faces"
    source.mkdir()
    for name in ("a.png", "b.png"):
        (source / name).touch()
    written = {"storage.path": str(tmp_path / "runs"), "tracking.uri": None, "data.prepared": "s3://lab/x"}
    with nodes.seen_by_all(written, {"data.source": str(source)}) as landmarks:
        landmarks.check()
        assert len(landmarks.files) == 1 + 3
    assert asked == [["a", "b"]]
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize("setting", ["storage.path", "data.source"])
def test_node_that_does_not_see_a_place_says_so(setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, TWO)
    place = tmp_path / "place"
    place.mkdir()
    (place / "a.png").touch()
    which = {setting: str(place)}
    written, read = (which, {}) if setting == "storage.path" else ({}, which)
    with contextlib.ExitStack() as stack:
        landmarks = stack.enter_context(nodes.seen_by_all(written, read))
        place.rename(tmp_path / "elsewhere")  # as a node with a disk of its own sees it
        with pytest.raises(ConfigError, match=rf"{setting} is on one node's own disk: node .* does not see .*s3://"):
            landmarks.check()


_APART = """
import os, subprocess, sys, tempfile
from dataclasses import replace
import ray
from ray.cluster_utils import Cluster
from scfegan_ray import nodes
from scfegan_ray.config import Config
from scfegan_ray.errors import ConfigError
from scfegan_ray.training import launch
cluster = Cluster()
cluster.add_node(num_cpus=1, include_dashboard=False, object_store_memory=10**8)
cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=10**8)
ray.init(address=cluster.address)
with nodes.seen_by_all({{"storage.path": {place!r}}}, {{}}) as landmarks:
    assert landmarks.files
    os.unlink(landmarks.files[0][0])
    try:
        nodes.ask(landmarks.check, [node["NodeID"] for node in ray.nodes()])
    except ConfigError as error:
        print(error, flush=True)
config = Config()
for use_gpu in (False, True):
    train = replace(config.train, use_gpu=use_gpu, num_workers=1)
    try:
        launch.check_resources(replace(config, train=train))
        print("fits", flush=True)
    except ConfigError as error:
        print(error, flush=True)
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.ray
def test_each_node_of_a_cluster_is_asked(tmp_path: Path) -> None:
    environment = {"RAY_TMPDIR": f"/tmp/scfegan-{os.getuid()}", "RAY_AUTH_MODE": "disabled"}
    place, cpu, gpu = run_code(_APART.format(place=str(tmp_path)), tmp_path, environment).splitlines()[-3:]
    assert place.startswith("storage.path is on one node's own disk: node ")
    assert cpu == "fits"
    if torch.cuda.is_available():
        assert gpu == "fits"
    else:
        assert re.fullmatch(r"torch \S+ sees no GPU on \S+; see with nvidia-smi .*, or give --train\.no-use-gpu", gpu)
