"""What tests of data share."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from found_faces import FakeFinder, group

from cluster import Cluster
from scfegan_ray import faces
from scfegan_ray.config import Config
from scfegan_ray.data import align, prepare
from scfegan_ray.data.codecs import encode_png


@pytest.fixture(scope="session", autouse=True)
def _each_face_is_drawn_once() -> Iterator[None]:
    """Keep what is drawn, for most tests want the same few faces; those of the drawing itself imported it before."""

    @functools.cache
    def draw_face(seed: int, index: int, size_px: int) -> faces.DrawnFace:
        drawn = faces.portrait.draw_face(seed, index, size_px)
        drawn.image.setflags(write=False)
        drawn.labels.setflags(write=False)
        return drawn

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faces, "draw_face", draw_face)
        yield


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Prepare in this process instead of on Ray."""
    made = Cluster()
    monkeypatch.setattr(prepare, "_run", made.run)
    return made


@pytest.fixture
def config(tiny: Config, tmp_path: Path) -> Config:
    return replace(tiny, data=replace(tiny.data, prepared=str(tmp_path / "made")))


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for at in range(6):
        (folder / f"{at}.png").write_bytes(encode_png(faces.draw_face(0, at, 48).image))
    return folder


@pytest.fixture
def finder(monkeypatch: pytest.MonkeyPatch) -> FakeFinder:
    """Let faces be found without weights."""
    monkeypatch.setattr(align, "FaceFinder", FakeFinder)
    for name in ("yunet_onnx", "face_mesh_tflite"):
        monkeypatch.setattr(align, name, lambda: b"")
    return FakeFinder()


@pytest.fixture
def groups(tmp_path: Path) -> Path:
    """Give photographs of no, one, two and four faces, and one that is aligned already."""
    folder = tmp_path / "groups"
    folder.mkdir()
    for name, count in (("a", 2), ("b", 1), ("d", 4), ("e", 0), ("f", 2), ("g", 1)):
        (folder / f"{name}.png").write_bytes(encode_png(group(count, ord(name))))
    (folder / "c.png").write_bytes(encode_png(faces.draw_face(0, 0, 48).image))
    return folder
