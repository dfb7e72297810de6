"""The stage of the preparation, called as Ray Data calls it, without Ray running."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scfegan_ray.config import Config
from scfegan_ray.data import examples, pipeline
from scfegan_ray.data.sources import EmbeddedFaces, ImageFolder


def block(keys: list[str], shard: int = 3) -> pa.Table:
    return pa.table({"shard": pa.array([shard] * len(keys), pa.int64()), "key": keys})


def test_shard_holds_the_documented_columns(tiny: Config, tmp_path: Path) -> None:
    source = EmbeddedFaces(3, seed=0)
    stage = pipeline._PrepareShard(tiny, source, str(tmp_path), "opencv")
    summary = stage(block(source.keys())).to_pylist()
    assert [row["key"] for row in summary] == source.keys()
    assert all(len(row["sha256"]) == 64 and not row["reason"] and not row["error"] for row in summary)
    table = pq.read_table(tmp_path / "data" / "part-00003.parquet")
    assert table.schema.equals(examples.SCHEMA)
    assert table.column("sha256").to_pylist() == [row["sha256"] for row in summary]
    row = examples.decode_row(table.to_pylist()[1])
    face = source.load(source.keys()[1], 32)
    assert np.array_equal(row["image"], face.image)
    assert row["eyes"] == pytest.approx(face.eyes)
    assert set(np.unique(row["hair"])) <= {0, 1} and set(np.unique(row["sketch"])) == {0, 1}


def test_digest_covers_the_content(tiny: Config, tmp_path: Path) -> None:
    digests = []
    for seed in (0, 0, 1):
        source = EmbeddedFaces(1, seed=seed)
        stage = pipeline._PrepareShard(tiny, source, str(tmp_path), "opencv")
        digests.append(stage(block(source.keys())).column("sha256")[0].as_py())
    assert digests[0] == digests[1] != digests[2]


def test_unreadable_image_has_a_reason_and_no_row(tiny: Config, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no")
    stage = pipeline._PrepareShard(tiny, ImageFolder(str(tmp_path)), str(tmp_path / "out"), "opencv")
    [row] = stage(block(["bad.jpg"])).to_pylist()
    assert (row["reason"], row["sha256"], row["error"]) == ("not a readable image", "", "")
    assert not (tmp_path / "out").exists()


def test_what_ends_the_job_is_named_in_every_row(tiny: Config) -> None:
    source = EmbeddedFaces(2, seed=0)
    stage = pipeline._PrepareShard(tiny, source, "/proc/nowhere", "opencv")
    rows = stage(block(source.keys())).to_pylist()
    assert [row["error"] for row in rows] == ["StorageError"] * 2
    assert all("cannot write /proc/nowhere/data/part-00003.parquet" in row["message"] for row in rows)
