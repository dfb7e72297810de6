"""Homes, caches and folders for temporary files that cannot be used, as shells and containers have them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from running import run_code

from scfegan_ray import cache, environment, storage
from scfegan_ray.errors import ConfigError, StorageError


def test_long_temporary_folder_is_not_for_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    environment.settle_ray_folder()
    chosen = os.environ["RAY_TMPDIR"]
    assert len(chosen) <= environment.RAY_FOLDER_BYTES < 40
    assert not chosen.startswith(str(tmp_path))
    assert os.access(chosen, os.W_OK)


@pytest.mark.parametrize(
    ("folder", "reason"),
    [("/tmp/" + 60 * "y", "has 65 bytes, too many for the sockets of Ray; unset it"), ("/proc/x", "cannot be used")],
)
def test_ray_folder_that_cannot_be_used_is_refused(folder: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", folder)
    with pytest.raises(ConfigError, match=f"RAY_TMPDIR .*{reason}"):
        environment.settle_ray_folder()


def test_folder_of_another_user_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Anybody may make a folder of this name in /tmp first.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / f"scfegan-{os.getuid()}").symlink_to(tmp_path, target_is_directory=True)
    assert environment._private_folder().parent != tmp_path


def test_user_without_home(tmp_path: Path) -> None:
    code = """
import os, pwd
for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "SCFEGAN_CACHE", "XDG_CACHE_HOME"):
    os.environ.pop(name, None)
def nobody(uid): raise KeyError(uid)
pwd.getpwuid = nobody  # as for a bare uid in a container
from scfegan_ray import cache, environment, storage
environment.settle()
import getpass, pathlib
storage.check_writable(str(pathlib.Path.home()))
storage.check_writable(str(cache.cache_dir()))
import ray.train
print(getpass.getuser())
"""
    assert run_code(code, tmp_path, {"TMPDIR": str(tmp_path)}) == f"uid-{os.getuid()}"


def test_home_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/proc")
    monkeypatch.delenv("SCFEGAN_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    environment.settle()
    assert os.environ["HOME"] == "/proc", "what is read there, such as keys, stays in reach"
    place = cache.cache_dir()
    assert place.is_relative_to(environment._private_folder())
    storage.check_writable(str(place))


def test_cache_that_cannot_be_made_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCFEGAN_CACHE", "/proc/cache")
    with pytest.raises(ConfigError, match="SCFEGAN_CACHE cannot be used .*/proc/cache.*; set it to a folder"):
        environment.settle()
    monkeypatch.setenv("SCFEGAN_CACHE", "/proc")  # may hold all that is wanted
    environment.settle()


@pytest.mark.parametrize("uri", ["gs://b/x", "hdfs://n/x", "http://h/x", "https://h/x", "az://c/x", "s3a://b/x"])
def test_other_stores_are_refused_at_once(uri: str) -> None:
    for verb in (storage.absolute, storage.exists, storage.check_writable):
        with pytest.raises(StorageError, match=f"cannot use {uri}: .*; give a local path or an s3:// URI"):
            verb(uri)
