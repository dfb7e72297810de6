"""What is made, what is kept and what is refused; the shards are made in this process instead of on Ray."""

from __future__ import annotations

import os
import pickle
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
from prepared_set import keys_of
from test_parsing import color_parser

from cluster import Cluster
from scfegan_ray import faces, nodes, storage
from scfegan_ray.config import Config, ParserConfig
from scfegan_ray.data import prepare
from scfegan_ray.data.codecs import encode_png
from scfegan_ray.data.dataset import OTHER_FILES, DatasetInfo
from scfegan_ray.data.plan import make_plan
from scfegan_ray.data.rows import PreparedDataset
from scfegan_ray.errors import ConfigError, DataError, ModelError, StorageError


def content(uri: str) -> dict[str, bytes]:
    return {
        name: Path(uri, name).read_bytes() for name in storage.list_files(uri) if name.startswith(("data/", "dataset"))
    }


def test_dataset_holds_every_image_once(config: Config, cluster: Cluster) -> None:
    made = prepare.prepare(config, session=cluster.session)
    assert cluster.made == [0, 1, 2]
    dataset = PreparedDataset.open(made.uri)
    assert keys_of(dataset) == [f"embedded/0/{at:07d}" for at in range(12)]
    info = dataset.info
    assert info == made.info
    assert (info.num_images, info.num_rejected, info.num_shards) == (12, 0, 3)
    assert (info.num_train, info.num_test) == (len(dataset.train_rows), len(dataset.test_rows))
    assert (info.color_segments, info.eyes, info.hair) == ("labels", "labels", "labels")
    assert (info.sketch_detector, info.sketch_precision) == ("opencv", "float32")
    assert info.preparation["data.sketch.threshold"] == 0.4
    assert sorted(os.listdir(made.uri)) == ["data", *OTHER_FILES]


def test_nothing_is_left_to_do(config: Config, cluster: Cluster) -> None:
    first = prepare.prepare(config, session=cluster.session)
    before = content(first.uri)
    again = prepare.prepare(config, session=cluster.session)
    assert (again.info, again.rejected) == (first.info, first.rejected)
    assert cluster.num_sessions == 1, "Ray is not started for nothing"
    assert content(first.uri) == before


def test_gpus_that_the_cluster_lacks_are_not_waited_for(
    config: Config, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0})
    on_gpus = replace(config, data=replace(config.data, gpus_per_actor=0.5))
    with pytest.raises(
        ConfigError,
        match=r"an actor that detects edges needs 0\.5 GPU, the cluster has 0; give --data\.gpus-per-actor 0",
    ):
        prepare.prepare(on_gpus, session=cluster.session)
    assert cluster.made == []
    growing = replace(on_gpus, train=replace(config.train, wait_for_nodes=True))
    assert prepare.prepare(growing, session=cluster.session).info.num_images == 12


@pytest.mark.parametrize("stop_after", [0, 1, 2])
def test_interrupted_preparation_goes_on(config: Config, cluster: Cluster, stop_after: int, tmp_path: Path) -> None:
    whole = prepare.prepare(replace(config, data=replace(config.data, prepared=str(tmp_path / "whole"))))
    cluster.made.clear()
    cluster.stop_after = stop_after
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(config, session=cluster.session)
    uri = str(tmp_path / "made")
    assert DatasetInfo.read(uri) is None
    with pytest.raises(DataError, match="no prepared dataset"):
        PreparedDataset.open(uri)
    kept = content(uri)
    assert len(kept) == stop_after
    cluster.stop_after = None
    made = prepare.prepare(config, session=cluster.session)
    assert cluster.made == [0, 1, 2], "no shard is made twice"
    assert made.info == whole.info
    assert content(uri).items() >= kept.items()
    # Parquet writes no time, so that the same work gives the same bytes.
    assert content(uri) == content(whole.uri)


def test_last_step_that_was_killed_is_done_again(config: Config, cluster: Cluster) -> None:
    made = prepare.prepare(config, session=cluster.session)
    for name in OTHER_FILES:
        Path(made.uri, name).unlink()
    cluster.made.clear()
    assert prepare.prepare(config, session=cluster.session).info == made.info
    assert cluster.made == [] and cluster.num_sessions == 1


