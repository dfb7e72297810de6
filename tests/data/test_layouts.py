"""Which files of a source are photographs: the official layout anywhere, label files of other layouts, our outputs."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from scfegan_ray import faces, storage
from scfegan_ray.config import DataConfig, ParserConfig, StorageConfig, TrackingConfig
from scfegan_ray.data import parsing, sources
from scfegan_ray.errors import ConfigError, DataError

HAIR = parsing.LABELS.index("hair")


def put(path: Path, kind: str = "photograph", index: int = 0) -> None:
    """Write a drawn face, its label map or its hair mask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = faces.draw_face(0, index, 64)
    pixels = {
        "photograph": drawn.image[:, :, ::-1],
        "labels": drawn.labels,
        "hair": np.where(drawn.labels == HAIR, 255, 0).astype(np.uint8),
    }[kind]
    assert cv2.imwrite(str(path), pixels)


def open_at(place: object, **how: object) -> tuple[sources.FaceSource, sources.Listing]:
    return sources.open_source(DataConfig(source=str(place), **how), seed=0)  # type: ignore[arg-type]


def lay_out(root: Path, photograph: str = ".jpg", mask: str = ".png", count: int = 2) -> None:
    for at in range(count):
        put(root / "CelebA-HQ-img" / f"{at}{photograph}", index=at)
        put(root / "CelebAMask-HQ-mask-anno" / "0" / f"{at:05d}_hair{mask}", "hair", at)


def hair_at(place: object) -> list[tuple[str, bool]]:
    """Return the keys of a source, each with whether hair is labelled; nothing where it claims no labels."""
    source, listing = open_at(place)
    loaded = [(key, source.load(key, 64, 64).labels) for key in listing.keys.to_pylist() if source.has_labels]
    return [(key, labels is not None and bool((labels == HAIR).any())) for key, labels in loaded]


def both(photograph: str = ".jpg") -> list[tuple[str, bool]]:
    """Return what `hair_at` says of what `lay_out` laid out."""
    return [(f"CelebA-HQ-img/{at}{photograph}", True) for at in range(2)]


@pytest.mark.parametrize("inner", ["data/CelebAMask-HQ", "a/b/c/d"])
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_official_layout_at_any_depth(tmp_path: Path, inner: str, kind: str) -> None:
    lay_out(tmp_path / "in" / inner)
    place = tmp_path / "in"
    if kind == "zip":
        place = Path(shutil.make_archive(str(tmp_path / "out"), "zip", place))
    assert hair_at(place) == both()


@pytest.mark.parametrize(("photograph", "mask"), [(".png", ".png"), (".JPG", ".PNG"), (".JPEG", ".Png")])
def test_official_layout_with_other_suffixes(tmp_path: Path, photograph: str, mask: str) -> None:
    lay_out(tmp_path, photograph, mask)
    assert hair_at(tmp_path) == both(photograph)


def test_official_layout_behind_links(tmp_path: Path) -> None:
    lay_out(tmp_path / "disk")
    (tmp_path / "faces" / "hq").mkdir(parents=True)
    for name in ("CelebA-HQ-img", "CelebAMask-HQ-mask-anno"):
        (tmp_path / "faces" / "hq" / name).symlink_to(tmp_path / "disk" / name)
    (tmp_path / "link").symlink_to(tmp_path / "faces")
    assert hair_at(tmp_path / "link") == both()


def test_folder_that_is_reached_twice_is_called_by_its_own_name(tmp_path: Path) -> None:
    put(tmp_path / "z" / "deep" / "0.png")
    (tmp_path / "a").symlink_to(tmp_path / "z" / "deep")
    assert open_at(tmp_path)[1].keys.to_pylist() == ["z/deep/0.png"]


