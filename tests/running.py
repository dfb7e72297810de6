"""Runs jobs as a user does, and pieces of code, in processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PATIENCE_SECONDS = 180.0

TINY_ARGUMENTS = shlex.split("""
    --data.num-embedded 12 --data.size-px 32 --data.test-fraction 0.25 --data.shard-images 4
    --data.sketch.detector opencv --losses.features random
    --model.base-channels 4 --model.num-downsamples 2
    --model.discriminator-base-channels 4 --model.discriminator-num-layers 2
    --train.images 16 --train.batch-size 4 --train.log-every-images 4 --train.checkpoint-every-images 8
    --train.gradient-norms-every-images 8
    --optimization.final-rate-fraction 1
    --train.precision float32 --evaluation.num-images 2 --evaluation.grid-images 2
""")

LONG_ARGUMENTS = (
    *TINY_ARGUMENTS,
    *("--train.images", "480", "--train.checkpoint-every-images", "120", "--train.checkpoint-every-seconds", "0.5"),
    *("--train.checkpoints-to-keep", "3", "--train.max-failures", "3", "--train.log-every-images", "40"),
    *("--train.threads-per-worker", "1"),
)


@dataclass(frozen=True)
class Run:
    """A training that came to its end: where it ran, its last line, and what it said."""

    folder: Path
    result: dict[str, Any]
    log: str


def start(
    job: str,
    *arguments: str,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
    python: str = sys.executable,
) -> subprocess.Popen[str]:
    with contextlib.ExitStack() as files:
        # A pipe that nobody reads would hold up a job that has much to say.
        stderr = files.enter_context(log.open("a")) if log else subprocess.PIPE
        return subprocess.Popen(
            [python, str(ROOT / "jobs" / f"{job}.py"), *arguments],
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=os.environ | {"PYTHONWARNINGS": "ignore"} | dict(environment or {}),
        )


def run(
    job: str,
    *arguments: str,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    python: str = sys.executable,
) -> subprocess.CompletedProcess[str]:
    with start(job, *arguments, cwd=cwd, environment=environment, python=python) as process:
        try:
            out, log = process.communicate(timeout=300)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, log)


def run_code(code: str, cwd: Path, environment: Mapping[str, str] | None = None, seconds: float = 120.0) -> str:
    """Run Python code in a process of its own; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=seconds,
        env=os.environ | dict(environment or {}),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def result_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr[-3000:]
    [line] = done.stdout.splitlines()
    values: dict[str, Any] = json.loads(line)
    return values


def wait_until(what: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            raise TimeoutError(f"it does not hold after {seconds:g} s")
        time.sleep(0.05)


def wait_for(what: Callable[[], object], process: subprocess.Popen[str], log: Path) -> None:
    """Wait until something holds, while a process goes on."""

    def holds() -> object:
        found = what()
        assert found or process.poll() is None, log.read_text()[-3000:]
        return found

    try:
        wait_until(holds)
    except TimeoutError:
        process.kill()
        raise AssertionError(log.read_text()[-3000:]) from None


@contextlib.contextmanager
def folder_for_ray() -> Iterator[str]:
    """Give a folder for a Ray cluster that jobs join.

    Of its own, so that no address of a dead head is left where other tests look; short, for Ray's sockets.
    """
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield folder


def positions(folder: Path) -> list[int]:
    """Return where there are checkpoints."""
    return sorted(int(meta.parent.name[-10:]) for meta in folder.glob("checkpoint-*/meta.json"))


def descendants(process: int) -> list[int]:
    """Return a process and all that it has started, directly or not."""
    children = subprocess.run(["pgrep", "-P", str(process)], capture_output=True, text=True, check=False)
    return [process, *(one for child in children.stdout.split() for one in descendants(int(child)))]


def is_running(process: int) -> bool:
    """Tell whether there is a process that has not ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def terminate_group(process: int) -> None:
    """Send SIGTERM as `timeout` does: to a process and to what it has started that shares its process group."""
    group = os.getpgid(process)
    for one in descendants(process):
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(one) == group:
                os.kill(one, signal.SIGTERM)


def kill(processes: list[int]) -> None:
    """Kill processes, some of which may have ended."""
    for process in processes:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue
