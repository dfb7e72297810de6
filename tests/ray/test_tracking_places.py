"""Folders of odd names, relative places in the shell, and passwords, in real trainings with a Ray of their own."""

from __future__ import annotations

import base64
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from running import TINY_ARGUMENTS, result_of, run
from servers import Mlflow

from scfegan_ray import places
from scfegan_ray.serving.editor import FaceEditor

pytestmark = pytest.mark.ray

USER, PASSWORD = "mallory", "hidden+s3cret"


@pytest.mark.usefixtures("cluster")  # of somebody else on this machine
def test_relative_uri_from_the_shell_in_a_folder_of_odd_name(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # So is the folder of Python's environment, as where the project was cloned into one.
    prefix = tmp_path_factory.mktemp("clone") / "it's $HOME #2"
    prefix.symlink_to(sys.prefix)
    python = str(prefix / "bin" / Path(sys.executable).name)
    here = tmp_path / "exp#2 50%20? ü"
    (here / "runs").mkdir(parents=True)
    environment = {"MLFLOW_TRACKING_URI": "sqlite:///runs/mlflow.db", "SCFEGAN_CACHE": "cache", "RAY_TMPDIR": ""}
    arguments = (*TINY_ARGUMENTS, "--train.num-workers", "1", "--run-name", "odd")
    done = run("train", *arguments, cwd=here, environment=environment, python=python)
    result = result_of(done)
    assert "did not reach MLflow" not in done.stderr
    assert "Traceback" not in done.stderr, "Ray Train knows which Ray is its own"
    uri = places.sqlite_uri(str(here / "runs" / "mlflow.db"))
    found = MlflowClient(uri).get_run(result["run_id"])
    assert found.info.status == "FINISHED"
    assert found.data.metrics["train/generator/total"] > 0
    assert not list(here.rglob(".writable*")), "nothing is left of what was tried"
    assert {path.name for path in here.rglob("grid/*.png")} == {f"{seen:010d}.png" for seen in (0, 8, 16)}
    assert {path.name for path in here.iterdir()} == {"runs", "cache"}
    assert {path.name for path in (here / "runs").iterdir()} == {"mlartifacts", "mlflow.db", "odd", "prepared"}
    assert [path.name for path in tmp_path.iterdir()] == [here.name], "nothing lies beside the folder"
    editor = FaceEditor.from_uri(result["model_uri"], tracking_uri=uri)
    editor.set_image(np.zeros((32, 32, 3), np.uint8))
    assert editor.edit(*(np.zeros((32, 32, *more), np.uint8) for more in ((), (), (3,)))).shape == (32, 32, 3)


class _Guard(BaseHTTPRequestHandler):
    """Lets those through to an MLflow server who know the password."""

    target = ""
    refused: list[str] = []

    def _pass_on(self) -> None:
        expected = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if self.headers.get("Authorization") != expected:
            self.refused.append(self.path)
            self._answer(401, b"who are you?", "text/plain")
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
        kind = {"Content-Type": self.headers.get("Content-Type") or "application/json"}
        request = urllib.request.Request(self.target + self.path, body, kind, method=self.command)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                self._answer(answer.status, answer.read(), answer.headers["Content-Type"])
        except urllib.error.HTTPError as error:
            with error:
                self._answer(error.code, error.read(), error.headers["Content-Type"])

    def _answer(self, code: int, body: bytes, kind: str | None) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind or "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[str]:
    """Run an MLflow server behind a password; give its host and port."""
    served = tmp_path / "served"
    served.mkdir()
    with (
        Mlflow(f"sqlite:///{served}/mlflow.db", f"file://{served}/artifacts", served / "log", {}) as server,
        ThreadingHTTPServer(("127.0.0.1", 0), _Guard) as guard,
    ):
        _Guard.target, _Guard.refused = server.uri, []
        threading.Thread(target=guard.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{guard.server_port}"
        guard.shutdown()


def test_password_on_the_command_line_is_kept_nowhere(
    guarded: str, tiny_dataset: str, ray_folder: str, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    argument = f"--tracking.uri=http://{USER}:{PASSWORD.replace('+', '%2B')}@{guarded}"
    done = run(
        "train",
        *(*TINY_ARGUMENTS, "--train.num-workers", "1", "--data.prepared", tiny_dataset, "--run-name", "quiet"),
        argument,
        cwd=here,
        environment={"RAY_TMPDIR": ray_folder},
    )
    result = result_of(done)
    assert result["model_uri"] == "models:/scfegan-generator/1"
    assert _Guard.refused == [], "all who asked knew the password, workers too"
    metrics = MlflowClient(_Guard.target).get_run(result["run_id"]).data.metrics
    assert metrics["train/generator/total"] > 0
    texts = [PASSWORD, PASSWORD.replace("+", "%2B"), f"{USER}:"]
    assert not any(text in done.stdout + done.stderr for text in texts)
    found = [
        str(path)
        for root in (here, tmp_path / "served", Path(ray_folder))
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink() and any(text.encode() in path.read_bytes() for text in texts)
    ]
    assert found == []
    assert list(Path(ray_folder).rglob("session_*/logs")), "Ray's own folder was searched, too"
