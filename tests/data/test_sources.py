"""Raw faces of every kind: folders, the official layout, zips, Parquet, drawn portraits."""

from __future__ import annotations

import pickle
import shutil
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from found_faces import FakeFinder, group

from scfegan_ray import faces
from scfegan_ray.config import DataConfig
from scfegan_ray.data import align, parsing, sources, trees
from scfegan_ray.data.codecs import encode_png
from scfegan_ray.errors import DataError


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def open_at(place: Path, **how: object) -> tuple[sources.FaceSource, sources.Listing]:
    return sources.open_source(DataConfig(source=str(place), **how), seed=0)  # type: ignore[arg-type]


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


def zipped(folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder), "zip", folder))


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_images_at_any_depth_in_order(folder: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="scfegan_ray"):
        source, listing = open_at(folder if kind == "folder" else zipped(folder))
    assert listing.keys.to_pylist() == ["a.JPG", "b/wide.png", "ünïcode 1.webp"] and not listing.refused
    assert "passed over 1 files that are no images by their names: 1 .txt" in caplog.text
    assert (source.name, source.license, source.has_labels) == ("folder", "unknown", False)
    sent = pickle.loads(pickle.dumps(source))
    assert (sent.load("ünïcode 1.webp", 32, 32).image == 10).all()


@pytest.mark.parametrize("size_px", [16, 64, 200])
def test_central_square_in_rgb(folder: Path, size_px: int) -> None:
    source, _ = open_at(folder)
    face = source.load("b/wide.png", size_px, 100)
    assert face.image.shape == (size_px, size_px, 3)
    assert (face.image == [255, 0, 0]).all()
    assert face.labels is None and face.eyes is None


def test_photograph_keeps_the_detail_that_is_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "large.png", np.zeros((700, 600, 3), np.uint8))
    source, _ = open_at(tmp_path)
    sizes = [source.load("large.png", *asked).photograph.shape[0] for asked in ((64, 192), (256, 192), (64, 900))]
    assert sizes == [192, 256, 600]


def test_only_the_first_images(folder: Path) -> None:
    assert open_at(folder, max_images=2)[1].keys.to_pylist() == ["a.JPG", "b/wide.png"]
    assert len(open_at(folder, max_images=99)[1].keys) == 3


def test_large_photographs_are_refused(folder: Path) -> None:
    source, _ = open_at(folder, max_megapixels=0.004)
    with pytest.raises(DataError, match=r"^50x100 pixels, more than 0.004 megapixels$"):
        source.load("a.JPG", 32, 32)
    assert source.load("b/wide.png", 32, 32).image.shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nowhere", None, r"no faces at .*/nowhere; check --data.source"),
        ("face.jpg", b"x", r"face\.jpg is one file; give a folder of images, a \.zip of one, or \.parquet"),
        ("faces.zip", b"PK no", r"faces\.zip is no readable zip archive"),
        ("faces.parquet", b"PAR1 no", r"faces\.parquet is no readable Parquet file"),
    ],
)
def test_what_is_no_source_is_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_at(tmp_path / name)


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """Lay three photographs out as CelebAMask-HQ does, with labels at half their size and three channels."""
    root = tmp_path / "hq"
    for number in (7, 8, 2007):
        write(root / "CelebA-HQ-img" / f"{number}.jpg", np.full((64, 64, 3), 128, np.uint8))
    for part, rows, columns in [
        ("skin", slice(8, 30), slice(4, 28)),
        ("r_eye", slice(12, 14), slice(8, 10)),
        ("l_eye", slice(12, 14), slice(20, 22)),
        ("hair", slice(0, 8), slice(0, 32)),
        ("tail", slice(0, 32), slice(0, 32)),
    ]:
        mask = np.zeros((32, 32, 3), np.uint8)
        mask[rows, columns] = 255
        write(root / "CelebAMask-HQ-mask-anno" / "0" / f"00007_{part}.png", mask)
    write(root / "CelebAMask-HQ-mask-anno" / "1" / "02007_skin.png", np.full((32, 32), 255, np.uint8))
    (root / "README.txt").write_text("terms")
    return root


