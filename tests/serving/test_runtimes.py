"""What needs OpenVINO, in processes of its own.

In one process with many other tests, some tests after OpenVINO's, that process ended by a segmentation fault in one of
two runs, and nobody knows yet why; alone they never did.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("file", ["serving/alone_runtimes.py", "benchmarks/alone_edit_benchmark.py"])
def test_openvino_alone(file: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "base")]
    done = subprocess.run([*command, str(TESTS / file)], capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
