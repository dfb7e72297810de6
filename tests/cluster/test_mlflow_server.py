"""cluster/mlflow.yaml: its server as it stands there, with Debian's PostgreSQL and an S3 server."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import s3 as s3_of_tests
import yaml
from mlflow import MlflowClient
from running import ROOT, descendants, wait_until
from servers import answers, free_port, postgresql

FILE = ROOT / "cluster" / "mlflow.yaml"


@pytest.fixture
def services() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(FILE.read_text())["services"]
    return values


def filled_in(value: str | None, name: str, given: Mapping[str, str]) -> str:
    """Return a variable's value as compose makes it, where every `${NAME:?}` must have been given."""
    return given.get(name, "") if value is None else re.sub(r"\$\{(\w+):\?\}", lambda one: given[one[1]], value)


def test_versions_are_the_projects(services: dict[str, Any]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = {*project["dependencies"], *project["optional-dependencies"]["dev"]}
    install = services["mlflow"]["build"]["dockerfile_inline"]
    wanted = re.findall(r'"?((?:mlflow|boto3|psycopg2-binary)[<>=][^"\s]+)"?', install)
    assert len(wanted) == 3 and set(wanted) <= known


def test_secrets_come_from_outside_and_must(services: dict[str, Any]) -> None:
    for service in services.values():
        for name, value in service["environment"].items():
            if re.search("PASSWORD|SECRET|KEY|URI", name):
                assert value is None or "${POSTGRES_PASSWORD:?}" in value, name
    assert all("${MLFLOW_ADDRESS:?}" in port for port in services["mlflow"]["ports"])
    assert "ports" not in services["postgres"]


def test_server_keeps_runs_and_artifacts_and_knows_its_names(
    services: dict[str, Any], s3: dict[str, str], tmp_path: Path
) -> None:
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    service = services["mlflow"]
    command = [str(port) if word == "5000" else word for word in service["command"]]
    with postgresql(tmp_path) as database:
        given = {
            "MLFLOW_ARTIFACTS": f"s3://{s3_of_tests.BUCKET}/mlflow",
            "MLFLOW_HOSTS": "127.0.0.1:*,localhost:*",
            "POSTGRES_PASSWORD": "secret",
            **s3,
        }
        settings = {name: filled_in(value, name, given) for name, value in service["environment"].items()}
        there = settings["MLFLOW_BACKEND_STORE_URI"]
        assert there == "postgresql+psycopg2://mlflow:secret@postgres:5432/mlflow"
        settings["MLFLOW_BACKEND_STORE_URI"] = database
        environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
        with (tmp_path / "mlflow.log").open("w") as log:
            server = subprocess.Popen(
                command, env=environment | settings, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True
            )
        try:
            wait_until(lambda: answers(f"{address}/health"), 90)
            assert len(descendants(server.pid)) <= 5, "job execution is off"

            client = MlflowClient(address)
            run = client.create_run(client.create_experiment("tried")).info
            client.log_text(run.run_id, "kept", "note.txt")
            assert run.artifact_uri.startswith("mlflow-artifacts:/")
            kept = s3_of_tests.client(s3).list_objects_v2(Bucket=s3_of_tests.BUCKET, Prefix="mlflow/")["Contents"]
            assert [one["Key"].rpartition("/")[2] for one in kept] == ["note.txt"]

            other = urllib.request.Request(f"{address}/api/2.0/mlflow/experiments/get", headers={"Host": "elsewhere"})
            with pytest.raises(urllib.error.HTTPError, match="403") as refused:
                urllib.request.urlopen(other, timeout=30)
            refused.value.close()
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
