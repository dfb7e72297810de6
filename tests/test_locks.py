"""Locks between processes: files on this machine, leases in a real object store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import EndpointConnectionError
from running import wait_until

from scfegan_ray import locks, storage
from scfegan_ray.errors import BusyError, StorageError

HOLD = """
import logging, sys
logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
from scfegan_ray import locks
from scfegan_ray.errors import ScFeganError
locks.LEASE_SECONDS, locks._RENEW_SECONDS, locks._ASK_SECONDS = map(float, sys.argv[3:])
try:
    with locks.held(sys.argv[1], "run tiny", patience_seconds=float(sys.argv[2])) as lock:
        print("held", flush=True)
        sys.stdin.readline()
        lock.check()
except ScFeganError as error:
    print(f"{type(error).__name__}: {error}", flush=True)
"""
LEASE = ("3", "0.5", "0.2")
"""Seconds of a lease, between its renewals, and between questions about it."""


@contextmanager
def holding(
    uri: str, patience: float = 0.0, environment: Mapping[str, str] | None = None, lease: tuple[str, ...] = LEASE
) -> Iterator[subprocess.Popen[str]]:
    """Run a process that holds a lock until it reads a line; give it when it has said something."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", HOLD, uri, str(patience), *lease],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | dict(environment or {}),
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def let_go(process: subprocess.Popen[str]) -> None:
    process.communicate("\n", timeout=30)
    assert process.returncode == 0


@pytest.fixture
def places(tmp_path: Path, s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return a folder, and a prefix of an object store, that are not there yet; leases are short."""
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    for name, value in zip(("LEASE_SECONDS", "_RENEW_SECONDS", "_ASK_SECONDS"), map(float, LEASE), strict=True):
        monkeypatch.setattr(locks, name, value)
    return {"local": str(tmp_path / "runs" / "tiny"), "s3": f"s3://lab/{tmp_path.name}/tiny"}


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, places: dict[str, str]) -> str:
    return places[request.param]


def test_second_process_says_who_is_at_work_and_ends(place: str) -> None:
    with holding(place) as first:
        assert said(first) == "held"
        pattern = rf"run tiny is in use by process {first.pid} on \S+; wait until it has ended, stop it, or use another"
        with pytest.raises(BusyError, match=pattern), locks.held(place, "run tiny"):
            pass
        let_go(first)
    with locks.held(place, "run tiny"):
        assert storage.list_files(place) == [], "it is no file of what it locks"
    assert not storage.exists(storage.join(place, ".lock"))


def test_patient_process_waits_and_says_so_once(places: dict[str, str]) -> None:
    with ExitStack() as stack:
        firsts = [stack.enter_context(holding(place)) for place in places.values()]
        assert [said(first) for first in firsts] == ["held", "held"]
        seconds = [stack.enter_context(holding(place, patience=60)) for place in places.values()]
        logs = [second.stderr.readline() for second in seconds if second.stderr is not None]
        time.sleep(float(LEASE[0]))  # they say nothing more, and take no lease over that is renewed
        for first, second, log in zip(firsts, seconds, logs, strict=True):
            let_go(first)
            assert said(second) == "held"
            log += second.communicate("\n", timeout=30)[1]
            assert log.count(f"run tiny is in use by process {first.pid} on ") == 1


def test_killed_holder_needs_no_hand(place: str) -> None:
    with holding(place) as first:
        assert said(first) == "held"
        first.kill()
        first.wait()
        began = time.monotonic()
        with locks.held(place, "run tiny"):
            took = time.monotonic() - began
    assert took < 0.5 if storage.is_local(place) else 2.9 < took < 6.0


def test_child_processes_do_not_inherit_the_lock(tmp_path: Path) -> None:
    # Killed, so that its file stays: a lock that a child had too would still be held then.
    code = """
import subprocess, sys, time
from scfegan_ray import locks
with locks.held(sys.argv[1], "x"):
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    child = subprocess.Popen(sleep, stdout=subprocess.DEVNULL, close_fds=False)
    print(child.pid, flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    child = int(said(holder))
    try:
        holder.kill()
        holder.communicate()
        os.kill(child, 0)  # it is alive
        with locks.held(str(tmp_path), "x"):
            assert (tmp_path / locks.NAME).read_text() == locks._me()
    finally:
        os.kill(child, signal.SIGKILL)


def test_many_processes_are_one_at_a_time(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from scfegan_ray import locks
for _ in range(20):
    with locks.held(sys.argv[1], "x", patience_seconds=60):
        counter = Path(sys.argv[1], "count")
        value = int(counter.read_text()) if counter.exists() else 0
        counter.write_text(str(value + 1))
"""
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(3)]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    assert Path(tmp_path, "count").read_text() == "60"
    assert sorted(os.listdir(tmp_path)) == ["count"]


def test_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StorageError, match=r"cannot lock \S+file/below: .*; check the path, its permissions"),
        locks.held(str(tmp_path / "file" / "below"), "x"),
    ):
        pass


@pytest.fixture
def client(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> object:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    return boto3.client("s3")


def test_lost_lease_is_noticed_and_not_given_back(client: object, s3: dict[str, str]) -> None:
    with holding("s3://lab/lost", environment=s3) as first:
        assert said(first) == "held"
        os.kill(first.pid, signal.SIGSTOP)  # as a closed laptop does
        with holding("s3://lab/lost", environment=s3) as second:
            assert said(second) == "held", "the first one does not answer"
            os.kill(first.pid, signal.SIGCONT)
            time.sleep(2.0)
            out, _ = first.communicate("\n", timeout=30)
            assert f"StorageError: run tiny was taken over by process {second.pid} on" in out
            assert storage.exists("s3://lab/lost/.lock"), "it is the second one's"
            let_go(second)


def test_answer_that_got_lost_loses_no_lease(client: object, s3: dict[str, str]) -> None:
    with holding("s3://lab/answer", environment=s3) as first:
        assert said(first) == "held"
        held = client.get_object(Bucket="lab", Key="answer/.lock")["Body"].read()  # type: ignore[attr-defined]
        # As if a renewal had arrived whose answer did not: the same holder, another version.
        mine = json.loads(held) | {"beat": "other"}
        client.put_object(Bucket="lab", Key="answer/.lock", Body=json.dumps(mine).encode())  # type: ignore[attr-defined]
        time.sleep(2.0)
        out, _ = first.communicate("\n", timeout=30)
    assert "taken over" not in out


def test_store_that_is_away_loses_no_lease(client: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_RENEW_SECONDS", 0.1)
    mine, is_away, failures, renewals = locks._client(), threading.Event(), [], []

    def before_send(**_: object) -> None:
        if is_away.is_set():
            failures.append(1)
            raise EndpointConnectionError(endpoint_url="the store's")
        renewals.append(1)

    mine.meta.events.register("before-send.s3", before_send)
    monkeypatch.setattr(locks, "_client", lambda: mine)
    with locks.held("s3://lab/away", "run tiny") as lock:
        is_away.set()
        wait_until(lambda: len(failures) > 6, 30)  # three tries a renewal
        is_away.clear()
        count = len(renewals)
        wait_until(lambda: len(renewals) > count + 1, 30)
        lock.check()
    assert not storage.exists("s3://lab/away/.lock")


def test_wrong_credentials_are_one_line(client: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with (
        pytest.raises(StorageError, match=r"cannot lock s3://lab/x/\.lock: .*SignatureDoesNotMatch.*AWS_ACCESS"),
        locks.held("s3://lab/x", "x"),
    ):
        pass
