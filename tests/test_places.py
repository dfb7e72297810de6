"""Places settled at the rim: absolute, without secrets, once."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scfegan_ray import cli, places
from scfegan_ray.config import Config, DataConfig, LossConfig, ParserConfig, StorageConfig, TrackingConfig
from scfegan_ray.errors import ConfigError, StorageError

LOGINS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "PGUSER", "PGPASSWORD")


@pytest.fixture(autouse=True)
def _no_logins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin with an environment without logins, and put the old one back."""
    for name in (*LOGINS, "MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_URI", "XDG_CACHE_HOME", "PGPASSFILE", "RAY_ADDRESS"):
        monkeypatch.setenv(name, "")


@pytest.mark.parametrize(
    ("given", "settled"),
    [
        ("sqlite:///runs/mlflow.db", "sqlite:///{here}/runs/mlflow.db"),
        ("sqlite:///./a/../b.db?timeout=9", "sqlite:///{here}/b.db?timeout=9"),
        ("sqlite:////abs/50%25.db", "sqlite+pysqlite:////abs/50%25.db"),
        ("sqlite+pysqlite:///r.db", "sqlite+pysqlite:///{here}/r.db"),
        ("sqlite:///file:r.db?uri=true", "sqlite:///file:{here}/r.db?uri=true"),
        ("file:mlruns", "file://{here}/mlruns"),
        ("file:///abs/a%20b", "file:///abs/a%20b"),
        ("./mlruns", "file://{here}/mlruns"),
        ("mlruns#1", "file://{here}/mlruns%231"),
        ("/abs/mlruns", "file:///abs/mlruns"),
        ("http://server:5000/mlflow", "http://server:5000/mlflow"),
        ("databricks", "databricks"),
        ("databricks://profile", "databricks://profile"),
        ("postgresql://lab@host/db", "postgresql://lab@host/db"),
    ],
)
def test_tracking_uri_is_made_absolute(given: str, settled: str, tmp_path: Path) -> None:
    expected = settled.format(here=tmp_path)
    assert places.settle_tracking(given) == expected
    assert places.settle_tracking(expected) == expected
    assert [os.environ[name] for name in LOGINS] == ["", "", "", ""]


@pytest.mark.parametrize(
    ("given", "settled", "login"),
    [
        ("http://me:hidden@server:5000", "http://server:5000", ["me", "hidden", "", ""]),
        ("https://me:h%40id%2Fden@server/x", "https://server/x", ["me", "h@id/den", "", ""]),
        ("http://me:h@id#den@server", "http://server", ["me", "h@id#den", "", ""]),
        ("postgresql://me:hidden@host:1/db", "postgresql://host:1/db", ["", "", "me", "hidden"]),
        (
            "postgresql+psycopg2://host/db?sslmode=require&user=me&password=hidden",
            "postgresql+psycopg2://host/db?sslmode=require",
            ["", "", "me", "hidden"],
        ),
    ],
)
def test_login_moves_to_the_environment(given: str, settled: str, login: list[str]) -> None:
    assert places.settle_tracking(given) == settled
    assert [os.environ[name] for name in LOGINS] == login
    for name in LOGINS:
        os.environ[name] = ""
    with places.logged_in(given) as uri:
        assert uri == settled
        assert [os.environ[name] for name in LOGINS] == login
    assert [os.environ[name] for name in LOGINS] == ["", "", "", ""]


