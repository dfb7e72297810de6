"""What whole jobs are compared with, and the cluster that some of them join."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ray.cluster_utils import Cluster
from running import LONG_ARGUMENTS, Run, result_of, run
from servers import free_port


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Give a run of two workers that nobody disturbs, from drawn faces to a registered version."""
    folder = tmp_path_factory.mktemp("whole")
    cache = {"SCFEGAN_CACHE": str(tmp_path_factory.mktemp("cache"))}
    done = run("train", *LONG_ARGUMENTS, "--run-name", "whole", cwd=folder, environment=cache)
    return Run(folder, result_of(done), done.stderr)


@pytest.fixture
def cluster(ray_folder: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Return a cluster whose head has one CPU."""
    monkeypatch.setenv("RAY_TMPDIR", ray_folder)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):  # of jobs that earlier tests ran in this process
        monkeypatch.delenv(name, raising=False)
    # Where its usual port is taken, Ray leaves a socket open.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "dashboard_port": free_port()})
    yield cluster
    cluster.shutdown()
