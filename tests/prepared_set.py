"""A prepared dataset of few small rows, written without preparing anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tiny import DATASET
from torch import Tensor

from scfegan_ray.data import examples
from scfegan_ray.data.codecs import encode_png
from scfegan_ray.data.dataset import SCHEMA, DatasetInfo
from scfegan_ray.data.rows import PreparedDataset

NUM, SIZE = 20, 32


def write_dataset(root: Path, *, num_images: int = NUM, fingerprint: str = "abc") -> str:
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for index in range(NUM):
        hair = np.zeros((SIZE, SIZE), np.uint8)
        hair[:8] = 255
        rows.append(
            {
                "key": f"face-{index:02d}",
                "image": encode_png(np.full((SIZE, SIZE, 3), index, np.uint8)),
                "sketch": encode_png(np.eye(SIZE, dtype=np.uint8) * np.uint8(255)),
                "color": encode_png(rng.integers(1, 256, (SIZE, SIZE, 3), np.uint8)),
                "hair": encode_png(hair) if index % 2 else None,
                "eyes": [12.0, 15.0, 20.0, 15.0],
                "sha256": "",
            }
        )
    (root / "data").mkdir(parents=True)
    order = rng.permutation(NUM)  # shards hold rows in any order
    for shard, part in enumerate(np.split(order, 4)):
        table = pa.Table.from_pylist([rows[i] for i in part], schema=SCHEMA)
        pq.write_table(table, root / "data" / f"part-{shard:05d}.parquet")
    info = replace(
        DATASET,
        size_px=SIZE,
        num_images=num_images,
        num_train=18,
        num_test=6,
        num_shards=4,
        fingerprint=fingerprint,
        source="test",
    )
    (root / "dataset.json").write_bytes(info.to_json())
    return str(root)


def keys_of(dataset: PreparedDataset) -> list[str]:
    return [dataset.key(at) for at in range(len(dataset))]


def copy_name(uri: str) -> str:
    info = DatasetInfo.read(uri)
    assert info is not None
    return info.copy_name


def spoil(uri: str) -> str:
    """Make one image of a written dataset no image; return its key."""
    path = Path(uri, "data", "part-00002.parquet")
    table = pq.read_table(path)
    images = [b"no image", *table.column("image").to_pylist()[1:]]
    at = table.schema.get_field_index("image")
    pq.write_table(table.set_column(at, table.schema.field(at), pa.array(images, pa.binary())), path)
    return str(table.column("key")[0].as_py())


def same(found: Mapping[str, Tensor], wanted: examples.Example) -> bool:
    """Tell whether a batch of a feed is the one that was made here."""
    arrays = {name: tensor.numpy() for name, tensor in found.items()}
    return arrays.keys() == wanted.keys() and all(
        arrays[name].dtype == wanted[name].dtype and np.array_equal(arrays[name], wanted[name]) for name in wanted
    )