@pytest.mark.parametrize(
    ("given", "cure"),
    [
        ("mysql+pymysql://me:hidden@host/db", "run an MLflow server"),
        ("mssql+pyodbc://me:hidden@host/db", "run an MLflow server"),
        ("http://hidden@server", "at server .*MLFLOW_TRACKING_TOKEN"),
        ("http://server?api_key=hidden", "at server .*MLFLOW_TRACKING_TOKEN"),
        ("http://me:hid/den@server", "%2F"),
        ("http://me:hid?den@server", "%3F"),
        ("mysql://host/db?ssl_key_password=hidden", "at host .*without"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
    ],
)
def test_what_cannot_be_moved_is_refused_and_not_repeated(given: str, cure: str) -> None:
    with pytest.raises(ConfigError, match=cure) as caught:
        places.settle_tracking(given)
    assert not any(part in str(caught.value) for part in ("hid", "den@", "me:"))


def test_all_places_of_config_and_environment(tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {
        "SCFEGAN_CACHE": "c",
        "XDG_CACHE_HOME": "./x",
        "PGPASSFILE": "p",
        "MLFLOW_TRACKING_URI": "sqlite:///m",
    }
    for name, value in (environment | {"MLFLOW_REGISTRY_URI": "sqlite:///r"}).items():
        monkeypatch.setenv(name, value)
    config = replace(
        tiny,
        data=DataConfig(source="faces", prepared="file:made", parser=ParserConfig(model="p.onnx")),
        losses=LossConfig(features="vgg.pth"),
        storage=StorageConfig(path="runs"),
    )
    settled = places.settle(config)
    monkeypatch.chdir("/")
    assert places.settle(settled) == settled
    assert settled.data.source == f"{tmp_path}/faces"
    assert settled.data.prepared == f"{tmp_path}/made"
    assert settled.data.parser.model == f"{tmp_path}/p.onnx"
    assert settled.losses.features == f"{tmp_path}/vgg.pth"
    assert settled.storage.path == f"{tmp_path}/runs"
    assert settled.tracking.uri is None
    found = [os.environ[name] for name in (*environment, "MLFLOW_REGISTRY_URI")]
    assert found == [f"{tmp_path}/{name}" for name in "cxp"] + [f"sqlite:///{tmp_path}/{name}" for name in "mr"]


def test_words_are_no_places(tiny: Config) -> None:
    for word in ("auto", "hed", "random"):
        assert places.settle_features(word) == word
    settled = places.settle(replace(tiny, storage=StorageConfig(path="s3://bucket/x/")))
    assert (settled.data.source, settled.storage.path) == ("embedded", "s3://bucket/x")


def test_refusal_names_the_setting(tiny: Config) -> None:
    with pytest.raises(StorageError, match=r"^data.source: the s3:// URI holds a key"):
        places.settle(replace(tiny, data=DataConfig(source="s3://KEY:hidden@bucket/x")))
    with pytest.raises(ConfigError, match=r"^tracking.uri: the URI of MLflow at host"):
        places.settle(replace(tiny, tracking=TrackingConfig(uri="http://hidden@host")))


def test_password_goes_to_its_own_server_only(tiny: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hidden@other")
    places.settle(replace(tiny, tracking=TrackingConfig(uri="http://server")))
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://other"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == ""
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://you:hidden@registry")
    with pytest.raises(ConfigError, match="MLFLOW_REGISTRY_URI: MLflow logs in to server and registry alike"):
        places.settle(replace(tiny, tracking=TrackingConfig(uri="http://me:other@server")))


def test_joined_cluster_needs_the_login_on_its_nodes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    places.settle_tracking("http://me:hidden@server")
    assert "must be in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in caplog.text
    assert "hidden" not in caplog.text
    assert places.logins("http://server") == ["MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"]
    assert places.logins("sqlite:////x.db") == []


def test_job_gets_settled_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Config] = []

    def job(arguments: cli.Arguments) -> dict[str, Any]:
        seen.append(arguments.config)
        raise StorageError("no http://me:hidden@server/x")

    argv = ["--tracking.uri", "http://me:hidden@server", "--storage.path", "here"]
    assert cli.run_job("", cli.Arguments, job, argv) == 1
    assert (seen[0].tracking.uri, seen[0].storage.path) == ("http://server", f"{tmp_path}/here")
    assert cli.run_job("", cli.Arguments, job, [*argv, "--dry-run"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["tracking"]["uri"] == "http://server"
    assert "error: no http://server/x" in captured.err
    assert "hidden" not in captured.out + captured.err