@pytest.mark.parametrize("kind", ["folder", "parent", "zip", "zip of parent"])
def test_official_layout(official: Path, kind: str) -> None:
    place = {"folder": official, "parent": official.parent}.get(kind)
    if place is None:
        inner = official if kind == "zip" else official.parent
        place = Path(shutil.make_archive(str(inner.parent / f"{inner.name}-archive"), "zip", inner))
    source, listing = open_at(place)
    assert isinstance(source, sources.CelebAMaskHQ)
    assert listing.keys.to_pylist() == [f"CelebA-HQ-img/{number}.jpg" for number in (2007, 7, 8)]
    assert not listing.refused
    assert "non-commercial" in source.license
    source = pickle.loads(pickle.dumps(source))
    face = source.load("CelebA-HQ-img/7.jpg", 64, 64)
    assert face.labels is not None
    assert parsing.LABELS[face.labels[2, 2]] == "hair"
    assert parsing.LABELS[face.labels[40, 30]] == "skin"
    # The subject's right eye is at the image's left.
    assert parsing.eye_positions(face.labels) == pytest.approx([17.5, 25.5, 41.5, 25.5], abs=0.6)
    other = source.load("CelebA-HQ-img/2007.jpg", 64, 64)
    assert other.labels is not None and (other.labels == parsing.LABELS.index("skin")).all()