def test_official_layout_in_an_object_store(
    tmp_path: Path, s3: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    lay_out(tmp_path / "in")
    for name in storage.list_files(str(tmp_path / "in")):
        storage.write_bytes(f"s3://lab/layout #%20/a/b/{name}", (tmp_path / "in" / name).read_bytes())
    assert hair_at("s3://lab/layout #%20") == both()


def with_backslashes(tmp_path: Path, place: Path, plain: str = "") -> Path:
    archive = tmp_path / "windows.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for name in storage.list_files(str(place)):
            info = zipfile.ZipInfo("x")
            info.filename = name if plain and plain in name else name.replace("/", "\\")
            out.writestr(info, (place / name).read_bytes())
    return archive


def test_zip_whose_names_have_backslashes(tmp_path: Path) -> None:
    lay_out(tmp_path / "in" / "CelebAMask-HQ")
    put(tmp_path / "in" / "__MACOSX" / "x.jpg")
    assert hair_at(with_backslashes(tmp_path, tmp_path / "in")) == both()


def test_zip_with_both_separators_gives_no_mask_as_a_face(tmp_path: Path) -> None:
    lay_out(tmp_path / "in")
    archive = with_backslashes(tmp_path, tmp_path / "in", plain=".jpg")
    with pytest.raises(DataError, match="without part masks"):
        open_at(archive)
    put(tmp_path / "other" / "photographs" / "a.jpg")
    put(tmp_path / "other" / "photographs" / "b.jpg")
    _, listing = open_at(with_backslashes(tmp_path, tmp_path / "other", plain="a.jpg"))
    assert listing.keys.to_pylist() == ["photographs/a.jpg"]
    assert listing.refused[0][1].startswith("a backslash in its name")


def test_several_layouts_are_named(tmp_path: Path) -> None:
    lay_out(tmp_path / "first")
    lay_out(tmp_path / "second" / "copy")
    with pytest.raises(DataError, match=r"holds 2 layouts of CelebAMask-HQ \(first/, second/copy/\); give one"):
        open_at(tmp_path)


def test_images_beside_the_layout_are_passed_over_with_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lay_out(tmp_path / "hq")
    put(tmp_path / "mine.jpg")
    assert hair_at(tmp_path) == both()
    assert "passed over 1 images beside the photographs of hq/CelebA-HQ-img/" in caplog.text


def test_official_layout_without_annotations(tmp_path: Path) -> None:
    for at in range(2):
        put(tmp_path / "data" / "CelebA-HQ-img" / f"{at}.jpg", index=at)
    with pytest.raises(DataError, match=r"give --data.source .*/data/CelebA-HQ-img .*, or .*--data\.parser\.model"):
        open_at(tmp_path)
    assert open_at(tmp_path / "data" / "CelebA-HQ-img")[1].keys.to_pylist() == ["0.jpg", "1.jpg"]
    source, listing = open_at(tmp_path, parser=ParserConfig(model="parser.onnx"))
    assert not source.has_labels
    assert listing.keys.to_pylist() == ["data/CelebA-HQ-img/0.jpg", "data/CelebA-HQ-img/1.jpg"]


@pytest.mark.parametrize(
    ("photograph", "label", "given"),
    [
        ("train_img/{}.jpg", "train_label/{}.png", "train_img"),
        ("train_img/{}.png", "train_label/{}.png", "train_img"),
        ("CelebA-HQ-img/{}.jpg", "CelebAMask-HQ-mask/{}.png", "CelebA-HQ-img"),
        ("CelebA-HQ-img/{}.jpg", "annotations/0000{}_hair.png", "CelebA-HQ-img"),
        ("images/00{}.jpg", "masks/00{}.png", "images"),
        ("a/images/x{}.jpg", "a/labels/x{}.bmp", "a/images"),
        ("images/train/{}.jpg", "parsing/train/{}.png", "images/train"),
        ("faces/{}.jpg", "faces/seg/{}.png", None),
        ("00{}.jpg", "00{}_mask.png", None),
        ("p/img_{}.jpg", "q/label_{}.png", "p"),
        ("p/{}.jpg", "q/{}_label.png", "p"),
        ("photos/{}.jpg", "anything/0000{}_hair.png", "photos"),
        ("photos/a{}.jpg", "anything/z{}_l_eye.png", None),
    ],
)
@pytest.mark.parametrize("parser", [None, "parser.onnx"])
def test_label_files_are_never_faces(
    tmp_path: Path, photograph: str, label: str, given: str | None, parser: str | None
) -> None:
    for at in range(3):
        put(tmp_path / photograph.format(at), index=at)
        put(tmp_path / label.format(at), "labels", at)
    if "z{}" in label:
        for at in range(3):
            put(tmp_path / label.format(at).replace("l_eye", "hair"), "labels", at)
        given = "photos"
    with pytest.raises(DataError, match="label files beside photographs, such as .*; give ") as raised:
        open_at(tmp_path, parser=ParserConfig(model=parser))
    assert "--data.parser.model" in str(raised.value)
    if given:
        assert f"--data.source {tmp_path}/{given} " in str(raised.value)
        assert len(open_at(tmp_path / given, parser=ParserConfig(model="x"))[1].keys) == 3


def test_label_files_of_an_archive(tmp_path: Path) -> None:
    put(tmp_path / "in" / "train_img" / "0.jpg")
    put(tmp_path / "in" / "train_label" / "0.png", "labels")
    with pytest.raises(DataError, match="--data.source its folder train_img, unpacked"):
        open_at(shutil.make_archive(str(tmp_path / "out"), "zip", tmp_path / "in"))


@pytest.mark.parametrize(
    "names",
    [
        ["masks/{}.jpg"],
        ["masks/{}.png", "labels/band{}.png"],
        ["carnival_mask_{}.jpg", "party_{}.jpg"],
        ["people/{}.jpg", "people_with_masks/{}.jpg"],
        ["people/{}.png", "people_with_masks/{}.png"],
        ["annotations 2019/{}.jpg", "holiday/x{}.jpg"],
        ["anna{}.jpg", "anna{}_hat.jpg"],
        ["{}_hat.png"],
        ["segment{}/a.jpg"],
    ],
)
def test_words_alone_make_no_label_files(tmp_path: Path, names: list[str]) -> None:
    for at in range(3):
        for which, name in enumerate(names):
            put(tmp_path / name.format(at), index=3 * which + at)
    assert len(open_at(tmp_path)[1].keys) == 3 * len(names)


def outputs_in(root: Path) -> None:
    """Write what jobs leave behind, as far as it has pictures or Parquet in it."""
    put(root / "prepared" / "embedded-64-abc" / "preview.png")
    (root / "prepared" / "embedded-64-abc" / "dataset.json").write_text("{}")
    put(root / "prepared" / "begun" / "preview.png")
    put(root / "tiny" / "grids" / "0001.png")
    (root / "tiny" / "run.json").write_text("{}")
    put(root / "search" / "mlartifacts" / "1" / "grid.png")
    put(root / "mlartifacts" / "1" / "grid.png")


@pytest.mark.parametrize("where", ["runs", "deep/down", ""])
def test_own_outputs_are_no_photographs(tmp_path: Path, where: str, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path / "mine" / "0.jpg")
    outputs_in(tmp_path / where)
    (tmp_path / "link").symlink_to(tmp_path)
    for source in (tmp_path, tmp_path / "link", "."):
        with caplog.at_level("INFO", logger="scfegan_ray"):
            _, listing = sources.open_source(
                DataConfig(source=str(source)), seed=0, outputs=(str(tmp_path / where or "."),)
            )
        assert listing.keys.to_pylist() == ["mine/0.jpg"]
    assert f"left out what this package or MLflow wrote under {tmp_path}: " in caplog.text


def test_outputs_elsewhere_and_the_prepared_folder(tmp_path: Path) -> None:
    put(tmp_path / "0.jpg")
    outputs_in(tmp_path / "old runs")
    shutil.rmtree(tmp_path / "old runs" / "prepared" / "begun")
    put(tmp_path / "made" / "preview.png")
    _, listing = open_at(tmp_path, prepared=str(tmp_path / "made"))
    assert listing.keys.to_pylist() == ["0.jpg"]


def test_photographs_under_the_storage_path_are_taken(tmp_path: Path) -> None:
    put(tmp_path / "runs" / "raw" / "0.jpg")
    _, listing = sources.open_source(
        DataConfig(source=str(tmp_path / "runs" / "raw")), seed=0, outputs=(str(tmp_path / "runs"),)
    )
    assert listing.keys.to_pylist() == ["0.jpg"]


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("dataset.json", {"schema_version": 2}, "is a prepared dataset, not raw photographs; give it as --data.prep"),
        ("run.json", {"run_id": "x"}, "is the folder of a run, not of photographs; check --data.source"),
        ("dataset.json", {"labels": None}, None),
    ],
)
def test_source_that_is_an_output_itself(tmp_path: Path, name: str, values: object, said: str | None) -> None:
    put(tmp_path / "preview.png")
    (tmp_path / name).write_text(json.dumps(values))
    if said is None:
        assert open_at(tmp_path)[1].keys.to_pylist() == ["preview.png"]
    else:
        with pytest.raises(DataError, match=said):
            open_at(tmp_path)


@pytest.mark.parametrize("empty", ["", "  "])
def test_empty_places_are_errors(empty: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.source is empty; give a folder"):
        DataConfig(source=empty)
    with pytest.raises(ConfigError, match=r"data\.prepared is empty; give a folder, or leave it out"):
        DataConfig(prepared=empty)
    with pytest.raises(ConfigError, match=r"data\.parser\.model is empty"):
        ParserConfig(model=empty)
    with pytest.raises(ConfigError, match=r"storage\.path is empty"):
        StorageConfig(path=empty)
    with pytest.raises(ConfigError, match=r"tracking\.uri is empty"):
        TrackingConfig(uri=empty)
