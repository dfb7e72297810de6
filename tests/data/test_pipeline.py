"""What is made, what is kept and what is refused; the shards are made in this process instead of on Ray."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_parsing import color_parser

from cluster import Cluster
from scfegan_ray import storage
from scfegan_ray.config import Config, DataConfig, ParserConfig
from scfegan_ray.data import faces, pipeline, prepared, shards, sketches
from scfegan_ray.errors import DataError, ModelError, StorageError


@pytest.fixture
def config(tiny: Config, tmp_path: Path) -> Config:
    return replace(tiny, data=replace(tiny.data, prepared=str(tmp_path / "made")))


def content(uri: str) -> dict[str, bytes]:
    return {
        name: Path(uri, name).read_bytes() for name in storage.list_files(uri) if name.startswith(("data/", "dataset"))
    }


def test_dataset_holds_every_image_once(config: Config, cluster: Cluster) -> None:
    made = pipeline.prepare(config, session=cluster.session)
    assert cluster.made == [0, 1, 2]
    dataset = prepared.PreparedDataset.open(made.uri)
    assert dataset.keys == [f"embedded/0/{at:07d}" for at in range(12)]
    info = dataset.info
    assert info == made.info
    assert (info.num_images, info.num_rejected, info.num_shards) == (12, 0, 3)
    assert (info.num_train, info.num_test) == (len(dataset.train_rows), len(dataset.test_rows))
    assert (info.color_segments, info.eyes, info.hair) == ("labels", "labels", "labels")
    assert (info.sketch_detector, info.sketch_precision) == ("opencv", "float32")
    assert info.preparation["data.sketch.threshold"] == 0.4
    assert sorted(os.listdir(made.uri)) == ["data", *prepared.OTHER_FILES]


def test_nothing_is_left_to_do(config: Config, cluster: Cluster) -> None:
    first = pipeline.prepare(config, session=cluster.session)
    before = content(first.uri)
    again = pipeline.prepare(config, session=cluster.session)
    assert (again.info, again.rejected) == (first.info, first.rejected)
    assert cluster.num_sessions == 1, "Ray is not started for nothing"
    assert content(first.uri) == before


@pytest.mark.parametrize("stop_after", [0, 1, 2])
def test_interrupted_preparation_goes_on(config: Config, cluster: Cluster, stop_after: int, tmp_path: Path) -> None:
    whole = pipeline.prepare(replace(config, data=replace(config.data, prepared=str(tmp_path / "whole"))))
    cluster.made.clear()
    cluster.stop_after = stop_after
    with pytest.raises(KeyboardInterrupt):
        pipeline.prepare(config, session=cluster.session)
    uri = str(tmp_path / "made")
    assert prepared.DatasetInfo.read(uri) is None
    with pytest.raises(DataError, match="no prepared dataset"):
        prepared.PreparedDataset.open(uri)
    kept = content(uri)
    assert len(kept) == stop_after
    cluster.stop_after = None
    made = pipeline.prepare(config, session=cluster.session)
    assert cluster.made == [0, 1, 2], "no shard is made twice"
    assert made.info == whole.info
    assert content(uri).items() >= kept.items()
    # Parquet writes no time, so that the same work gives the same bytes.
    assert content(uri) == content(whole.uri)


def test_last_step_that_was_killed_is_done_again(config: Config, cluster: Cluster) -> None:
    made = pipeline.prepare(config, session=cluster.session)
    for name in prepared.OTHER_FILES:
        Path(made.uri, name).unlink()
    cluster.made.clear()
    assert pipeline.prepare(config, session=cluster.session).info == made.info
    assert cluster.made == [] and cluster.num_sessions == 1


def test_abandoned_scraps_go(config: Config, cluster: Cluster, tmp_path: Path) -> None:
    cluster.stop_after = 1
    with pytest.raises(KeyboardInterrupt):
        pipeline.prepare(config)
    old, young = (tmp_path / "made" / "data" / f".part-0000{at}.parquet.abc.part" for at in (1, 2))
    for scrap in (old, young):
        scrap.write_bytes(b"half a sha")
    os.utime(old, (time.time() - 3600,) * 2)
    cluster.stop_after = None
    pipeline.prepare(config)
    assert not old.exists()
    assert young.exists(), "somebody may still be writing it"


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size_px": 64}, "with data.size_px = 32, now it is 64"),
        ({"shard_images": 3}, "with data.shard_images = 4, now it is 3"),
        ({"num_embedded": 13}, "from other photographs than the source holds now|data.num_embedded = 12, now it is 13"),
        ({"test_fraction": 0.5}, "with data.test_fraction = 0.25, now it is 0.5"),
    ],
)
def test_other_settings_are_refused(
    config: Config, cluster: Cluster, finished: bool, change: dict[str, object], said: str
) -> None:
    cluster.stop_after = None if finished else 1
    with contextlib.suppress(KeyboardInterrupt):
        pipeline.prepare(config)
    before = content(str(config.data.prepared))
    with pytest.raises(DataError, match=f"({said}); choose another --data.prepared or delete that folder"):
        pipeline.prepare(replace(config, data=replace(config.data, **change)))  # type: ignore[arg-type]
    assert content(str(config.data.prepared)) == before


def test_masks_license_and_resources_do_not_shape_a_dataset(config: Config, cluster: Cluster) -> None:
    pipeline.prepare(config)
    other = replace(
        config,
        masks=replace(config.masks, max_lines=2),
        data=replace(config.data, license="mine", gpus_per_actor=0.0),
    )
    pipeline.prepare(other)
    assert len(cluster.made) == 3


def test_settings_name_the_default_place(tiny: Config, cluster: Cluster) -> None:
    places = {
        pipeline.prepare(replace(tiny, data=replace(tiny.data, **change))).uri  # type: ignore[arg-type]
        for change in ({}, {"size_px": 64}, {"num_embedded": 5}, {"sketch": replace(tiny.data.sketch, threshold=0.5)})
    }
    assert len(places) == 4
    assert all("/runs/prepared/embedded-" in place for place in places)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for at in range(6):
        (folder / f"{at}.png").write_bytes(prepared.encode_png(faces.draw_face(0, at, 48).image))
    return folder


def test_photographs_that_changed_are_refused(config: Config, cluster: Cluster, photographs: Path) -> None:
    config = replace(config, data=replace(config.data, source=str(photographs)))
    cluster.stop_after = 1
    with pytest.raises(KeyboardInterrupt):
        pipeline.prepare(config)
    shutil.copy(photographs / "0.png", photographs / "new.png")
    with pytest.raises(DataError, match="begun from other photographs than the source holds now"):
        pipeline.prepare(config)


def test_photograph_that_changed_is_noticed(config: Config, cluster: Cluster, photographs: Path) -> None:
    config = replace(config, data=replace(config.data, source=str(photographs)))
    pipeline.prepare(config)
    (photographs / "3.png").write_bytes(prepared.encode_png(faces.draw_face(1, 3, 48).image) + b"longer")
    with pytest.raises(DataError, match="was prepared from other photographs than the source holds now"):
        pipeline.prepare(config)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("default_place", [True, False])
def test_address_of_a_source_does_not_matter(
    config: Config, cluster: Cluster, photographs: Path, tmp_path: Path, finished: bool, default_place: bool
) -> None:
    def at(source: object) -> Config:
        place = None if default_place else config.data.prepared
        return replace(config, data=replace(config.data, source=str(source), prepared=place, shard_images=3))

    cluster.stop_after = None if finished else 1
    with contextlib.suppress(KeyboardInterrupt):
        pipeline.prepare(at(photographs))
    cluster.stop_after = None
    (tmp_path / "link").symlink_to(photographs)
    moved = tmp_path / "moved"
    for source in (f"file://{photographs}/", f"{photographs}/", "photographs", tmp_path / "link"):
        assert pipeline.prepare(at(source)).info.num_images == 6
    photographs.rename(moved)
    made = pipeline.prepare(at(moved))
    assert cluster.made == [0, 1], "no shard is made twice"
    assert made.info.source in (f"file://{photographs}/", str(photographs), f"{photographs}/")
    assert not any("photographs" in str(value) for value in made.info.preparation.values())


def test_source_with_the_storage_path_in_it(config: Config, cluster: Cluster, photographs: Path) -> None:
    config = replace(config, data=replace(config.data, source=".", prepared=None))
    for _ in range(2):
        made = pipeline.prepare(config)
    assert Path(made.uri, "preview.png").is_relative_to(photographs.parent)
    assert (made.info.num_images, made.info.num_rejected) == (6, 0)
    assert cluster.made == [0, 1]


def test_zip_of_prepared_photographs_is_the_same(
    config: Config, cluster: Cluster, photographs: Path, tmp_path: Path
) -> None:
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", photographs)
    for source in (str(photographs), archive):
        pipeline.prepare(replace(config, data=replace(config.data, source=source)))
    assert cluster.made == [0, 1]
    (photographs / "0.png").write_bytes((photographs / "0.png").read_bytes()[::-1])
    other = shutil.make_archive(str(tmp_path / "other"), "zip", photographs)
    first = replace(config, data=replace(config.data, source=archive, prepared=str(tmp_path / "of zip")))
    pipeline.prepare(first)
    with pytest.raises(DataError, match="from other photographs than the source holds now"):
        pipeline.prepare(replace(first, data=replace(first.data, source=other)))


def test_object_of_the_same_size_that_changed_is_noticed(
    config: Config, cluster: Cluster, photographs: Path, s3: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    source = "s3://lab/changed"
    for path in photographs.iterdir():
        storage.write_bytes(f"{source}/{path.name}", path.read_bytes())
    local = replace(config, data=replace(config.data, source=str(photographs)))
    remote = replace(config, data=replace(config.data, source=f"{source}/"))
    pipeline.prepare(remote)
    assert pipeline.prepare(local).info == pipeline.prepare(remote).info
    storage.write_bytes(f"{source}/0.png", (photographs / "0.png").read_bytes()[::-1])
    with pytest.raises(DataError, match="was prepared from other photographs than the source holds now"):
        pipeline.prepare(remote)


def test_parquet_that_changed_is_noticed(config: Config, cluster: Cluster, photographs: Path, tmp_path: Path) -> None:
    def pack(names: list[str]) -> None:
        pq.write_table(pa.table({"image": [(photographs / name).read_bytes() for name in names]}), table)

    (tmp_path / "tables").mkdir()
    table = tmp_path / "tables" / "a.parquet"
    pack(["0.png", "1.png"])
    config = replace(config, data=replace(config.data, source=str(table.parent)))
    pipeline.prepare(config)
    table.parent.rename(tmp_path / "moved")
    pipeline.prepare(replace(config, data=replace(config.data, source=str(tmp_path / "moved"))))
    assert cluster.made == [0]
    table.parent.mkdir()
    pack(["0.png", "2.png"])
    with pytest.raises(DataError, match="from other photographs than the source holds now"):
        pipeline.prepare(config)


def test_changed_part_mask_is_noticed(config: Config, cluster: Cluster, tmp_path: Path) -> None:
    hq = tmp_path / "hq"
    mask = hq / "CelebAMask-HQ-mask-anno" / "0" / "00000_hair.png"
    mask.parent.mkdir(parents=True)
    (hq / "CelebA-HQ-img").mkdir()
    drawn = faces.draw_face(0, 0, 48)
    (hq / "CelebA-HQ-img" / "0.png").write_bytes(prepared.encode_png(drawn.image))
    mask.write_bytes(prepared.encode_png(np.where(drawn.labels == 13, 255, 0).astype(np.uint8)))
    config = replace(config, data=replace(config.data, source=str(hq)))
    pipeline.prepare(config)
    mask.write_bytes(prepared.encode_png(np.eye(48, dtype=np.uint8) * np.uint8(255)))
    with pytest.raises(DataError, match="from other photographs than the source holds now"):
        pipeline.prepare(config)


GOLDEN = Path(__file__).parents[1] / "golden" / "version_0_1"


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("kind", ["folder", "embedded"])
def test_datasets_of_version_0_1_are_recognized(
    config: Config, cluster: Cluster, tmp_path: Path, kind: str, finished: bool
) -> None:
    made = tmp_path / "made"
    shutil.copytree(GOLDEN / kind, made)
    if not finished:
        (made / "dataset.json").unlink()
        (made / "data" / "part-00001.parquet").unlink()
    source = "embedded" if kind == "embedded" else str(GOLDEN / "photographs")
    sketch = replace(config.data.sketch, detector="opencv")
    data = DataConfig(
        source=source, num_embedded=6, size_px=32, shard_images=4, test_fraction=0.25, prepared=str(made), sketch=sketch
    )
    config = replace(config, data=data)
    if not finished and kind == "folder":
        # What is left would be decoded otherwise than what is there.
        with pytest.raises(DataError, match="was begun with data.decoding_version = None, now it is 2; choose another"):
            pipeline.prepare(config)
        return
    if not finished:
        with pytest.raises(DataError, match="was begun from other photographs|num_embedded = 6, now it is 5"):
            pipeline.prepare(replace(config, data=replace(data, num_embedded=5)))
    result = pipeline.prepare(config)
    before = prepared.DatasetInfo.read(str(GOLDEN / kind))
    assert before is not None and result.info.fingerprint == before.fingerprint
    assert cluster.made == ([] if finished else [1])


def test_default_place_of_version_0_1_is_found(config: Config, cluster: Cluster, tmp_path: Path) -> None:
    source = tmp_path / "photographs"
    shutil.copytree(GOLDEN / "photographs", source)
    sketch = replace(config.data.sketch, detector="opencv")
    data = DataConfig(source=str(source), size_px=32, shard_images=4, test_fraction=0.25, sketch=sketch)
    config = replace(config, data=data)
    said = (GOLDEN / "folder" / "dataset.json").read_text().replace("/tmp/photographs", str(source))
    settings = json.loads(said)["preparation"]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
    old = Path(config.storage.path, "prepared", f"folder-32-{digest}")
    shutil.copytree(GOLDEN / "folder", old)
    (old / "dataset.json").write_text(said)
    assert pipeline.prepare(config).uri == str(old)
    assert cluster.made == []


def test_each_refused_image_is_a_row(config: Config, cluster: Cluster, photographs: Path) -> None:
    (photographs / "2.png").write_bytes(b"no")
    (photographs / "a\nb,<i>.jpg").write_bytes(b"")
    os.mkfifo(photographs / "pipe.png")
    made = pipeline.prepare(replace(config, data=replace(config.data, source=str(photographs))))
    expected = [
        ("2.png", "not a readable image"),
        ("a\nb,<i>.jpg", "empty file"),
        ("pipe.png", "not a regular file"),
    ]
    assert made.rejected == expected
    table = pq.read_table(Path(made.uri, "rejected.parquet")).to_pydict()
    assert list(zip(table["key"], table["reason"], strict=True)) == expected
    assert (made.info.num_images, made.info.num_rejected) == (5, 3)
    assert (made.info.color_segments, made.info.eyes, made.info.hair) == ("superpixels", "canonical", "none")


def test_face_parser_labels_photographs(config: Config, cluster: Cluster, tmp_path: Path) -> None:
    folder, model = tmp_path / "faces", tmp_path / "parser.onnx"
    folder.mkdir()
    halves = np.full((64, 64, 3), (0, 0, 255), np.uint8)
    halves[:16] = (255, 0, 0)
    (folder / "face.png").write_bytes(prepared.encode_png(halves))
    (folder / "wall.png").write_bytes(prepared.encode_png(np.full((64, 64, 3), (255, 0, 0), np.uint8)))
    model.write_bytes(color_parser([(255, 0, 0), (0, 0, 255)]))
    parser = ParserConfig(model=str(model), classes="hair,skin", size_px=64, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    config = replace(config, data=replace(config.data, source=str(folder), parser=parser))
    made = pipeline.prepare(config)
    assert (made.info.color_segments, made.info.eyes, made.info.hair) == ("parser", "parser", "parser")
    dataset = prepared.PreparedDataset.open(made.uri)
    hair = dataset.row(0)["hair"]
    assert hair[:8].all() and not hair[8:].any()
    assert dataset.row(1)["hair"] is None, "no face was found there"
    assert "parser, unknown in 1 images" in Path(made.uri, "report.html").read_text()
    moved = tmp_path / "moved.onnx"
    moved.write_bytes(model.read_bytes())
    pipeline.prepare(replace(config, data=replace(config.data, parser=replace(parser, model=str(moved)))))
    assert cluster.made == [0], "a parser is told by its content"
    model.write_bytes(color_parser([(255, 0, 0), (0, 0, 250)]))
    with pytest.raises(DataError, match=r"was prepared with data\.parser\.sha256 = \w{64}, now it is"):
        pipeline.prepare(config)


def test_parser_that_finds_no_face_is_not_claimed(config: Config, cluster: Cluster, tmp_path: Path) -> None:
    folder, model = tmp_path / "faces", tmp_path / "parser.onnx"
    folder.mkdir()
    (folder / "wall.png").write_bytes(prepared.encode_png(np.full((64, 64, 3), (255, 0, 0), np.uint8)))
    model.write_bytes(color_parser([(255, 0, 0), (0, 0, 255)]))
    parser = ParserConfig(model=str(model), classes="hair,skin", size_px=64, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    info = pipeline.prepare(replace(config, data=replace(config.data, source=str(folder), parser=parser))).info
    assert (info.color_segments, info.eyes, info.hair) == ("superpixels", "canonical", "none")


def test_guess_about_a_file_is_told(
    config: Config, cluster: Cluster, photographs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    twelve = faces.draw_face(0, 9, 48).image.astype(np.uint16) * 16
    (photographs / "deep.png").write_bytes(cv2.imencode(".png", twelve)[1].tobytes())
    with caplog.at_level("WARNING", logger="scfegan_ray"):
        made = pipeline.prepare(replace(config, data=replace(config.data, source=str(photographs))))
    note = "a 16-bit file that uses 12 bits; taken for 12 bits"
    assert f"1 images, deep.png among them: {note}" in caplog.text
    assert note in Path(made.uri, "report.html").read_text()


@pytest.mark.parametrize("finished", [True, False])
def test_dataset_of_the_older_decoding(
    config: Config, cluster: Cluster, photographs: Path, finished: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, data=replace(config.data, source=str(photographs)))
    make_plan = pipeline._make_plan

    def older(config: Config) -> pipeline._Plan:
        plan = make_plan(config)
        return replace(plan, settings={key: plan.settings[key] for key in plan.settings if "decoding" not in key})

    monkeypatch.setattr(pipeline, "_make_plan", older)
    cluster.stop_after = None if finished else 1
    with contextlib.suppress(KeyboardInterrupt):
        pipeline.prepare(config)
    monkeypatch.setattr(pipeline, "_make_plan", make_plan)
    cluster.stop_after = None
    if finished:
        made = len(cluster.made)
        assert pipeline.prepare(config).info.num_images == 6
        assert len(cluster.made) == made
    else:
        with pytest.raises(DataError, match="begun with data.decoding_version = None, now it is 2; choose another"):
            pipeline.prepare(config)


def test_source_without_one_good_image(config: Config, cluster: Cluster, photographs: Path) -> None:
    for path in photographs.iterdir():
        path.write_bytes(b"no")
    config = replace(config, data=replace(config.data, source=str(photographs)))
    with pytest.raises(DataError, match=r"none of the 6 images of .* can be used: 0\.png: not a readable image"):
        pipeline.prepare(config)
    # Repaired, they are not held against the source.
    for at in range(6):
        (photographs / f"{at}.png").write_bytes(prepared.encode_png(np.full((40, 40, 3), at, np.uint8)))
    assert pipeline.prepare(config).info.num_images == 6


def test_empty_source(config: Config, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match=r"no images \(\.avif .*\) under .*nothing; check --data.source"):
        pipeline.prepare(replace(config, data=replace(config.data, source=str(tmp_path / "nothing"))))


def test_place_that_holds_something_else(config: Config, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match=r"holds other files \(thesis\.tex\); choose an empty --data.prepared"):
        pipeline.prepare(config)


def test_damaged_shard_of_an_interrupted_preparation(config: Config, cluster: Cluster, tmp_path: Path) -> None:
    cluster.stop_after = 1
    with pytest.raises(KeyboardInterrupt):
        pipeline.prepare(config)
    (tmp_path / "made" / "data" / "part-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"part-00000\.parquet is no shard of a prepared dataset .*; delete"):
        pipeline.prepare(config)


def test_two_detectors_are_not_mixed(config: Config, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.stop_after = 1
    with pytest.raises(KeyboardInterrupt):
        pipeline.prepare(config)
    first = shards.place(str(config.data.prepared), 0)
    table = pq.read_table(first)
    said = table.schema.metadata[b"scfegan_ray"].replace(b'"detector": "opencv"', b'"detector": "hed"')
    pq.write_table(table.replace_schema_metadata({b"scfegan_ray": said}), first)
    cluster.stop_after = None
    seen: list[str] = []

    def spy(plan: pipeline._Plan, data: DataConfig, missing: list[int]) -> tuple[float, int]:
        seen.append(data.sketch.detector)
        return cluster.run(plan, replace(data, sketch=replace(data.sketch, detector="opencv")), missing)

    monkeypatch.setattr(pipeline, "_run", spy)
    for _ in range(2):
        with pytest.raises(DataError, match="chose different edge detectors"):
            pipeline.prepare(config)
    assert seen == ["hed"], "what is there decides for the rest"


def test_dataset_of_auto_is_one_of_what_auto_was_settled_to(config: Config, cluster: Cluster) -> None:
    def wanting(detector: str) -> Config:
        sketch = replace(config.data.sketch, detector=detector)
        return replace(config, data=replace(config.data, sketch=sketch))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sketches, "hed_arrays", lambda: (_ for _ in ()).throw(ModelError("no network")))
        made = pipeline.prepare(wanting("auto"), session=cluster.session)
    assert made.info.sketch_detector == "opencv"
    for way in (pipeline.prepare, pipeline.ensure_prepared):
        with pytest.raises(DataError, match="were drawn with opencv, now data.sketch.detector is hed; give --data.sk"):
            way(wanting("hed"))
    description = Path(made.uri, "dataset.json")
    # As it would have been with HED; before, the name was part of what a dataset was compared by.
    for named in ("auto", "hed"):
        text = description.read_text().replace('"sketch_detector": "opencv"', '"sketch_detector": "hed"')
        values = json.loads(text)
        values["preparation"]["data.sketch.detector"] = named
        description.write_text(json.dumps(values))
        for detector in ("auto", "hed"):
            assert pipeline.prepare(wanting(detector)).info.sketch_detector == "hed"
            assert pipeline.ensure_prepared(wanting(detector)) == made.uri


def block(keys: list[str], shard: int = 3) -> pa.Table:
    return pa.table({"shard": pa.array([shard] * len(keys), pa.int64()), "key": keys})


def test_stage_gives_one_line_about_its_shard(config: Config, tmp_path: Path) -> None:
    plan = pipeline._make_plan(config)
    maker = shards.ShardMaker(config.data, plan.source, plan.uri, plan.settings)
    [row] = pipeline.make_shard(maker, block(plan.shards[0])).to_pylist()
    assert (row["prepared"], row["refused"], row["error"], row["message"]) == (4, 0, "", "")
    assert row["began"] <= row["ended"]
    assert (tmp_path / "made" / "data" / "part-00003.parquet").exists()


def test_stage_names_what_ends_the_job(config: Config) -> None:
    plan = pipeline._make_plan(config)
    maker = shards.ShardMaker(config.data, plan.source, "/proc/nowhere", plan.settings)
    [row] = pipeline.make_shard(maker, block(plan.shards[0])).to_pylist()
    assert row["error"] == "StorageError"
    assert "cannot write /proc/nowhere/data/part-00003.parquet" in row["message"]


def test_ensure_prepared_checks_the_size(config: Config, cluster: Cluster) -> None:
    uri = pipeline.ensure_prepared(config)
    assert pipeline.ensure_prepared(config) == uri
    with pytest.raises(DataError, match="holds 32-pixel images, the run wants 64; give --data.size-px 32"):
        pipeline.ensure_prepared(replace(config, data=replace(config.data, size_px=64)))


def test_full_place_keeps_what_is_finished(config: Config, cluster: Cluster, small_place: Path) -> None:
    config = replace(config, data=replace(config.data, prepared=str(small_place / "made"), num_embedded=100))
    with pytest.raises(StorageError, match="No space left"):
        pipeline.prepare(config)
    assert 0 < len(cluster.made) < 25
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_place)], check=True)
    assert pipeline.prepare(config).info.num_images == 100
    assert cluster.made == list(range(25))


@pytest.mark.parametrize("kind", ["folder", "zip", "parquet"])
def test_everything_in_an_object_store(
    kind: str,
    config: Config,
    cluster: Cluster,
    photographs: Path,
    s3: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    base = f"s3://lab/{kind} ü#%20"
    (photographs / "2.png").write_bytes(b"no")
    if kind == "folder":
        source = f"{base}/raw"
        for path in photographs.iterdir():
            storage.write_bytes(storage.join(source, path.name), path.read_bytes())
    else:
        source = f"{base}/raw.{kind}"
        packed = tmp_path / f"raw.{kind}"
        if kind == "zip":
            shutil.make_archive(str(tmp_path / "raw"), "zip", photographs)
        else:
            pq.write_table(pa.table({"image": [path.read_bytes() for path in sorted(photographs.iterdir())]}), packed)
        storage.write_bytes(source, packed.read_bytes())
    config = replace(config, data=replace(config.data, source=source, prepared=f"{base}/made", shard_images=2))
    cluster.stop_after = 1
    with pytest.raises(KeyboardInterrupt):
        pipeline.prepare(config)
    cluster.stop_after = None
    made = pipeline.prepare(config)
    assert cluster.made == [0, 1, 2]
    assert (made.info.num_images, made.info.num_rejected) == (5, 1)
    assert storage.list_files(made.uri) == [*(f"data/part-0000{at}.parquet" for at in range(3)), *prepared.OTHER_FILES]
    local = replace(config, data=replace(config.data, source=str(photographs), prepared=str(tmp_path / "local")))
    if kind != "parquet":
        assert pipeline.prepare(local).info.fingerprint == made.info.fingerprint
    dataset = prepared.PreparedDataset.open(made.uri)
    assert len(dataset.keys) == 5 and dataset.row(0)["image"].shape == (32, 32, 3)
    assert pipeline.prepare(config).info == made.info


def test_failing_storage_keeps_what_is_finished(
    config: Config, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = storage.write_bytes

    def full(uri: str, data: bytes) -> None:
        if uri.endswith("part-00002.parquet"):
            raise StorageError("cannot write: No space left on device")
        write(uri, data)

    monkeypatch.setattr(storage, "write_bytes", full)
    with pytest.raises(StorageError, match="No space left"):
        pipeline.prepare(config)
    monkeypatch.undo()
    assert sorted(os.listdir(Path(str(config.data.prepared), "data"))) == ["part-00000.parquet", "part-00001.parquet"]


def test_driver_waits_for_storage_that_fails_for_a_while(
    config: Config, cluster: Cluster, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, data=replace(config.data, source=str(photographs)))
    made = pipeline.prepare(config).info
    shutil.rmtree(str(config.data.prepared))
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    failed: set[tuple[str, str]] = set()

    def unreliable(name: str) -> None:
        plain = getattr(storage, name)

        def call(uri: str, *arguments: object, **named: object) -> object:
            place = str(uri).rpartition("/")[2]
            if (name, place) not in failed and not place.startswith((".", "part-")) and not place[0].isdigit():
                failed.add((name, place))
                raise StorageError(f"cannot {name} {uri}: the server is away")
            return plain(uri, *arguments, **named)

        monkeypatch.setattr(storage, name, call)

    for name in ("exists", "list_files", "describe_files", "write_bytes", "read_bytes"):
        unreliable(name)
    assert pipeline.prepare(config).info == made
    assert {("list_files", "made"), ("describe_files", "photographs"), ("write_bytes", "dataset.json")} <= failed
    assert pipeline.prepare(config).info == made
