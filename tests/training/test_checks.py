"""What a run needs at its end is refused before its beginning; without Ray."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from scfegan_ray import locks, registry, storage, tracking
from scfegan_ray.config import Config, StorageConfig
from scfegan_ray.errors import BusyError, ConfigError, ModelError, ScFeganError, StorageError
from scfegan_ray.training import checks, launch

GOLDEN = Path(__file__).parent.parent / "golden" / "version_0_1" / "run" / "checkpoints" / "checkpoint-0000000008"


@contextlib.contextmanager
def no_session() -> Iterator[None]:
    raise AssertionError("Ray was started")
    yield


def refused(config: Config) -> ScFeganError:
    """Return what a training is refused with, before Ray and before anything is prepared."""
    with pytest.raises(ScFeganError) as caught:
        launch.train(config, session=no_session)
    assert not Path(config.storage.path, "prepared").exists()
    return caught.value


@pytest.mark.parametrize("name", ["a/b", "a:b", "", " ", "..", "it's", "what?", "x" * 257])
def test_name_of_a_model_that_could_not_be_registered(tiny: Config, name: str) -> None:
    error = refused(replace(tiny, tracking=replace(tiny.tracking, model_name=name)))
    assert isinstance(error, ConfigError)
    assert str(error).startswith(f"tracking.model_name is {name!r}: ")


@pytest.mark.parametrize("name", ["", "x" * 501, "x" * 257])
def test_name_of_an_experiment(tiny: Config, name: str) -> None:
    error = refused(replace(tiny, tracking=replace(tiny.tracking, experiment=name)))
    assert isinstance(error, ConfigError) and "tracking.experiment is" in str(error)


def test_name_of_a_run_that_is_no_folder(tiny: Config) -> None:
    assert "run_name has 201 characters" in str(refused(replace(tiny, run_name="x" * 201)))


def test_usable_names_pass(tiny: Config) -> None:
    def complaint(name: str) -> str | None:
        config = replace(tiny, tracking=replace(tiny.tracking, model_name=name, experiment=f"{name}/x'y"))
        try:
            tracking.check_names(config)
            registry.check_names(config)
        except ConfigError as error:
            return str(error)
        return None

    names = ("scfegan-generator", "Face editor (2)", "gesichter_ü", "a.b@c", "50%")
    assert {name: complaint(name) for name in names} == dict.fromkeys(names)


def test_room_is_reckoned_from_real_checkpoints(tiny: Config) -> None:
    real = sum(file.stat().st_size for file in GOLDEN.glob("*.safetensors"))
    assert 0.9 * real < checks.checkpoint_bytes(tiny) < real


def test_checkpoints_that_do_not_fit(tiny: Config, small_place: Path) -> None:
    config = replace(tiny, storage=StorageConfig(path=str(small_place)))
    error = refused(config)  # 2 to keep, the best and the one being written: 4 of 203 kB
    assert isinstance(error, StorageError)
    assert "needs room for 4 checkpoints of 203 kB, 813 kB in all, and has 410 kB; free space, or give" in str(error)


def test_file_of_features(tiny: Config, tmp_path: Path) -> None:
    def with_features(spec: str) -> Config:
        return replace(tiny, losses=replace(tiny.losses, features=spec))

    assert isinstance(refused(with_features(str(tmp_path / "absent.pt"))), StorageError)
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "other.pt")
    error = refused(with_features(str(tmp_path / "other.pt")))
    assert isinstance(error, ModelError) and "has no tensor features.0.bias" in str(error)


def test_database_that_can_only_be_read(tracked: Config, tmp_path: Path) -> None:
    tracking.check_usable(tracked)
    database = Path(tracked.storage.path, "mlflow.db")
    database.chmod(0o444)
    is_root = os.getuid() == 0  # whom no permission stops
    if is_root and subprocess.run(["chattr", "+i", str(database)], capture_output=True, check=False).returncode:
        pytest.skip("nothing is read-only for this user here")
    try:
        error = refused(tracked)
    finally:
        subprocess.run(["chattr", "-i", str(database)], capture_output=True, check=False)
        database.chmod(0o644)
    assert isinstance(error, StorageError) and "cannot use MLflow at" in str(error)


def test_place_of_artifacts_that_cannot_be_written(tracked: Config, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    MlflowClient(tracking.tracking_uri(tracked)).create_experiment(
        "scfegan", artifact_location=f"{tmp_path}/file/below"
    )
    error = refused(tracked)
    assert f"artifacts of the experiment scfegan cannot be written to {tmp_path}/file/below: " in str(error)


def test_deleted_experiment_is_named(tracked: Config) -> None:
    tracking.check_usable(tracked)
    client = MlflowClient(tracking.tracking_uri(tracked))
    client.delete_experiment("1")
    assert "was deleted; bring it back with `mlflow experiments restore -x 1`" in str(refused(tracked))


def test_check_leaves_nothing(tiny: Config) -> None:
    tracking.check_usable(tiny)
    assert [file for _, _, files in os.walk(f"{tiny.storage.path}/mlartifacts") for file in files] == []
    assert sorted(os.listdir(tiny.storage.path)) == ["mlartifacts", "mlflow.db"]


def test_second_job_of_a_run_ends_before_ray(tracked: Config) -> None:
    with locks.held(storage.join(tracked.storage.path, "tiny"), "run tiny"), pytest.raises(BusyError) as caught:
        launch.train(tracked, session=no_session)
    assert f"run tiny is in use by process {os.getpid()} on " in str(caught.value)


def test_two_first_jobs_make_one_database(tiny: Config, tmp_path: Path) -> None:
    code = """
import os, sys
from dataclasses import replace
from scfegan_ray import tracking
from scfegan_ray.config import Config, StorageConfig
config = Config(storage=StorageConfig(path=sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
print(tracking.start_run(config, "run", tags={}))
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "new")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], [log[-500:] for _, log in said]
    assert len({run for run, _ in said}) == 2