def test_abandoned_scraps_go(config: Config, cluster: Cluster, tmp_path: Path) -> None:
    cluster.stop_after = 1
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(config)
    old, young = (tmp_path / "made" / "data" / f".part-0000{at}.parquet.abc.part" for at in (1, 2))
    for scrap in (old, young):
        scrap.write_bytes(b"half a sha")
    os.utime(old, (time.time() - 3600,) * 2)
    cluster.stop_after = None
    prepare.prepare(config)
    assert not old.exists()
    assert young.exists(), "somebody may still be writing it"


def test_each_refused_image_is_a_row(config: Config, cluster: Cluster, photographs: Path) -> None:
    (photographs / "2.png").write_bytes(b"no")
    (photographs / "a\nb,<i>.jpg").write_bytes(b"")
    os.mkfifo(photographs / "pipe.png")
    made = prepare.prepare(replace(config, data=replace(config.data, source=str(photographs))))
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
    (folder / "face.png").write_bytes(encode_png(halves))
    (folder / "wall.png").write_bytes(encode_png(np.full((64, 64, 3), (255, 0, 0), np.uint8)))
    model.write_bytes(color_parser([(255, 0, 0), (0, 0, 255)]))
    parser = ParserConfig(model=str(model), classes="hair,skin", size_px=64, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    config = replace(config, data=replace(config.data, source=str(folder), parser=parser))
    made = prepare.prepare(config)
    assert (made.info.color_segments, made.info.eyes, made.info.hair) == ("parser", "parser", "parser")
    dataset = PreparedDataset.open(made.uri)
    hair = dataset.row(0)["hair"]
    assert hair[:8].all() and not hair[8:].any()
    assert dataset.row(1)["hair"] is None, "no face was found there"
    assert "parser, unknown in 1 images" in Path(made.uri, "report.html").read_text()
    moved = tmp_path / "moved.onnx"
    moved.write_bytes(model.read_bytes())
    prepare.prepare(replace(config, data=replace(config.data, parser=replace(parser, model=str(moved)))))
    assert cluster.made == [0], "a parser is told by its content"
    model.write_bytes(color_parser([(255, 0, 0), (0, 0, 250)]))
    with pytest.raises(DataError, match=r"was prepared with data\.parser\.sha256 = \w{64}, now it is"):
        prepare.prepare(config)


def test_parser_that_finds_no_face_is_not_claimed(config: Config, cluster: Cluster, tmp_path: Path) -> None:
    folder, model = tmp_path / "faces", tmp_path / "parser.onnx"
    folder.mkdir()
    (folder / "wall.png").write_bytes(encode_png(np.full((64, 64, 3), (255, 0, 0), np.uint8)))
    model.write_bytes(color_parser([(255, 0, 0), (0, 0, 255)]))
    parser = ParserConfig(model=str(model), classes="hair,skin", size_px=64, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    info = prepare.prepare(replace(config, data=replace(config.data, source=str(folder), parser=parser))).info
    assert (info.color_segments, info.eyes, info.hair) == ("superpixels", "canonical", "none")


def aligned(config: Config, groups: Path, **how: object) -> Config:
    changed = {"source": str(groups), "align": "celeba_hq", "shard_images": 3} | how
    return replace(config, data=replace(config.data, **changed))  # type: ignore[arg-type]


def test_each_face_of_a_photograph_is_a_row(config: Config, cluster: Cluster, groups: Path, finder: object) -> None:
    made = prepare.prepare(aligned(config, groups))
    assert (made.info.num_images, made.info.num_rejected, made.info.num_shards) == (10, 2, 3)
    assert made.rejected == [("d.png#3", "face blurred"), ("e.png", "no face found")]
    assert made.info.align == "celeba_hq" and made.info.preparation["data.align"] == "auto"
    dataset = PreparedDataset.open(made.uri)
    expected = ["a.png#1", "a.png#2", "b.png", "c.png", "d.png#1", "d.png#2", "d.png#4", "f.png#1", "f.png#2", "g.png"]
    assert keys_of(dataset) == expected
    squares: dict[str, dict[str, float] | None] = {}
    for at in range(3):
        table = pq.read_table(Path(made.uri, "data", f"part-{at:05d}.parquet"), columns=["key", "square"])
        squares |= {row["key"]: row["square"] for row in table.to_pylist()}
    assert squares["c.png"] is None
    assert squares["d.png#4"] == {"center_x": 218.0, "center_y": 32.0, "side_px": 41.0, "angle": pytest.approx(0.3)}
    [index] = [row for row in pq.read_table(Path(made.uri, "index.parquet")).to_pylist() if row["key"] == "d.png#4"]
    assert (index["shard"], index["row"]) == (1, 2)


def test_photographs_of_groups_go_on_where_they_were_stopped(
    config: Config, cluster: Cluster, groups: Path, finder: object, tmp_path: Path
) -> None:
    whole = prepare.prepare(aligned(config, groups, prepared=str(tmp_path / "whole")))
    cluster.made.clear()
    cluster.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(aligned(config, groups))
    cluster.stop_after = None
    made = prepare.prepare(aligned(config, groups, align="auto"))
    assert cluster.made == [0, 1, 2]
    assert content(made.uri) == content(whole.uri)
    assert (made.info, made.rejected) == (whole.info, whole.rejected)


def test_photograph_that_lacks_in_a_shard_is_noticed(
    config: Config, cluster: Cluster, groups: Path, finder: object, tmp_path: Path
) -> None:
    cluster.stop_after = 1
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(aligned(config, groups))
    part = tmp_path / "made" / "data" / "part-00000.parquet"
    table = pq.read_table(part)
    pq.write_table(table.slice(2), part)  # without both faces of the first photograph
    with pytest.raises(DataError, match="holds other images than it should; delete it"):
        prepare.prepare(aligned(config, groups))


def test_faces_are_large_enough_not_to_be_enlarged_much(config: Config, groups: Path, finder: object) -> None:
    for size_px, least_px in ((32, 64), (256, 128)):
        asked = aligned(config, groups, size_px=size_px)
        plan = make_plan(asked)
        found = prepare.ShardMaker(asked.data, plan.source, "", plan.settings).finder
        assert found is not None and found.least_side_px == least_px  # type: ignore[attr-defined]


def test_drawn_faces_want_no_weights(config: Config, cluster: Cluster) -> None:
    made = prepare.prepare(replace(config, data=replace(config.data, align="celeba_hq")))
    assert made.info.align == "none" and made.info.num_images == 12


def test_guess_about_a_file_is_told(
    config: Config, cluster: Cluster, photographs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    twelve = faces.draw_face(0, 9, 48).image.astype(np.uint16) * 16
    (photographs / "deep.png").write_bytes(cv2.imencode(".png", twelve)[1].tobytes())
    with caplog.at_level("WARNING", logger="scfegan_ray"):
        made = prepare.prepare(replace(config, data=replace(config.data, source=str(photographs))))
    note = "a 16-bit file that uses 12 bits; taken for 12 bits"
    assert f"1 images, deep.png among them: {note}" in caplog.text
    assert note in Path(made.uri, "report.html").read_text()


def test_source_without_one_good_image(config: Config, cluster: Cluster, photographs: Path) -> None:
    for path in photographs.iterdir():
        path.write_bytes(b"no")
    config = replace(config, data=replace(config.data, source=str(photographs)))
    with pytest.raises(DataError, match=r"none of the 6 images of .* can be used: 0\.png: not a readable image"):
        prepare.prepare(config)
    # Repaired, they are not held against the source.
    for at in range(6):
        (photographs / f"{at}.png").write_bytes(encode_png(np.full((40, 40, 3), at, np.uint8)))
    assert prepare.prepare(config).info.num_images == 6


def block(keys: list[str], shard: int = 3) -> pa.Table:
    return pa.table({"shard": pa.array([shard], pa.int64()), "keys": [keys]})


def test_stage_gives_one_line_about_its_shard(config: Config, tmp_path: Path) -> None:
    plan = make_plan(config)
    maker = prepare.ShardMaker(config.data, plan.source, plan.uri, plan.settings)
    [row] = prepare.make_shard(maker, block(plan.keys_of(0).to_pylist())).to_pylist()
    assert (row["prepared"], row["num_photographs"], row["error"], row["message"]) == (4, 4, None, None)
    assert row["began"] <= row["ended"]
    assert (tmp_path / "made" / "data" / "part-00003.parquet").exists()


def test_stage_names_what_ends_the_job(config: Config) -> None:
    plan = make_plan(config)
    maker = prepare.ShardMaker(config.data, plan.source, "/proc/nowhere", plan.settings)
    [row] = prepare.make_shard(maker, block(plan.keys_of(0).to_pylist())).to_pylist()
    assert row["error"] == "StorageError"
    assert "cannot write /proc/nowhere/data/part-00003.parquet" in row["message"]


def through_stages(maker: prepare.ShardMaker, keys: list[str]) -> dict[str, object]:
    """Make a shard as three actors do, none of which has what another one loaded."""
    first, second, third = (pickle.loads(pickle.dumps(maker)) for _ in range(3))
    loaded = prepare.load_shard(first, block(keys))
    detected = prepare.detect_edges(second, loaded)
    assert (loaded.schema, detected.schema) == (prepare.LOADED, prepare.DETECTED)
    made = prepare.finish_shard(third, detected)
    assert made.schema == prepare.MADE
    [row] = made.to_pylist()
    return row


@pytest.mark.parametrize("kind", ["embedded", "folder", "refused", "groups"])
def test_three_stages_make_the_same_shard_as_one(
    config: Config, photographs: Path, groups: Path, finder: object, tmp_path: Path, kind: str
) -> None:
    (photographs / "2.png").write_bytes(b"no")
    twelve = faces.draw_face(0, 9, 48).image.astype(np.uint16) * 16
    (photographs / "deep.png").write_bytes(cv2.imencode(".png", twelve)[1].tobytes())
    if kind == "refused":
        for path in photographs.iterdir():
            path.write_bytes(b"no")
    source = {"embedded": "embedded", "groups": str(groups)}.get(kind, str(photographs))
    align = "celeba_hq" if kind == "groups" else "none"
    config = replace(config, data=replace(config.data, source=source, shard_images=12, align=align))
    plan = make_plan(config)
    keys = plan.keys_of(0).to_pylist()
    assert len(keys) == (12 if kind == "embedded" else 7)
    rows = []
    for way, make in (("one", prepare.make_shard), ("three", None)):
        maker = prepare.ShardMaker(config.data, plan.source, str(tmp_path / way), plan.settings)
        rows.append(through_stages(maker, keys) if make is None else make(maker, block(keys)).to_pylist()[0])
    assert all(row["error"] is None and row["began"] <= row["ended"] for row in rows)
    assert [(row["prepared"], row["num_photographs"]) for row in rows] == {
        "embedded": [(12, 12)] * 2, "folder": [(6, 7)] * 2, "refused": [(0, 7)] * 2,
        "groups": [(10, 7)] * 2,
    }[kind]  # fmt: skip
    one, three = (Path(tmp_path, way, "data", "part-00003.parquet").read_bytes() for way in ("one", "three"))
    assert one == three


def test_what_ends_a_stage_is_handed_on(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(config)
    keys = plan.keys_of(0).to_pylist()
    maker = prepare.ShardMaker(config.data, plan.source, "/proc/nowhere", plan.settings)
    row = through_stages(maker, keys)
    assert row["error"] == "StorageError" and "cannot write /proc/nowhere" in str(row["message"])

    def fails(*_: object) -> None:
        raise ModelError("no weights")

    for name in ("detect", "load"):
        monkeypatch.setattr(prepare.ShardMaker, name, fails)
        row = through_stages(maker, keys)
        assert (row["error"], row["message"]) == ("ModelError", "no weights")


@pytest.mark.parametrize(
    ("asked", "detector", "seen", "share", "said"),
    [
        (None, "hed", [], 0.0, "on CPUs: no node has a GPU"),
        (None, "hed", [True, False], 0.0, "torch sees no GPU on 1 of the 2 nodes that have one"),
        (None, "hed", [True, True], prepare.GPU_SHARE, "on the GPUs of 2 nodes, each by actors that take 0.5 of one"),
        (None, "opencv", [True], 0.0, ""),
        (0.25, "hed", [], 0.25, ""),
        (0.0, "hed", [True], 0.0, ""),
    ],
)
def test_where_edges_are_detected_is_said(
    config: Config,
    asked: float | None,
    detector: str,
    seen: list[bool],
    share: float,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(nodes, "able", lambda needs: [str(at) for at in range(len(seen))])
    monkeypatch.setattr(nodes, "ask", lambda question, them: seen)
    sketch = replace(config.data.sketch, detector=detector)
    with caplog.at_level("INFO", logger="scfegan_ray"):
        assert prepare._choose_gpu_share(replace(config.data, gpus_per_actor=asked, sketch=sketch)) == share
    assert said in caplog.text and bool(said) == bool(caplog.text)


def test_many_shards_come_in_few_blocks(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(replace(config, data=replace(config.data, num_embedded=22)))
    assert plan.num_shards == 6 and plan.num_photographs([0, 5]) == 4 + 2
    missing = [0, 2, 3, 4, 5]
    for most, sizes in ((9, [1] * 5), (2, [3, 2])):
        monkeypatch.setattr(prepare, "_MOST_BLOCKS", most)
        blocks = list(prepare._blocks(plan, missing))
        assert [table.num_rows for table in blocks] == sizes
        shards = {row["shard"]: row["keys"] for table in blocks for row in table.to_pylist()}
        assert list(shards) == missing
        assert [shards[0][0], shards[2][0], shards[5][-1]] == [f"embedded/0/{at:07d}" for at in (0, 8, 21)]


def test_index_says_where_each_row_is(config: Config, cluster: Cluster) -> None:
    cluster.stop_after = 1
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(config)
    cluster.stop_after = None
    made = prepare.prepare(config)
    index = pq.read_table(Path(made.uri, "index.parquet")).to_pylist()
    assert [row["key"] for row in index] == [f"embedded/0/{at:07d}" for at in range(12)]
    assert [(row["shard"], row["row"]) for row in index] == [divmod(at, 4) for at in range(12)]
    assert [row["held_back"] for row in index] == [made.info.holds_back(row["key"]) for row in index]
    assert sum(row["held_back"] for row in index) == made.info.num_test


def test_ensure_prepared_checks_the_size(config: Config, cluster: Cluster) -> None:
    uri = prepare.ensure_prepared(config)
    assert prepare.ensure_prepared(config) == uri
    with pytest.raises(DataError, match="holds 32-pixel images, the run wants 64; give --data.size-px 32"):
        prepare.ensure_prepared(replace(config, data=replace(config.data, size_px=64)))


def test_full_place_keeps_what_is_finished(config: Config, cluster: Cluster, small_place: Path) -> None:
    config = replace(config, data=replace(config.data, prepared=str(small_place / "made"), num_embedded=100))
    with pytest.raises(StorageError, match="No space left"):
        prepare.prepare(config)
    assert 0 < len(cluster.made) < 25
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_place)], check=True)
    assert prepare.prepare(config).info.num_images == 100
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
        prepare.prepare(config)
    cluster.stop_after = None
    made = prepare.prepare(config)
    assert cluster.made == [0, 1, 2]
    assert (made.info.num_images, made.info.num_rejected) == (5, 1)
    assert storage.list_files(made.uri) == [*(f"data/part-0000{at}.parquet" for at in range(3)), *OTHER_FILES]
    local = replace(config, data=replace(config.data, source=str(photographs), prepared=str(tmp_path / "local")))
    if kind != "parquet":
        assert prepare.prepare(local).info.fingerprint == made.info.fingerprint
    dataset = PreparedDataset.open(made.uri)
    assert len(dataset) == 5 and dataset.row(0)["image"].shape == (32, 32, 3)
    assert prepare.prepare(config).info == made.info


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
        prepare.prepare(config)
    monkeypatch.undo()
    assert sorted(os.listdir(Path(str(config.data.prepared), "data"))) == ["part-00000.parquet", "part-00001.parquet"]


def test_driver_waits_for_storage_that_fails_for_a_while(
    config: Config, cluster: Cluster, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, data=replace(config.data, source=str(photographs)))
    made = prepare.prepare(config).info
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
    assert prepare.prepare(config).info == made
    assert {("list_files", "made"), ("describe_files", "photographs"), ("write_bytes", "dataset.json")} <= failed
    assert prepare.prepare(config).info == made