def test_what_is_read_ahead_is_what_is_loaded(official: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, listing = open_at(official)
    announced: list[str] = []
    loaded: list[str] = []
    read = trees.Folder.read

    def spy(tree: trees.Folder, name: str) -> bytes:
        loaded.append(name)
        return read(tree, name)

    monkeypatch.setattr(trees.Folder, "read_ahead", lambda tree, names: announced.extend(names))
    monkeypatch.setattr(trees.Folder, "read", spy)
    keys = [key for key in listing.keys.to_pylist() if not key.endswith("/8.jpg")]
    source.read_ahead(keys)
    for key in keys:
        source.load(key, 32, 32)
    assert announced == loaded and len(loaded) == 1 + 1 + 4 + 1


def test_photograph_without_labels_is_refused(official: Path) -> None:
    source, _ = open_at(official)
    with pytest.raises(DataError, match=r"^no part masks NNNNN_part\.png"):
        source.load("CelebA-HQ-img/8.jpg", 32, 32)


def test_damaged_part_mask_is_named(official: Path) -> None:
    source, _ = open_at(official)
    (official / "CelebAMask-HQ-mask-anno" / "0" / "00007_hair.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"^CelebAMask-HQ-mask-anno/0/00007_hair\.png: not a readable image"):
        source.load("CelebA-HQ-img/7.jpg", 32, 32)


def png(value: int) -> bytes:
    ok, data = cv2.imencode(".png", np.full((40, 40, 3), value, np.uint8))
    assert ok
    return data.tobytes()


def parquet(path: Path, images: list[bytes | None], column: str = "image", as_struct: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = [{"bytes": data, "path": "x"} for data in images] if as_struct else images
    pq.write_table(pa.table({"label": list(range(len(images))), column: values}), path, row_group_size=7)


@pytest.mark.parametrize("as_struct", [False, True])
def test_parquet_with_an_image_column(tmp_path: Path, as_struct: bool) -> None:
    parquet(tmp_path / "t" / "b.parquet", [png(value) for value in range(50)], as_struct=as_struct)
    parquet(tmp_path / "t" / "a.parquet", [png(100), None, b"no"], as_struct=as_struct)
    source, listing = open_at(tmp_path / "t")
    assert listing.keys.to_pylist()[:4] == [
        "a.parquet/00000000",
        "a.parquet/00000001",
        "a.parquet/00000002",
        "b.parquet/00000000",
    ]
    assert len(listing.keys.to_pylist()) == 53
    source = pickle.loads(pickle.dumps(source))
    for row in (0, 1, 2, 20, 19, 49, 3, 48, 0):  # in order, skipping, and going back
        assert (source.load(f"b.parquet/{row:08d}", 32, 32).image == row).all()
    assert (source.load("a.parquet/00000000", 32, 32).image == 100).all()
    with pytest.raises(DataError, match="^the row holds no image$"):
        source.load("a.parquet/00000001", 32, 32)
    with pytest.raises(DataError, match="^not a readable image"):
        source.load("a.parquet/00000002", 32, 32)
    assert (pickle.loads(pickle.dumps(source)).load("b.parquet/00000009", 32, 32).image == 9).all()


def test_single_parquet_file_and_its_column(tmp_path: Path) -> None:
    parquet(tmp_path / "p.parquet", [png(5)], column="photo")
    with pytest.raises(DataError, match="has no column 'image' of encoded images, but label, photo; name it with"):
        open_at(tmp_path / "p.parquet")
    with pytest.raises(DataError, match="no column 'label' of encoded images"):
        open_at(tmp_path / "p.parquet", image_column="label")
    source, listing = open_at(tmp_path / "p.parquet", image_column="photo")
    assert listing.keys.to_pylist() == ["p.parquet/00000000"]
    assert (source.load(listing.keys.to_pylist()[0], 32, 32).image == 5).all()


BINARY = {
    "large": pa.large_binary(),
    "view": pa.binary_view(),
    "dictionary": pa.dictionary(pa.int32(), pa.binary()),
    "fixed size": pa.binary(len(png(7))),
}


@pytest.mark.parametrize("as_struct", [False, True])
@pytest.mark.parametrize("kind", BINARY)
def test_parquet_column_of_every_binary_kind(tmp_path: Path, kind: str, as_struct: bool) -> None:
    assert len(png(8)) == len(png(7))
    plain = pa.array([png(7), None, png(8), png(7)], pa.binary())
    column = plain.dictionary_encode() if kind == "dictionary" else plain.cast(BINARY[kind])
    if as_struct:
        null = pa.array([False, False, False, True])
        column = pa.StructArray.from_arrays([pa.array(["x"] * 4), column], ["path", "bytes"], mask=null)
    pq.write_table(pa.table({"image": column}), tmp_path / "p.parquet")
    source, listing = open_at(tmp_path / "p.parquet")
    assert [int(source.load(listing.keys.to_pylist()[at], 32, 32).image[0, 0, 0]) for at in (0, 2)] == [7, 8]
    for row in [1, 3] if as_struct else [1]:
        with pytest.raises(DataError, match="^the row holds no image$"):
            source.load(listing.keys.to_pylist()[row], 32, 32)


def test_face_whose_masks_are_empty_is_refused(official: Path) -> None:
    write(official / "CelebAMask-HQ-mask-anno" / "1" / "02007_skin.png", np.zeros((32, 32), np.uint8))
    source, _ = open_at(official)
    with pytest.raises(DataError, match="^masks are empty"):
        source.load("CelebA-HQ-img/2007.jpg", 32, 32)


@pytest.mark.parametrize("name", ["²", "٣²", "9" * 200])
def test_no_name_ends_a_preparation(official: Path, name: str) -> None:
    write(official / "CelebA-HQ-img" / f"{name}.jpg", np.full((64, 64, 3), 128, np.uint8))
    write(official / "CelebAMask-HQ-mask-anno" / "0" / f"{name}_skin.png", np.full((64, 64), 255, np.uint8))
    source, listing = open_at(official)
    assert f"CelebA-HQ-img/{name}.jpg" in listing.keys.to_pylist()
    with pytest.raises(DataError, match="^no part masks"):
        source.load(f"CelebA-HQ-img/{name}.jpg", 32, 32)


def test_damaged_parquet_costs_its_images(tmp_path: Path) -> None:
    parquet(tmp_path / "p.parquet", [png(value) for value in range(14)])
    with pq.ParquetFile(tmp_path / "p.parquet") as file:
        at = file.metadata.row_group(0).column(1).dictionary_page_offset
    data = bytearray((tmp_path / "p.parquet").read_bytes())
    data[at : at + 16] = b"\xff" * 16
    (tmp_path / "p.parquet").write_bytes(data)
    source, listing = open_at(tmp_path / "p.parquet")
    with pytest.raises(DataError, match="damaged in its Parquet file"):
        source.load(listing.keys.to_pylist()[0], 32, 32)
    assert (source.load(listing.keys.to_pylist()[13], 32, 32).image == 13).all()


def test_folder_of_images_may_hold_tables_too(folder: Path) -> None:
    parquet(folder / "labels.parquet", [b"x"])
    assert open_at(folder)[0].name == "folder"


def test_archive_in_a_folder_of_its_own(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.ZIP", "w") as archive:
        archive.write(folder / "a.JPG", "faces/a.JPG")
    source, listing = open_at(tmp_path / "x.ZIP")
    assert listing.keys.to_pylist() == ["faces/a.JPG"]
    assert source.load("faces/a.JPG", 50, 50).image.shape == (50, 50, 3)


def test_embedded_faces_depend_on_seed_and_index_only() -> None:
    source, few = sources.open_source(DataConfig(num_embedded=3), seed=1)
    _, many = sources.open_source(DataConfig(num_embedded=9), seed=1)
    assert few.keys == many.keys[:3]
    first, second = (source.load(listing.keys[2].as_py(), 32, 64) for listing in (few, many))
    assert (first.image == second.image).all()
    assert first.labels is not None and first.eyes is not None
    _, other = sources.open_source(DataConfig(num_embedded=3), seed=2)
    assert (source.load(other.keys[2].as_py(), 32, 64).image != first.image).any()


def load_faces(
    place: Path, key: str, size_px: int = 32, detail_px: int = 40
) -> tuple[list[tuple[str, sources.Face]], list[tuple[str, str]]]:
    source, _ = open_at(place)
    assert isinstance(source, sources.RawPhotographs)
    return sources.load_faces(source, key, FakeFinder(), size_px, detail_px)  # type: ignore[arg-type]


def test_each_face_of_a_photograph_is_cut_out(groups: Path) -> None:
    found, refused = load_faces(groups, "d.png")
    assert [key for key, _ in found] == ["d.png#1", "d.png#2", "d.png#4"]
    assert refused == [("d.png#3", "face blurred")]
    photograph = group(4, ord("d"))
    for (_, face), number in zip(found, (0, 1, 3), strict=True):
        assert face.square == align.Square(38.0 + 60 * number, 32.0, 44.0 - number, 0.1 * number)
        assert np.array_equal(face.image, align.crop(photograph, face.square, 32))
        assert np.array_equal(face.photograph, align.crop(photograph, face.square, 40))
        assert face.labels is None and face.eyes is None


def test_what_is_cut_out_has_no_more_detail_than_there_is(groups: Path) -> None:
    [(_, face)], _ = load_faces(groups, "b.png", 32, 200)
    assert face.image.shape[0] == 32 and face.photograph.shape[0] == 44
    [(_, face)], _ = load_faces(groups, "b.png", 64, 200)
    assert face.image is face.photograph and face.image.shape[0] == 64


def test_one_face_keeps_the_name_of_its_photograph(groups: Path) -> None:
    [(key, _)], refused = load_faces(groups, "b.png")
    assert (key, refused) == ("b.png", [])


def test_photograph_that_is_aligned_is_taken_as_it_is(groups: Path) -> None:
    [(key, face)], refused = load_faces(groups, "c.png")
    plain = open_at(groups)[0].load("c.png", 32, 40)
    assert (key, refused, face.square) == ("c.png", [], None)
    assert np.array_equal(face.image, plain.image) and np.array_equal(face.photograph, plain.photograph)


def test_photograph_without_a_face(groups: Path) -> None:
    with pytest.raises(DataError, match="^no face found$"):
        load_faces(groups, "e.png")


def test_notes_about_a_file_are_those_of_each_of_its_faces(tmp_path: Path) -> None:
    deep = group(2).astype(np.uint16) * 16
    deep[0, 0] = 2 * 16
    (tmp_path / "deep.png").write_bytes(cv2.imencode(".png", deep)[1].tobytes())
    found, _ = load_faces(tmp_path, "deep.png")
    assert [len(face.notes) for _, face in found] == [1, 1]


def test_who_says_where_faces_are(groups: Path, tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([encode_png(group(2))], pa.binary())})
    pq.write_table(table, tmp_path / "rows.parquet")
    [one, two], _ = load_faces(tmp_path / "rows.parquet", "rows.parquet/00000000")
    assert (one[0], two[0]) == ("rows.parquet/00000000#1", "rows.parquet/00000000#2")
    zipped_source, _ = open_at(zipped(groups))
    assert isinstance(zipped_source, sources.RawPhotographs)
    assert not isinstance(sources.EmbeddedFaces(), sources.RawPhotographs)
    drawn = faces.draw_face(0, 1, 48)
    write(tmp_path / "hq" / "CelebA-HQ-img" / "1.jpg", drawn.image)
    write(tmp_path / "hq" / "CelebAMask-HQ-mask-anno" / "0" / "00001_skin.png", drawn.labels)
    official, _ = open_at(tmp_path / "hq")
    assert official.has_labels and not isinstance(official, sources.RawPhotographs)
