"""Raw faces of all three kinds, and images that are not what they seem."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from scfegan_ray.config import DataConfig
from scfegan_ray.data import parsing
from scfegan_ray.data.sources import CelebAMaskHQ, EmbeddedFaces, ImageFolder, open_source
from scfegan_ray.errors import DataError


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "faces"
    wide = np.zeros((40, 80, 3), np.uint8)
    wide[:, 20:60] = (0, 0, 255)  # BGR: red in the central square
    write(root / "b" / "wide.png", wide)
    write(root / "a.JPG", np.full((100, 50, 3), 99, np.uint8))
    write(root / "ünïcode 1.webp", np.full((64, 64, 3), 10, np.uint8))
    (root / "notes.txt").write_text("not an image")
    return root


def test_folder_is_read_recursively_in_order(folder: Path) -> None:
    source = open_source(DataConfig(source=str(folder)), seed=0)
    assert isinstance(source, ImageFolder)
    assert source.keys() == ["a.JPG", "b/wide.png", "ünïcode 1.webp"]


@pytest.mark.parametrize("size_px", [16, 64, 200])
def test_central_square_in_rgb(folder: Path, size_px: int) -> None:
    face = ImageFolder(str(folder)).load("b/wide.png", size_px)
    assert face.image.shape == (size_px, size_px, 3)
    assert (face.image == [255, 0, 0]).all()
    assert face.labels is None
    assert face.eyes == pytest.approx(parsing.canonical_eyes(size_px))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("empty.jpg", b""),
        ("text.jpg", b"this is no photograph"),
        ("cut.png", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"),
        ("bomb.png", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\xea\x60\x00\x00\xea\x60\x08\x02\x00\x00\x00"),
    ],
)
def test_unreadable_image_is_named(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    with pytest.raises(DataError, match=name):
        ImageFolder(str(folder)).load(name, 32)


def test_tiny_image_is_refused(folder: Path) -> None:
    write(folder / "tiny.png", np.zeros((3, 90, 3), np.uint8))
    with pytest.raises(DataError, match=r"tiny\.png: 90x3 pixels, smaller than 16"):
        ImageFolder(str(folder)).load("tiny.png", 32)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder of faces at .*/nowhere; check --data.source"):
        open_source(DataConfig(source=str(tmp_path / "nowhere")), seed=0)


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """Lay one 64-pixel photograph out as CelebAMask-HQ does, with labels at half its size and three channels."""
    root = tmp_path / "hq"
    write(root / "CelebA-HQ-img" / "7.jpg", np.full((64, 64, 3), 128, np.uint8))
    write(root / "CelebA-HQ-img" / "8.jpg", np.full((64, 64, 3), 128, np.uint8))
    for part, rows, columns in [
        ("skin", slice(8, 30), slice(4, 28)),
        ("r_eye", slice(12, 14), slice(8, 10)),
        ("l_eye", slice(12, 14), slice(20, 22)),
        ("hair", slice(0, 8), slice(0, 32)),
    ]:
        mask = np.zeros((32, 32, 3), np.uint8)
        mask[rows, columns] = 255
        write(root / "CelebAMask-HQ-mask-anno" / "0" / f"00007_{part}.png", mask)
    return root


def test_official_layout(official: Path) -> None:
    source = open_source(DataConfig(source=str(official)), seed=0)
    assert isinstance(source, CelebAMaskHQ)
    assert source.keys() == ["CelebA-HQ-img/7.jpg", "CelebA-HQ-img/8.jpg"]
    assert "non-commercial" in source.license
    face = source.load("CelebA-HQ-img/7.jpg", 64)
    assert face.labels is not None
    assert parsing.LABELS[face.labels[2, 2]] == "hair"
    assert parsing.LABELS[face.labels[40, 30]] == "skin"
    # The subject's right eye is at the image's left.
    assert face.eyes == pytest.approx([17.5, 25.5, 41.5, 25.5], abs=0.6)


def test_photograph_without_labels_is_refused(official: Path) -> None:
    source = CelebAMaskHQ.open(str(official))
    with pytest.raises(DataError, match=r"CelebA-HQ-img/8\.jpg: no part masks"):
        source.load("CelebA-HQ-img/8.jpg", 32)


def test_embedded_faces_depend_on_seed_and_index_only() -> None:
    few, many = EmbeddedFaces(3, seed=1), EmbeddedFaces(9, seed=1)
    assert few.keys() == many.keys()[:3]
    key = few.keys()[2]
    first, second = few.load(key, 32), many.load(key, 32)
    assert (first.image == second.image).all()
    assert first.labels is not None
    other = EmbeddedFaces(3, seed=2)
    assert (other.load(other.keys()[2], 32).image != first.image).any()
