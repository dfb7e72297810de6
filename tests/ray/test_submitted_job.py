"""The main job submitted to a running head, on a machine where a Ray token is lying about."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import ROOT, TINY_ARGUMENTS, descendants, folder_for_ray, kill
from servers import free_port

pytestmark = pytest.mark.ray

RAY = str(Path(sys.executable).with_name("ray"))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment of both sides, with a home folder in which an earlier `ray.init()` left its token."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("a" * 64)
    return os.environ | {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONWARNINGS": "ignore",
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": "600",  # as the README says for `ray start`
        "SCFEGAN_CACHE": str(home / "cache"),
    }


@pytest.fixture(scope="module")
def head(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    place, dashboard = tmp_path_factory.mktemp("head"), free_port()
    with folder_for_ray() as folder, (place / "log").open("w") as log:
        command = f"""
            {RAY} start --head --block --num-cpus=2 --port={free_port()} --dashboard-host=127.0.0.1
            --dashboard-port={dashboard} --dashboard-agent-listen-port={free_port()}
            --ray-client-server-port={free_port()} --object-store-memory=300000000 --temp-dir={folder}
        """
        server = subprocess.Popen(
            shlex.split(command), env=environment, stdout=log, stderr=log, start_new_session=True, cwd=place
        )
        address = f"http://127.0.0.1:{dashboard}"
        try:
            for _ in range(60):
                try:
                    urllib.request.urlopen(address, timeout=5).close()
                    break
                except (urllib.error.URLError, OSError):
                    assert server.poll() is None, (place / "log").read_text()
                    time.sleep(1)
            else:
                pytest.fail((place / "log").read_text())
            yield address
        finally:
            kill(descendants(server.pid))  # asked to end, it would take half a minute
            server.wait(60)


def test_submitted_job_does_the_same(head: str, environment: dict[str, str]) -> None:
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


def test_stopped_job_keeps_a_checkpoint_of_that_moment(head: str, environment: dict[str, str]) -> None:
    def ray_job(*arguments: str) -> str:
        done = subprocess.run(
            [RAY, "job", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return done.stdout

    goal = ["--train.images", "1000000", "--train.checkpoint-every-images", "1000000", "--run-name", "stopped"]
    command = ["python", "jobs/train.py", *TINY_ARGUMENTS, *goal, "--storage.path", "kept"]
    ray_job(
        "submit", "--address", head, "--working-dir", ".", "--no-wait", "--submission-id", "stopped", "--", *command
    )
    for _ in range(150):
        log = ray_job("logs", "--address", head, "stopped")
        if re.search(r"train \d+/1000000 images", log):
            break
        time.sleep(1)
    else:
        pytest.fail(log)
    ray_job("stop", "--address", head, "stopped")
    log = ray_job("logs", "--address", head, "stopped")
    logged = [int(images) for images in re.findall(r"train (\d+)/1000000 images", log)]
    checkpoints = Path(environment["HOME"], "kept", "stopped", "checkpoints")
    last = max(checkpoints.glob("checkpoint-*"))  # an earlier one is of the time before
    assert logged[-1] <= json.loads((last / "meta.json").read_text())["images_seen"] < 1_000_000
    assert "stopping after a last checkpoint" in log
    assert "error: interrupted; run the same command again to go on" in log
