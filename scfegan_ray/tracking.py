"""MLflow: runs and what they record; the registry of models is `registry`."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.utils import validation
from numpy.typing import NDArray

from scfegan_ray import config as configuration
from scfegan_ray import locks, places, storage
from scfegan_ray.config import Config
from scfegan_ray.errors import ConfigError, ScFeganError, StorageError
from scfegan_ray.provenance import git_revision, source_sha256

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """What training tells about itself; progress is counted in images seen."""

    def metrics(self, values: Mapping[str, float], images_seen: int) -> None:
        """Record numbers at a position."""
        ...

    def picture(self, name: str, rgb: NDArray[np.uint8], images_seen: int) -> None:
        """Record a (H, W, 3) uint8 RGB picture at a position."""
        ...

    def tags(self, values: Mapping[str, str]) -> None:
        """Record facts about the run."""
        ...

    def close(self) -> str | None:
        """Wait for what is not recorded yet, for a while, and say how much was lost.

        Returns:
            What to end the run with where none of its metrics arrived, else None.
        """
        ...


class NullTracker:
    """Records nothing: for tests, and for every rank but the first."""

    def metrics(self, values: Mapping[str, float], images_seen: int) -> None:
        """Drop the numbers."""

    def picture(self, name: str, rgb: NDArray[np.uint8], images_seen: int) -> None:
        """Drop the picture."""

    def tags(self, values: Mapping[str, str]) -> None:
        """Drop the facts."""

    def close(self) -> str | None:
        """Do nothing."""
        return None


_HOPELESS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED", "UNAUTHENTICATED")
"""Of MLflow's errors, those that no repetition mends; a server that does not answer is none of them."""
_MOST_WAITING = 20_000
_MOST_METRICS = 1000  # MLflow's limit for one request
_LONGEST_PAUSE_SECONDS = 20.0
_LONGEST_NAME = 256  # of experiments and models in MLflow's tables, which only SQLite does not mind
_SCHEMA_SECONDS = 300.0


