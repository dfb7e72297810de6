"""MLflow with SQLite: runs, records that fail."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    PERMISSION_DENIED,
    RESOURCE_DOES_NOT_EXIST,
    UNAUTHENTICATED,
    ErrorCode,
)
from tiny import maps_of

from scfegan_ray import registry, tracking
from scfegan_ray.config import Config, StorageConfig, TrackingConfig
from scfegan_ray.errors import ModelError, StorageError
from scfegan_ray.serving.editor import FaceEditor
from scfegan_ray.training.state import TrainingState


@pytest.fixture
def config(tracked: Config) -> Config:
    return tracked


def test_where_runs_go(tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracking.tracking_uri(tiny) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    assert tracking.tracking_uri(tiny) == "http://server"
    given = replace(tiny, tracking=TrackingConfig(uri="sqlite:///x.db"))
    assert tracking.tracking_uri(given) == f"sqlite:///{tmp_path}/x.db", "workers have another working directory"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs/mlflow.db")
    assert tracking.tracking_uri(tiny) == f"sqlite:///{tmp_path}/runs/mlflow.db"


@pytest.mark.parametrize("name", ["exp#2 50%20? ü'&/feature%2Ffoo", "a #1? ü"])
def test_everything_lies_in_a_folder_of_odd_name(
    tiny: Config,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    place = tmp_path / "odd" / name
    place.mkdir(parents=True)
    config = replace(tiny, storage=StorageConfig(path=str(place)))
    run_id = tracking.start_run(config, "tiny", tags={})
    tracker = tracking.open_tracker(tracking.tracking_uri(config), run_id)
    tracker.metrics({"x": 1.0}, 8)
    tracker.picture("grid", PICTURE, 8)
    assert tracker.close() is None
    assert MlflowClient(tracking.tracking_uri(config)).get_run(run_id).data.metrics == {"x": 1.0}
    [grid] = place.rglob("grid/0000000008.png")
    assert grid.relative_to(place).parts[0] == "mlartifacts"

    state = TrainingState.build(config)
    example = maps_of(config)
    version = registry.register(state.ema, config, run_id, weights_sha256="a", tags={}, example=example)
    monkeypatch.chdir("/")
    editor = FaceEditor.from_uri(version, tracking_uri=tracking.tracking_uri(config))
    editor.set_image(example["image"][0])
    filled = editor.edit(example["mask"][0], example["sketch"][0], example["color"][0])
    mlflow.set_tracking_uri(tracking.tracking_uri(config))
    try:
        # MLflow itself reads %20 in a plain path as a space, and hands itself plain paths; not those of a copy.
        copy = {"dst_path": str(tmp_path_factory.mktemp("copy"))} if "%" in name else {}
        assert np.array_equal(mlflow.pyfunc.load_model(version, **copy).predict(example)[0], filled)
    finally:
        mlflow.set_tracking_uri(None)
    assert {path.name for path in tmp_path.iterdir()} <= {"odd", "runs", "cache"}, "nothing lies beside the folder"
    at = tmp_path / "odd"
    for part in Path(name).parts:
        assert [path.name for path in at.iterdir()] == [part]
        at /= part
    assert {path.name for path in place.iterdir()} == {"mlflow.db", "mlartifacts"}


SECRETS = ("mallory", "hidden", "hid/den", "hid%2Fden")


def test_password_of_the_server_is_kept_nowhere(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
    sent: list[Any] = []

    class Client:
        def __init__(self, uri: str) -> None:
            sent.append(uri)

        def __getattr__(self, name: str) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                sent.append((name, args, kwargs, [vars(param) for param in kwargs.get("params", [])]))
                return SimpleNamespace(info=SimpleNamespace(run_id="r"), experiment_id="1")

            return call

    monkeypatch.setattr(tracking, "MlflowClient", Client)
    config = replace(tiny, tracking=TrackingConfig(uri="http://mallory:hid%2Fden@server:5000/x"))
    tracking.start_run(config, "tiny", tags={})
    assert sent[0] == "http://server:5000/x"
    assert [os.environ[f"MLFLOW_TRACKING_{name}"] for name in ("USERNAME", "PASSWORD")] == ["mallory", "hid/den"]
    assert "tracking.uri" in str(sent) and "http://server:5000/x" in str(sent[1:])
    assert not any(secret in str(sent) + caplog.text for secret in SECRETS)


def test_errors_name_the_host_only(tiny: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = "http://mallory:hidden@127.0.0.1:9"
    config = replace(tiny, tracking=TrackingConfig(uri=uri))
    with pytest.raises(StorageError, match="cannot use MLflow at http://127.0.0.1:9: ") as caught:
        tracking.start_run(config, "tiny", tags={})
    assert not any(secret in str(caught.value) for secret in SECRETS)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "own")
    for given in (uri, None):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "" if given else uri)
        with pytest.raises(ModelError, match="no model models:/m/1 at http://127.0.0.1:9: ") as missing:
            FaceEditor.from_uri("models:/m/1", tracking_uri=given)
        assert not any(secret in str(missing.value) for secret in SECRETS)
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "own", "asking one server changes nothing for the next"


def test_database_cannot_live_in_an_object_store(tiny: Config) -> None:
    away = replace(tiny, storage=StorageConfig(path="s3://bucket/runs"))
    with pytest.raises(StorageError, match="give --tracking.uri or set MLFLOW_TRACKING_URI"):
        tracking.tracking_uri(away)


def test_run_keeps_config_records_and_end(config: Config) -> None:
    run_id = tracking.start_run(config, "tiny", tags={"data_license": "CC0-1.0"})
    client = MlflowClient(tracking.tracking_uri(config))
    tracker = tracking.open_tracker(tracking.tracking_uri(config), run_id)
    tracker.metrics({"train/generator/total": 1.5}, 8)
    tracker.picture("grid", np.zeros((4, 4, 3), np.uint8), 8)
    tracker.tags({"features": "random"})
    tracker.close()
    run = client.get_run(run_id)
    assert run.info.status == "RUNNING"
    assert run.data.metrics == {"train/generator/total": 1.5}
    assert run.data.params["losses.perceptual"] == "0.05"
    assert (run.data.tags["data_license"], run.data.tags["features"]) == ("CC0-1.0", "random")
    assert run.info.artifact_uri.startswith(config.storage.path)
    tracking.end_run(config, run_id, "FINISHED")
    assert client.get_run(run_id).info.status == "FINISHED"
    tracking.resume_run(config, run_id)
    assert client.get_run(run_id).info.status == "RUNNING"

    child = tracking.start_run(config, "child", tags={}, parent_run_id=run_id)
    assert client.get_run(child).data.tags["mlflow.parentRunId"] == run_id


def test_lost_records_are_counted_and_stop_nothing(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    tracking.start_run(config, "tiny", tags={})
    tracker = tracking.MlflowTracker(tracking.tracking_uri(config), "no-such-run")
    for seen in (1, 2, 3):
        tracker.metrics({"x": 1.0}, seen)
    trouble = tracker.close()
    assert trouble is not None
    where = tracking.tracking_uri(config)
    assert trouble.startswith(f"none of the 3 metric records of run no-such-run arrived at MLflow at {where}, ")
    assert "training goes on" in caplog.text
    assert caplog.text.count("training goes on") == 1
    assert "3 records of run no-such-run did not reach MLflow" in caplog.text


PATIENCE_SECONDS = 30.0
PICTURE = np.zeros((4, 4, 3), np.uint8)


class Server:
    """Takes MLflow's place: notes requests, may hang, may fail."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        """What arrived: steps of metrics, names of tags, names of pictures."""
        self.failures: list[Exception] = []
        """What the next requests meet."""
        self.refused_steps: dict[int, Exception] = {}
        """Metrics that no request may hold."""
        self.is_away = False
        self.asked, self.answers = threading.Event(), threading.Event()
        self.answers.set()

    def log_batch(self, run_id: str, metrics: Sequence[Metric] = (), tags: Sequence[RunTag] = ()) -> None:
        self._take([metric.step for metric in metrics] + [tag.key for tag in tags])

    def log_image(self, run_id: str, rgb: np.ndarray, artifact_file: str) -> None:
        self._take(artifact_file)

    def _take(self, what: Any) -> None:
        self.asked.set()
        assert self.answers.wait(PATIENCE_SECONDS)
        if self.is_away:
            raise ConnectionError("refused")
        if self.failures:
            raise self.failures.pop(0)
        for refused in self.refused_steps.keys() & set(what):
            raise self.refused_steps[refused]
        self.requests.append(what)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    monkeypatch.setattr(tracking, "MlflowClient", lambda uri: made)
    return made


