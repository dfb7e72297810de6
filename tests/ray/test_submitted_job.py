"""The main job submitted to a running head, on a machine where a Ray token is lying about."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import ROOT, descendants, kill
from servers import free_port
from test_jobs import TINY_ARGUMENTS

pytestmark = pytest.mark.ray

RAY = str(Path(sys.executable).with_name("ray"))


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Return the environment of both sides, with a home folder in which an earlier `ray.init()` left its token."""
    home = tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("a" * 64)
    return os.environ | {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONWARNINGS": "ignore",
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


@pytest.fixture
def head(environment: dict[str, str], ray_folder: str, tmp_path: Path) -> Iterator[str]:
    dashboard = free_port()
    command = f"""
        {RAY} start --head --block --num-cpus=2 --port={free_port()} --dashboard-host=127.0.0.1
        --dashboard-port={dashboard} --dashboard-agent-listen-port={free_port()} --ray-client-server-port={free_port()}
        --object-store-memory=300000000 --temp-dir={ray_folder}
    """
    with (tmp_path / "head.log").open("w") as log:
        server = subprocess.Popen(
            shlex.split(command), env=environment, stdout=log, stderr=log, start_new_session=True, cwd=tmp_path
        )
        address = f"http://127.0.0.1:{dashboard}"
        try:
            for _ in range(60):
                try:
                    urllib.request.urlopen(address, timeout=5).close()
                    break
                except (urllib.error.URLError, OSError):
                    assert server.poll() is None, (tmp_path / "head.log").read_text()
                    time.sleep(1)
            else:
                pytest.fail((tmp_path / "head.log").read_text())
            yield address
        finally:
            kill(descendants(server.pid))  # asked to end, it would take half a minute
            server.wait(60)


def test_submitted_job_does_the_same(head: str, environment: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{head}/api/jobs/", timeout=5)

    # A relative storage path would lie in the copy of the code that Ray deletes; it starts at the home folder instead.
    submit = [RAY, "job", "submit", "--address", head, "--working-dir", ".", "--"]
    done = subprocess.run(
        [*submit, "python", "jobs/train.py", *TINY_ARGUMENTS, "--run-name", "submitted", "--storage.path", "kept"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    [line] = [line for line in done.stdout.splitlines() if line.startswith('{"run_name"')]
    result = json.loads(line)
    place = Path(environment["HOME"], "kept")
    assert result["images_seen"] == 16
    assert result["model_uri"] == "models:/scfegan-generator/1"
    assert Path(result["checkpoint"], "meta.json").is_relative_to(place)
    assert Path(result["checkpoint"], "meta.json").exists()
    assert (place / "mlflow.db").exists()