class MlflowTracker:
    """Writes to one MLflow run on a thread of its own, so that training never waits and never stops for it.

    Records that MLflow does not take are kept and tried again, in order; what cannot be recorded at all, and what is
    still waiting when the end has no more patience, is counted and reported.

    Args:
        uri: of the server.
        run_id: of the run.
        patience_seconds: how long `close` waits.
    """

    def __init__(self, uri: str, run_id: str, patience_seconds: float = 60.0) -> None:
        self._client, self._uri = MlflowClient(uri), uri
        self._run_id, self._patience_seconds = run_id, patience_seconds
        self._waiting: deque[_Record] = deque()
        self._changed = threading.Condition()
        self._closing = self._has_warned = False
        self._num_sending = 0  # the first so many of those waiting
        self._num_alone = 0  # so many go one by one: one of them was refused in company
        self._num_lost = self._num_retries = 0
        self._num_metrics = self._num_arrived = 0  # records of metrics
        self._trouble = ""
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def metrics(self, values: Mapping[str, float], images_seen: int) -> None:
        """Record numbers at a position."""
        now = int(time.time() * 1000)
        self._put(_Record(metrics=[Metric(name, value, now, images_seen) for name, value in values.items()]))

    def picture(self, name: str, rgb: NDArray[np.uint8], images_seen: int) -> None:
        """Record a picture under `<name>/<images seen>.png`."""
        place = f"{name}/{images_seen:010d}.png"
        self._put(_Record(other=lambda: self._client.log_image(self._run_id, rgb, artifact_file=place)))

    def tags(self, values: Mapping[str, str]) -> None:
        """Record facts about the run."""
        batch = [RunTag(name, value) for name, value in values.items()]
        self._put(_Record(other=lambda: self._client.log_batch(self._run_id, tags=batch)))

    def close(self) -> str | None:
        """Wait for what is not recorded yet, for a while, and say how much was lost.

        Returns:
            What to end the run with where there were metrics and none of them arrived, else None.
        """
        end = time.monotonic() + self._patience_seconds
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            while self._waiting and self._changed.wait(max(0.0, end - time.monotonic())):
                pass
            self._num_lost += len(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        if self._num_lost:
            logger.warning("%d records of run %s did not reach MLflow", self._num_lost, self._run_id)
        elif self._num_retries:
            logger.info("all records of run %s reached MLflow, after %d failures", self._run_id, self._num_retries)
        if self._num_metrics == 0 or self._num_arrived > 0:
            return None
        return (
            f"none of the {self._num_metrics} metric records of run {self._run_id} arrived at MLflow at {self._uri}, "
            f"as seen from the first worker's machine ({self._trouble or 'no answer'}); check --tracking.uri or "
            "MLFLOW_TRACKING_URI, and MLFLOW_TRACKING_* there, and run the same command again"
        )

    def _put(self, record: _Record) -> None:
        with self._changed:
            self._waiting.append(record)
            self._num_metrics += bool(record.metrics)
            if len(self._waiting) > max(_MOST_WAITING, self._num_sending):
                del self._waiting[self._num_sending]
                self._num_lost += 1
            self._changed.notify_all()

    def _next(self) -> list[_Record]:
        """Wait for records; return those that go into one request, and leave them where they are. Empty at the end."""
        with self._changed:
            while not self._waiting:
                if self._closing:
                    return []
                self._changed.wait()
            together: list[_Record] = []
            for record in self._waiting:
                size = sum(len(one.metrics) for one in (*together, record))
                if together and (record.other or size > _MOST_METRICS):
                    break
                together.append(record)
                if record.other or self._num_alone:
                    break
            self._num_sending = len(together)
            return together

    def _work(self) -> None:
        pause = 1.0
        while records := self._next():
            try:
                if records[0].other:
                    records[0].other()
                else:
                    batch = [metric for record in records for metric in record.metrics]
                    self._client.log_batch(self._run_id, metrics=batch)
                    self._num_arrived += len(records)
                pause = 1.0
            except Exception as error:  # MLflow passes on whatever its stores and HTTP layers raise
                hopeless = getattr(error, "error_code", "") in _HOPELESS
                self._trouble = one_line(error)
                if not self._has_warned:
                    self._has_warned = True
                    logger.warning("MLflow does not take records (%s); training goes on", self._trouble)
                if not hopeless:
                    self._num_retries += 1
                    with self._changed:
                        self._changed.wait_for(lambda: not self._waiting, pause)
                    pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                    continue
                if len(records) > 1:
                    self._num_alone = len(records)
                    continue
                self._num_lost += 1
            with self._changed:
                self._num_alone = max(0, self._num_alone - len(records))
                # An end without more patience has dropped them all.
                for _ in range(min(self._num_sending, len(self._waiting))):
                    self._waiting.popleft()
                self._num_sending = 0
                self._changed.notify_all()


@dataclass(frozen=True, slots=True)
class _Record:
    """Metrics, which go together with others, or something else."""

    metrics: list[Metric] = field(default_factory=list)
    other: Callable[[], object] | None = None


def open_tracker(uri: str, run_id: str | None, patience_seconds: float = 60.0) -> Tracker:
    """Return a tracker of a run, or one that drops everything where `run_id` is None."""
    return NullTracker() if run_id is None else MlflowTracker(uri, run_id, patience_seconds)


def tracking_uri(config: Config) -> str:
    """Return the tracking server: as configured, else `MLFLOW_TRACKING_URI`, else SQLite under the storage path.

    It is absolute, and its user and password stand in the environment, see `places.settle_tracking`.

    Raises:
        ConfigError: its URI holds a secret that cannot stand there.
        StorageError: none is given and the storage path is not a local folder.
    """
    given = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        return places.settle_tracking(given)
    place = storage.absolute(config.storage.path)
    if not storage.is_local(place):
        raise StorageError(
            f"MLflow's SQLite file cannot live at {place}; give --tracking.uri or set MLFLOW_TRACKING_URI"
        )
    return places.sqlite_uri(storage.join(place, "mlflow.db"))


def check_names(config: Config) -> None:
    """Refuse a name of the experiment that MLflow would refuse, or its database.

    Raises:
        ConfigError: it would.
    """
    experiment = config.tracking.experiment
    try:
        validation._validate_experiment_name(experiment)
        check_length(experiment)
    except MlflowException as error:
        raise ConfigError(f"tracking.experiment is {experiment!r}: {one_line(error)}; give another name") from error


def check_length(name: str) -> None:
    """Refuse a name that is longer than a column of MLflow's databases.

    Raises:
        MlflowException: it is.
    """
    if len(name) > _LONGEST_NAME:
        raise MlflowException(f"it has {len(name)} characters, MLflow's databases take {_LONGEST_NAME}")


def check_usable(config: Config) -> None:
    """Make sure that runs can be recorded: the experiment and its artifacts' place are there for us.

    Raises:
        StorageError: one of them cannot be used, or only be read.
    """
    uri = tracking_uri(config)
    with errors_of_mlflow(config), tempfile.TemporaryDirectory(prefix="scfegan-") as scratch:
        client = open_client(config)
        experiment = client.get_experiment(_experiment(client, config))
        if experiment.lifecycle_stage != "active":
            raise StorageError(
                f"the experiment {experiment.name} at {uri} was deleted; bring it back with `mlflow experiments "
                f"restore -x {experiment.experiment_id}`, or give another --tracking.experiment"
            )
        # Another value each time: an unchanged one would not be written, and so prove nothing.
        client.set_experiment_tag(experiment.experiment_id, "last_job", time.strftime("%Y-%m-%d %H:%M:%S %z"))
        probe = Path(scratch, f".writable-{uuid.uuid4().hex}")
        probe.touch()
        try:
            artifacts = get_artifact_repository(experiment.artifact_location, tracking_uri=uri)
            artifacts.log_artifact(str(probe))
            if is_on_this_machine(experiment.artifact_location):
                # MLflow would not find it again where the folder's name holds a %.
                storage.delete(storage.join(experiment.artifact_location, probe.name))
            else:
                with suppress(MlflowException, NotImplementedError):  # not every store lets its users delete
                    artifacts.delete_artifacts(probe.name)
        except Exception as error:  # each store's library has errors of its own
            raise StorageError(
                f"artifacts of the experiment {experiment.name} cannot be written to {experiment.artifact_location}: "
                f"{one_line(error)}; check its permissions and credentials, or give another --tracking.experiment"
            ) from error


def open_client(config: Config) -> MlflowClient:
    """Return a client whose database is there: two processes that both make a SQLite file's tables spoil them.

    Raises:
        StorageError: MLflow can open no database from where it is installed.
    """
    uri = tracking_uri(config)
    if "%" in mlflow.__file__ and urlsplit(uri).scheme.partition("+")[0] in DATABASE_ENGINES:
        # Alembic, which looks after MLflow's tables, takes the % in its own path for a placeholder.
        raise StorageError(
            f"MLflow cannot open {uri} from a Python environment whose path holds a %, {sys.prefix}; "
            "make the environment in another folder, or give the address of an MLflow server to --tracking.uri"
        )
    file = places.sqlite_path(uri)
    if file is None:
        return MlflowClient(uri)
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    with locks.held(str(Path(file).parent), "MLflow's database", patience_seconds=_SCHEMA_SECONDS):
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
        client.search_registered_models(max_results=1)
    return client


def start_run(config: Config, run_name: str, *, tags: Mapping[str, str], parent_run_id: str | None = None) -> str:
    """Create a run and record its config.

    Args:
        config: all settings, recorded as parameters with dotted names.
        run_name: shown by MLflow.
        tags: facts about the run.
        parent_run_id: run under which this one is shown.

    Returns:
        Its id.

    Raises:
        StorageError: the tracking server cannot be used.
    """
    config = places.settle(config)
    with errors_of_mlflow(config):
        client = open_client(config)
        run = client.create_run(
            _experiment(client, config),
            run_name=run_name,
            tags=dict(tags) | code_tags() | ({"mlflow.parentRunId": parent_run_id} if parent_run_id else {}),
        )
        flat = configuration.flatten(config.to_dict())
        client.log_batch(run.info.run_id, params=[Param(name, str(value)) for name, value in flat.items()])
        run_id: str = run.info.run_id
    return run_id


def record(config: Config, run_id: str, metrics: Mapping[str, float], files: Mapping[str, bytes]) -> None:
    """Record numbers and files of a run at once.

    Raises:
        StorageError: the tracking server cannot be used.
    """
    with errors_of_mlflow(config), tempfile.TemporaryDirectory(prefix="scfegan-") as scratch:
        client = open_client(config)
        now = int(time.time() * 1000)
        entries = [Metric(name, value, now, 0) for name, value in metrics.items()]
        for start in range(0, len(entries), _MOST_METRICS):
            client.log_batch(run_id, metrics=entries[start : start + _MOST_METRICS])
        for name, content in files.items():
            Path(scratch, name).write_bytes(content)
        client.log_artifacts(run_id, scratch)


def history(config: Config, run_id: str, name: str) -> list[tuple[int, float]]:
    """Return the values of a run's metric in the order of their recording: images seen and value.

    Raises:
        StorageError: the tracking server cannot be used.
    """
    with errors_of_mlflow(config):
        return [(one.step, one.value) for one in open_client(config).get_metric_history(run_id, name)]


def resume_run(config: Config, run_id: str) -> dict[str, str]:
    """Mark an existing run as running again; return its tags.

    Raises:
        StorageError: the tracking server cannot be used or does not know the run.
    """
    with errors_of_mlflow(config):
        client = open_client(config)
        client.update_run(run_id, status="RUNNING")
        return dict(client.get_run(run_id).data.tags)


def end_run(config: Config, run_id: str, status: str) -> None:
    """Mark a run as FINISHED, FAILED or KILLED; failing to is logged only."""
    try:
        MlflowClient(tracking_uri(config)).set_terminated(run_id, status)
    except Exception as error:  # the run's outcome matters more than its mark
        logger.warning("MLflow did not take the run's end (%s)", one_line(error))


def end_children(config: Config, parent_run_id: str, failed: Collection[str]) -> None:
    """Mark the runs under a parent that still count as running; failing to is logged only.

    Args:
        config: names the experiment.
        parent_run_id: run under which they are filed.
        failed: names of runs to mark as FAILED; the others were stopped on purpose: KILLED.
    """
    try:
        client = MlflowClient(tracking_uri(config))
        experiment = _experiment(client, config)
        under = f"tags.`mlflow.parentRunId` = '{parent_run_id}' and attributes.status = 'RUNNING'"
        for run in client.search_runs([experiment], under):
            client.set_terminated(run.info.run_id, "FAILED" if run.info.run_name in failed else "KILLED")
    except Exception as error:  # as in end_run
        logger.warning("MLflow did not take the end of the runs under %s (%s)", parent_run_id, one_line(error))


def is_on_this_machine(location: str) -> bool:
    """Tell a path or file: URI from a server's mlflow-artifacts:/1/models, in which no :// stands, and from others."""
    return urlsplit(location).scheme in ("", "file")


def code_tags() -> dict[str, str]:
    """Say which code makes a run or a version."""
    return {"git_revision": git_revision(), "source_sha256": source_sha256()}


def _experiment(client: MlflowClient, config: Config) -> str:
    name = config.tracking.experiment
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    # Beside a SQLite file MLflow would put artifacts into the working directory, which differs in each process.
    local = places.sqlite_path(tracking_uri(config)) is not None
    place = storage.as_uri(storage.join(storage.absolute(config.storage.path), "mlartifacts")) if local else None
    try:
        return str(client.create_experiment(name, artifact_location=place))
    except MlflowException:
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


@contextmanager
def errors_of_mlflow(config: Config) -> Iterator[None]:
    """Name the server and the cure where MLflow fails.

    Raises:
        StorageError: in place of what MLflow raised.
    """
    try:
        yield
    except ScFeganError:
        raise
    except Exception as error:
        if not is_of_mlflow(error):
            raise
        raise StorageError(
            f"cannot use MLflow at {tracking_uri(config)}: {one_line(error)}; "
            "check --tracking.uri, MLFLOW_TRACKING_URI and that the place is writable"
        ) from error


def is_of_mlflow(error: Exception) -> bool:
    """Tell whether MLflow, or what it reaches its server or database by, raised an error."""
    # HTTP errors are OSErrors; MLflow lets some errors of its database layer through.
    return isinstance(error, MlflowException | OSError) or type(error).__module__.startswith("sqlalchemy")


def one_line(error: BaseException) -> str:
    """Return what an error says, on one line and without secrets."""
    return storage.without_secrets(" ".join(str(error).split()))[:300]
