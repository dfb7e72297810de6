"""Real servers for tests: PostgreSQL, as Debian packs it, and MLflow's own."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

_PATIENCE_SECONDS = 90.0


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port


def answers(url: str) -> bool:
    """Return whether a server answers a request as it should."""
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except (urllib.error.URLError, OSError):
        return False
    return True


@contextlib.contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    """Run a PostgreSQL server on loopback; give the URI of its database as SQLAlchemy wants it."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("PostgreSQL is not installed here (Debian: apt-get install postgresql)")
    # It refuses to run as root, and its user must reach the folder.
    user = pwd.getpwnam("postgres") if os.getuid() == 0 else None
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="postgres-") as place:
        if user:
            os.chown(place, user.pw_uid, user.pw_gid)
        data = f"{place}/data"

        def call(program: str, *arguments: str) -> None:
            command = [str(programs[-1] / program), *arguments]
            with (folder / "postgres.log").open("a") as log:
                identity = {"user": user.pw_uid, "group": user.pw_gid} if user else {}
                subprocess.run(command, check=True, stdout=log, stderr=log, cwd=place, **identity)  # type: ignore[call-overload]

        call("initdb", "--auth=trust", "--username=lab", "--no-sync", "-D", data)
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={place}"
        call("pg_ctl", "-D", data, "-l", f"{place}/log", "-o", options, "--wait", "start")
        try:
            yield f"postgresql+psycopg2://lab@127.0.0.1:{port}/postgres"
        finally:
            call("pg_ctl", "-D", data, "--mode=immediate", "--wait", "stop")
            shutil.rmtree(data, ignore_errors=True)


class Mlflow:
    """An MLflow server that can be stopped and started again at the same place.

    Args:
        database: URI of its database.
        artifacts: URI of the folder or prefix that it keeps artifacts in.
        log: file that it writes its messages to.
        environment: what it needs to reach that prefix.
    """

    def __init__(self, database: str, artifacts: str, log: Path, environment: Mapping[str, str]) -> None:
        self._port, self._log = free_port(), log
        self.uri = f"http://127.0.0.1:{self._port}"
        self._command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)),
            *("--backend-store-uri", database, "--artifacts-destination", artifacts, "--workers", "1"),
        ]
        self._environment = os.environ | {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight more processes, which nobody asks
            "MLFLOW_DISABLE_TELEMETRY": "true",
            **environment,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        end = time.monotonic() + _PATIENCE_SECONDS
        while True:
            if answers(f"{self.uri}/health"):
                return
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"MLflow does not start: {self._log.read_text()[-2000:]}")
            time.sleep(0.3)

    def stop(self) -> None:
        """Kill it with all its processes."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def __enter__(self) -> Mlflow:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


@dataclass(frozen=True)
class Editing:
    """An editor that serves."""

    url: str
    session: requests.Session

    def post(self, path: str, files: Mapping[str, bytes], fields: Mapping[str, Any], **more: Any) -> requests.Response:
        """Send a form; what is no text becomes JSON."""
        data = {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
        return self.session.post(f"{self.url}api/{path}", files=dict(files) or None, data=data, timeout=60, **more)
