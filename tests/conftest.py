"""What all tests share."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import s3 as s3_of_tests
from mlflow import MlflowClient
from running import folder_for_ray
from tiny import TINY
from torch.export import ExportedProgram

from cluster import Cluster
from scfegan_ray.config import Config, StorageConfig
from scfegan_ray.data import prepare
from scfegan_ray.models import editing
from scfegan_ray.models.generator import Generator
from scfegan_ray.training.state import digest_of


@pytest.fixture(scope="session", autouse=True)
def heeds_ctrl_c() -> None:
    """Heed Ctrl-C even in the background of a shell, which has it ignored: jobs inherit that, and heed it so."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3_of_tests.Server]:
    """Run a real S3 server with an empty bucket `lab`."""
    with s3_of_tests.running(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def s3(s3_server: s3_of_tests.Server) -> dict[str, str]:
    """Return the AWS variables that reach the S3 server."""
    return s3_server.environment


@pytest.fixture
def ray_folder() -> Iterator[str]:
    """Give a folder for a Ray cluster that jobs join."""
    with folder_for_ray() as folder:
        yield folder


@pytest.fixture
def small_place(tmp_path: Path) -> Iterator[Path]:
    """Give a folder that takes no more than 400 kB."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.fixture(scope="session", autouse=True)
def _each_program_is_exported_once() -> Iterator[None]:
    """Keep what is exported: it follows from the weights, most tests want the same ones, and it takes a second."""
    export = editing.export
    kept: dict[tuple[object, ...], ExportedProgram] = {}

    def export_once(generator: Generator, size_px: int) -> ExportedProgram:
        key = digest_of({"": generator.state_dict()}), generator.training, size_px
        if key not in kept:
            kept[key] = export(generator, size_px)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(editing, "export", export_once)
        yield


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test's cache, working directory and tracking to itself."""
    monkeypatch.setenv("SCFEGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tiny(tmp_path: Path) -> Config:
    """Return a config for seconds, with its storage in the test's folder."""
    return replace(TINY, run_name="tiny", storage=StorageConfig(path=str(tmp_path / "runs")))


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Prepare the tiny config's faces without Ray; return the dataset's URI."""
    place = str(tmp_path_factory.mktemp("prepared") / "made")
    config = replace(TINY, data=replace(TINY.data, prepared=place))
    with pytest.MonkeyPatch.context() as patch:
        made = Cluster()
        patch.setattr(prepare, "_run", made.run)
        return prepare.prepare(config, session=made.session).uri


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make MLflow's tables in a SQLite file once; it takes seconds each time."""
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_registered_models()
    return file


@pytest.fixture
def tracked(tiny: Config, empty_database: Path) -> Config:
    """Return the tiny config, with MLflow's tables already made where it looks for them."""
    place = Path(tiny.storage.path)
    place.mkdir(parents=True)
    shutil.copy(empty_database, place / "mlflow.db")
    return tiny
