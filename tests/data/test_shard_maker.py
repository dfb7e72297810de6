"""The work of one shard, in this process."""

from __future__ import annotations

import errno
import io
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from scfegan_ray import storage
from scfegan_ray.config import Config, DataConfig
from scfegan_ray.data import dataset, parsing, prepare, sources
from scfegan_ray.data.codecs import decode_row
from scfegan_ray.data.dataset import SCHEMA, SUMMARY, read_rows, read_shard, shard_place
from scfegan_ray.errors import StorageError

SETTINGS = {"data.size_px": 32}


def maker(config: DataConfig, uri: str, seed: int = 0) -> tuple[prepare.ShardMaker, list[str]]:
    settled = replace(config, sketch=replace(config.sketch, detector="opencv", precision="float32"))
    source, listing = sources.open_source(settled, seed)
    return prepare.ShardMaker(settled, source, uri, SETTINGS), listing.keys.to_pylist()


def photograph(value: int = 99, size: tuple[int, int] = (70, 60)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def only(loaded: tuple[list[tuple[str, sources.Face]], list[tuple[str, str]]]) -> sources.Face:
    [(_, face)], [] = loaded
    return face


def test_file_holds_the_documented_columns(tiny: Config, tmp_path: Path) -> None:
    work, keys = maker(tiny.data, str(tmp_path))
    assert work.make(3, keys[:3]) == (3, 0)
    table = pq.read_table(tmp_path / "data" / "part-00003.parquet")
    assert table.schema.equals(SCHEMA)
    row = decode_row(table.to_pylist()[1])
    face = only(work.load(keys[1]))
    assert np.array_equal(row["image"], face.image)
    assert face.eyes is not None and row["eyes"] == pytest.approx(face.eyes)
    assert set(np.unique(row["hair"])) <= {0, 1} and set(np.unique(row["sketch"])) == {0, 1}


@pytest.mark.parametrize("detector", ["opencv", "hed"])
def test_three_stages_write_what_one_writes(tiny: Config, tmp_path: Path, detector: Literal["opencv", "hed"]) -> None:
    """Each by a maker of its own, as in processes of their own; and chunks that are not full."""
    sketch = replace(tiny.data.sketch, detector=detector, precision="float32")
    settled = replace(tiny.data, size_px=64, sketch=sketch)
    source, listing = sources.open_source(settled, 0)
    keys = listing.keys.to_pylist()[: prepare.CHUNK_IMAGES + 2]

    def made_at(name: str) -> prepare.ShardMaker:
        return prepare.ShardMaker(settled, source, str(tmp_path / name), SETTINGS)

    made_at("one").make(0, keys)
    schema = pa.schema([("shard", pa.int64()), ("keys", pa.list_(pa.string()))])
    block = pa.Table.from_pylist([{"shard": 0, "keys": keys}], schema)
    for stage in (prepare.load_shard, prepare.detect_edges, prepare.finish_shard):
        block = stage(made_at("three"), block)
        assert block.column("message").to_pylist() == [None]
    assert block.column("prepared").to_pylist() == [len(keys)]
    part = Path("data", "part-00000.parquet")
    assert (tmp_path / "three" / part).read_bytes() == (tmp_path / "one" / part).read_bytes()


def test_statistics_are_those_of_the_maps(tiny: Config, tmp_path: Path) -> None:
    work, keys = maker(tiny.data, str(tmp_path))
    work.make(0, keys[:2])
    for stored in pq.read_table(tmp_path / "data" / "part-00000.parquet").to_pylist():
        row = decode_row(stored)
        assert stored["sketch_area"] == pytest.approx(row["sketch"].mean())
        assert stored["hair_area"] == pytest.approx(row["hair"].mean())
        assert stored["num_colors"] == len(np.unique(row["color"].reshape(-1, 3), axis=0))
        difference = np.abs(row["color"].astype(float) - row["image"])
        assert stored["color_error"] == pytest.approx(difference.mean(), rel=1e-5)


def test_file_says_what_it_was_made_from(tmp_path: Path, tiny: Config) -> None:
    faces = tmp_path / "faces"
    faces.mkdir()
    (faces / "a.png").write_bytes(photograph())
    (faces / "b.png").write_bytes(b"no")
    (faces / "c.png").write_bytes(photograph(size=(8, 8)))
    work, keys = maker(replace(tiny.data, source=str(faces)), str(tmp_path / "made"))
    assert work.make(0, keys) == (1, 2)
    shard = read_shard(shard_place(str(tmp_path / "made"), 0))
    assert shard.settings == SETTINGS
    assert shard.settled == {"detector": "opencv", "precision": "float32"}
    assert shard.refused == [("b.png", "not a readable image"), ("c.png", "8x8 pixels, a side smaller than 16")]
    assert shard.rows.schema == SUMMARY
    [row] = shard.rows.to_pylist()
    assert row["key"] == "a.png" and row["hair_area"] is None
    assert row["sha256"].hex() == read_rows(shard_place(str(tmp_path / "made"), 0), 1)[0]["sha256"]
    assert shard.num_bytes == (tmp_path / "made" / "data" / "part-00000.parquet").stat().st_size


def test_shard_of_refused_images_only(tmp_path: Path, tiny: Config) -> None:
    faces = tmp_path / "faces"
    faces.mkdir()
    (faces / "b.png").write_bytes(b"no")
    work, keys = maker(replace(tiny.data, source=str(faces)), str(tmp_path / "made"))
    assert work.make(0, keys) == (0, 1)
    place = shard_place(str(tmp_path / "made"), 0)
    assert read_shard(place).rows.num_rows == 0 and read_rows(place, 5) == []


def test_digest_covers_the_content(tiny: Config, tmp_path: Path) -> None:
    digests = []
    for seed in (0, 0, 1):
        work, keys = maker(tiny.data, str(tmp_path), seed)
        work.make(0, keys[:1])
        digests.append(read_shard(shard_place(str(tmp_path), 0)).rows.column("sha256")[0].as_py())
    assert digests[0] == digests[1] != digests[2]


def test_row_groups_are_of_a_sane_size(tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, keys = maker(tiny.data, str(tmp_path))
    monkeypatch.setattr(dataset, "_ROW_GROUP_BYTES", 8_000)
    work.make(0, keys)
    meta = pq.read_metadata(tmp_path / "data" / "part-00000.parquet")
    sizes = [meta.row_group(at).total_byte_size for at in range(meta.num_row_groups)]
    assert len(sizes) > 1 and max(sizes) < 16_000
    assert len(read_rows(shard_place(str(tmp_path), 0), 99)) < len(keys)


class Everywhere:
    """A face parser that labels the upper half as hair, the lower one as skin, with one eye."""

    digest = "0" * 64

    def __init__(self, skin: str = "skin") -> None:
        self.skin = skin

    def __call__(self, image: np.ndarray) -> np.ndarray:
        labels = np.full(image.shape[:2], parsing.LABELS.index("hair"), np.uint8)
        labels[labels.shape[0] // 2 :] = parsing.LABELS.index(self.skin)
        labels[-10:-6, 4:8] = parsing.LABELS.index("r_eye")
        return labels


@pytest.mark.parametrize(("skin", "found"), [("skin", True), ("cloth", False)])
def test_parser_labels_what_nobody_labelled(tmp_path: Path, tiny: Config, skin: str, found: bool) -> None:
    (tmp_path / "a.png").write_bytes(photograph())
    work, keys = maker(replace(tiny.data, source=str(tmp_path)), str(tmp_path / "made"))
    work.__dict__["parser"] = Everywhere(skin)
    face = only(work.load(keys[0]))
    assert face.eyes is not None
    if found:
        assert face.labels is not None and face.labels.shape == (32, 32)
        assert parsing.hair_region(face.labels).mean() == pytest.approx(0.5)
        assert face.eyes[:2] == pytest.approx([5.5 / 60 * 32, 51.5 / 60 * 32], abs=1.0)
    else:
        assert face.labels is None
        assert face.eyes == pytest.approx(parsing.canonical_eyes(32))


def test_canonical_eyes_are_a_setting(tmp_path: Path, tiny: Config) -> None:
    (tmp_path / "a.png").write_bytes(photograph())
    config = replace(tiny.data, source=str(tmp_path), eyes=(0.25, 0.5, 0.75, 0.5))
    work, keys = maker(config, str(tmp_path / "made"))
    assert only(work.load(keys[0])).eyes == pytest.approx([7.5, 15.5, 23.5, 15.5])


def test_place_that_cannot_be_written_ends_the_work(tiny: Config) -> None:
    work, keys = maker(tiny.data, "/proc/nowhere")
    with pytest.raises(StorageError, match="cannot write /proc/nowhere/data/part-00003.parquet"):
        work.make(3, keys[:1])


def test_storage_that_fails_for_a_while_is_tried_again(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faces = tmp_path / "faces"
    faces.mkdir()
    (faces / "a.png").write_bytes(photograph())
    (faces / "b.png").write_bytes(b"no")
    (faces / "c.png").write_bytes(photograph(7))
    config = replace(tiny.data, source=str(faces))
    work, keys = maker(config, str(tmp_path / "made"))
    failures = {"read_bytes": 2, "write_bytes": 1}
    calls = {"read_bytes": 0, "write_bytes": 0}

    def unreliable(name: str) -> None:
        plain = getattr(storage, name)

        def call(*arguments: object, **named: object) -> object:
            calls[name] += 1
            if failures[name]:
                failures[name] -= 1
                raise StorageError(f"cannot {name}: the server is away") from TimeoutError(errno.ETIMEDOUT, "no answer")
            return plain(*arguments, **named)

        monkeypatch.setattr(storage, name, call)

    unreliable("read_bytes")
    unreliable("write_bytes")
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    with pytest.raises(StorageError, match="the server is away"):
        work.make(0, keys)
    failures |= {"read_bytes": 2, "write_bytes": 1}
    calls |= {"read_bytes": 0, "write_bytes": 0}
    patient = prepare.ShardMaker(work._config, work._source, work._uri, SETTINGS, retry_seconds=60.0)
    assert pickle.loads(pickle.dumps(patient))._retry_seconds == 60.0
    assert patient.make(0, keys) == (2, 1)
    assert calls == {"read_bytes": 3 + 2, "write_bytes": 1 + 1}, "a damaged image is read once"