@pytest.fixture
def tracker(server: Server) -> tracking.MlflowTracker:
    return tracking.MlflowTracker("http://server", "run", PATIENCE_SECONDS)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Shorten pauses between trials; how long they would have been is returned."""
    made: list[float] = []

    class Hasty(threading.Condition):
        def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
            assert timeout is not None
            made.append(timeout)
            return super().wait_for(predicate, 0.001)

    monkeypatch.setattr(tracking, "threading", SimpleNamespace(Condition=Hasty, Thread=threading.Thread))
    return made


def hang(server: Server, tracker: tracking.MlflowTracker) -> None:
    """Let the server hang with a first record in its hands, so that what follows has to wait."""
    server.answers.clear()
    server.asked.clear()
    tracker.tags({"first": "1"})
    assert server.asked.wait(PATIENCE_SECONDS)


def test_nobody_waits_for_a_server_that_hangs(
    server: Server, tracker: tracking.MlflowTracker, caplog: pytest.LogCaptureFixture
) -> None:
    hang(server, tracker)
    for seen in (1, 2, 3):
        tracker.metrics({"x": 1.0, "y": 2.0}, seen)
    tracker.picture("grid", PICTURE, 3)
    assert server.requests == [], "all calls came back before the server answered"
    server.answers.set()
    tracker.close()
    assert server.requests == [["first"], [1, 1, 2, 2, 3, 3], "grid/0000000003.png"]
    assert caplog.text == ""


def test_records_wait_for_a_server_that_is_away_and_arrive_in_order(
    server: Server, pauses: list[float], tracker: tracking.MlflowTracker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server.failures = [MlflowException("timed out"), ConnectionError("refused"), MlflowException("503")]
    hang(server, tracker)
    for seen in (2, 3):
        tracker.metrics({"x": 1.0}, seen)
    tracker.picture("grid", PICTURE, 3)
    tracker.tags({"features": "random"})
    tracker.metrics({"x": 1.0}, 4)
    server.answers.set()
    tracker.close()
    # Metrics that have waited go together, but never past a record of another kind.
    assert server.requests == [["first"], [2, 3], "grid/0000000003.png", ["features"], [4]]
    assert pauses == [1.0, 2.0, 4.0]
    assert caplog.text.count("training goes on") == 1
    assert "all records of run run reached MLflow, after 3 failures" in caplog.text
    assert "did not reach" not in caplog.text


def test_pauses_have_a_limit_and_are_short_again_after_success(
    server: Server, pauses: list[float], tracker: tracking.MlflowTracker
) -> None:
    hang(server, tracker)
    server.failures = [ConnectionError() for _ in range(7)]
    server.answers.set()
    while not server.requests:
        time.sleep(0.001)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 20.0, 20.0]
    server.failures = [ConnectionError()]
    tracker.metrics({"x": 1.0}, 1)
    tracker.close()
    assert pauses[7:] == [1.0]
    assert server.requests == [["first"], [1]]


@pytest.mark.parametrize(
    "code", [INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, PERMISSION_DENIED, UNAUTHENTICATED], ids=ErrorCode.Name
)
def test_hopeless_record_does_not_hold_up_the_others(
    server: Server, pauses: list[float], tracker: tracking.MlflowTracker, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    server.failures = [MlflowException("no such thing", error_code=code)]
    tracker.tags({"bad": "1"})
    tracker.metrics({"x": 1.0}, 4)
    tracker.close()
    assert server.requests == [[4]]
    assert pauses == [], "it is not tried again"
    assert "MLflow does not take records (no such thing); training goes on" in caplog.text
    assert "1 records of run run did not reach MLflow" in caplog.text


def test_run_of_which_metrics_arrived_may_lose_some(
    server: Server, pauses: list[float], tracker: tracking.MlflowTracker, caplog: pytest.LogCaptureFixture
) -> None:
    server.refused_steps = {1: MlflowException("bad value", error_code=INVALID_PARAMETER_VALUE)}
    for seen in (1, 2):
        tracker.metrics({"x": 1.0}, seen)
    assert tracker.close() is None
    assert "1 records of run run did not reach MLflow" in caplog.text


def test_run_without_any_metric_has_lost_none(server: Server, pauses: list[float]) -> None:
    tracker = tracking.MlflowTracker("http://server", "run", patience_seconds=0.05)
    server.is_away = True
    tracker.picture("grid", PICTURE, 1)
    assert tracker.close() is None


def test_one_hopeless_record_does_not_take_its_company_with_it(
    server: Server, pauses: list[float], tracker: tracking.MlflowTracker, caplog: pytest.LogCaptureFixture
) -> None:
    hang(server, tracker)
    refusal = MlflowException("bad value", error_code=INVALID_PARAMETER_VALUE)
    server.refused_steps = {2: refusal}
    for seen in (1, 2, 3):
        tracker.metrics({"x": 1.0}, seen)
    server.answers.set()
    while len(server.requests) < 3:
        time.sleep(0.001)
    hang(server, tracker)
    for seen in (4, 5):
        tracker.metrics({"x": 1.0}, seen)
    server.answers.set()
    tracker.close()
    assert server.requests == [["first"], [1], [3], ["first"], [4, 5]]
    assert pauses == []
    assert caplog.text.count("training goes on") == 1
    assert "1 records of run run did not reach MLflow" in caplog.text


@pytest.mark.parametrize("hangs", [True, False])
def test_close_gives_up_and_says_how_much_is_lost(
    server: Server, pauses: list[float], caplog: pytest.LogCaptureFixture, hangs: bool
) -> None:
    tracker = tracking.MlflowTracker("http://server", "run", patience_seconds=0.05)
    server.is_away = True
    if hangs:
        server.answers.clear()
    for seen in (1, 2, 3):
        tracker.metrics({"x": 1.0}, seen)
    tracker.picture("grid", PICTURE, 3)
    tracker.close()
    assert "4 records of run run did not reach MLflow" in caplog.text
    server.answers.set()
    tracker._thread.join(PATIENCE_SECONDS)
    assert not tracker._thread.is_alive(), "nothing goes on in the background"


def test_oldest_records_make_room(
    server: Server,
    tracker: tracking.MlflowTracker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(tracking, "_MOST_WAITING", 3)
    hang(server, tracker)
    for seen in range(1, 7):
        tracker.metrics({"x": 1.0}, seen)
    server.answers.set()
    tracker.close()
    assert server.requests == [["first"], [5, 6]], "what is on its way has its place"
    assert "4 records of run run did not reach MLflow" in caplog.text


def test_requests_keep_to_mlflows_limit(
    server: Server, tracker: tracking.MlflowTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_MOST_METRICS", 5)
    hang(server, tracker)
    for seen, number in enumerate((2, 2, 2, 7, 1, 4, 1)):
        tracker.metrics({f"x{at}": 1.0 for at in range(number)}, seen)
    server.answers.set()
    tracker.close()
    # A record is never cut.
    assert server.requests == [["first"], [0, 0, 1, 1], [2, 2], [3] * 7, [4, 5, 5, 5, 5], [6]]


def test_no_run_id_means_no_records(config: Config) -> None:
    tracker = tracking.open_tracker("http://127.0.0.1:1", None)
    tracker.metrics({"x": 1.0}, 1)
    tracker.picture("grid", np.zeros((1, 1, 3), np.uint8), 1)
    tracker.tags({})
    tracker.close()
    assert isinstance(tracker, tracking.NullTracker)


def test_unusable_database_is_one_line(config: Config) -> None:
    broken = replace(config, tracking=TrackingConfig(uri="sqlite:////proc/nowhere/x.db"))
    with pytest.raises(StorageError, match="cannot use MLflow at sqlite:.*check --tracking.uri"):
        tracking.start_run(broken, "tiny", tags={})


def test_environment_that_mlflow_cannot_use_is_one_line(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow, "__file__", "/50% done/lib/python3.11/site-packages/mlflow/__init__.py")
    with pytest.raises(StorageError, match="holds a %.*make the environment in another folder"):
        tracking.start_run(config, "tiny", tags={})


def test_children_are_ended_by_their_parent(config: Config) -> None:
    parent = tracking.start_run(config, "search", tags={})
    names = ("stopped", "broken", "done")
    runs = {name: tracking.start_run(config, name, tags={}, parent_run_id=parent) for name in names}
    other = tracking.start_run(config, "other", tags={})
    tracking.end_run(config, runs["done"], "FINISHED")
    tracking.end_children(config, parent, {"broken"})
    client = MlflowClient(tracking.tracking_uri(config))
    statuses = {name: client.get_run(run_id).info.status for name, run_id in runs.items()}
    assert statuses == {"stopped": "KILLED", "broken": "FAILED", "done": "FINISHED"}
    assert client.get_run(parent).info.status == client.get_run(other).info.status == "RUNNING"


@pytest.mark.parametrize(
    ("location", "is_here"),
    [
        ("/a/b", True),
        ("file:///a%20b", True),
        ("mlflow-artifacts:/1/models/m-1", False),
        ("mlflow-artifacts://host/1", False),
        ("s3://bucket/x", False),
    ],
)
def test_artifacts_of_a_server_are_no_folder_of_this_machine(location: str, is_here: bool) -> None:
    assert tracking.is_on_this_machine(location) == is_here
