"""What whole jobs are compared with."""

from __future__ import annotations

import pytest
from running import LONG_ARGUMENTS, Run, result_of, run


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Give a run of two workers that nobody disturbs, from drawn faces to a registered version."""
    folder = tmp_path_factory.mktemp("whole")
    cache = {"SCFEGAN_CACHE": str(tmp_path_factory.mktemp("cache"))}
    done = run("train", *LONG_ARGUMENTS, "--run-name", "whole", cwd=folder, environment=cache)
    return Run(folder, result_of(done), done.stderr)
