"""Raw faces to a prepared dataset with Ray Data.

Each block of the Ray dataset is one shard: the keys it shall hold. One stage of actors turns it into a Parquet file
and gives back a summary, so pixels never cross a process border.

| stage | reads columns | gives columns |
| --- | --- | --- |
| `_PrepareShard` | shard: int64, key: string | key, sha256, reason, error, message: string |

`sha256` is that of the stored row; `reason` is empty, or says why the image was left out. `error` and `message` are
empty, or the class and text of what ended the whole preparation: Ray would pass it on as the text of a traceback.

The prepared dataset:

| path | holds |
| --- | --- |
| `data/part-NNNNN.parquet` | one row an image, columns below |
| `rejected.parquet` | key and reason of each image that was left out |
| `preview.png` | 16 rows of what was made, with a sample hole |
| `dataset.json` | `examples.DatasetInfo`; written last |

| column | type | meaning |
| --- | --- | --- |
| key | string | the image's path relative to the source, unique |
| image | PNG bytes | (S, S, 3) uint8 RGB ground truth |
| sketch | PNG bytes | (S, S) uint8, 255 on one-pixel lines, else 0 |
| color | PNG bytes | (S, S, 3) uint8 RGB, each segment in its median color, never pure black |
| hair | PNG bytes or null | (S, S) uint8, 255 where hair is; null where nobody labelled the photograph |
| eyes | 4 float32 | x, y of the eye at the image's left, then of the one at its right, in pixels |
| sha256 | string | hex digest over the columns before it |
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import logging
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from scfegan_ray import config as configuration
from scfegan_ray import errors, images, storage
from scfegan_ray.config import Config
from scfegan_ray.data import colors, examples, parsing, sketches, sources
from scfegan_ray.errors import DataError, ScFeganError
from scfegan_ray.progress import Progress

logger = logging.getLogger(__name__)

PREVIEW_ROWS = 16
PREVIEW_SIDE_PX = 128


@dataclass(frozen=True, slots=True)
class Preparation:
    """What a preparation made: the dataset's URI and description, and (key, reason) of what was left out."""

    uri: str
    info: examples.DatasetInfo
    rejected: list[tuple[str, str]]


def prepare(config: Config) -> Preparation:
    """Make the prepared dataset that a config asks for, or find it already made.

    Args:
        config: `data` says what to read and how; with `data.prepared` unset the dataset goes under the storage path,
            named by everything that shapes it, so that another setting makes another dataset.

    Raises:
        DataError: the source is missing or empty, no image of it can be used, or the place holds a dataset that was
            made with other settings.
        StorageError: the source cannot be read or the place cannot be written.
    """
    source = sources.open_source(config.data, config.seed)
    keys = source.keys()
    if not keys:
        kinds = " ".join(sources.IMAGE_SUFFIXES)
        raise DataError(f"no images ({kinds}) under {config.data.source}; check --data.source")
    settings = _settings(config, keys)
    uri = _place(config, source, settings)
    found = examples.DatasetInfo.read(uri)
    if found is not None:
        differing = sorted(
            name
            for name in settings.keys() | found.preparation.keys()
            if settings.get(name) != found.preparation.get(name)
        )
        if differing:
            name = differing[0]
            raise DataError(
                f"{uri} was prepared with {name} = {found.preparation.get(name)}, now it is {settings.get(name)}; "
                "choose another --data.prepared or delete that folder"
            )
        logger.info("%s is already prepared: %d images", uri, found.num_images)
        return Preparation(uri, found, _read_rejected(uri))
    return _make(config, source, keys, settings, uri)


def ensure_prepared(config: Config) -> str:
    """Return the URI of the dataset to train on; prepare it first where it is not there yet.

    Raises:
        DataError: as `prepare`; or the dataset holds another image size than the config.
    """
    uri = storage.absolute(config.data.prepared) if config.data.prepared else None
    info = examples.DatasetInfo.read(uri) if uri else None
    if uri is None or info is None:
        made = prepare(config)
        uri, info = made.uri, made.info
    if info.size_px != config.data.size_px:
        raise DataError(
            f"{uri} holds {info.size_px}-pixel images, the run wants {config.data.size_px}; "
            f"give --data.size-px {info.size_px} or another --data.prepared"
        )
    return uri


def _settings(config: Config, keys: list[str]) -> dict[str, Any]:
    """Return everything that shapes the prepared images, flat, for comparison and for the default place."""
    values = {name: value for name, value in config.to_dict()["data"].items() if name not in ("prepared", "license")}
    embedded = config.data.source == "embedded"
    values["source"] = "embedded" if embedded else storage.absolute(config.data.source)
    if not embedded:
        del values["num_embedded"]
    values["seed"] = config.seed if embedded else None
    values["keys_sha256"] = hashlib.sha256("\n".join(keys).encode()).hexdigest()
    return configuration.flatten(values, "data.")


def _place(config: Config, source: sources.FaceSource, settings: dict[str, Any]) -> str:
    if config.data.prepared:
        return storage.absolute(config.data.prepared)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
    name = f"{source.name}-{config.data.size_px}-{digest}"
    return storage.join(storage.absolute(config.storage.path), "prepared", name)


def _make(
    config: Config, source: sources.FaceSource, keys: list[str], settings: dict[str, Any], uri: str
) -> Preparation:
    foreign = [
        name
        for name in storage.list_files(uri)
        if name not in ("preview.png", "rejected.parquet") and not name.startswith("data/part-")
    ]
    if foreign:
        raise DataError(f"{uri} holds other files ({foreign[0]}); choose an empty --data.prepared")
    storage.check_writable(uri)
    # What an interrupted preparation left behind is no dataset: it lacks dataset.json.
    storage.delete(storage.join(uri, "data"))
    # One detector for all workers, so that no dataset mixes two.
    detector = sketches.settle_detector(config.data.sketch.detector)
    try:
        summaries = _run(config, source, keys, uri, detector)
        good = sorted((row["key"], row["sha256"]) for row in summaries if not row["reason"])
        rejected = sorted((row["key"], row["reason"]) for row in summaries if row["reason"])
        if not good:
            raise DataError(
                f"none of the {len(keys)} images of {config.data.source} can be used: {': '.join(rejected[0])}"
            )
        for key, reason in rejected:
            logger.warning("left out %s: %s", key, reason)
        fingerprint = hashlib.sha256("\n".join(f"{key} {digest}" for key, digest in good).encode()).hexdigest()
        info = examples.DatasetInfo(
            schema_version=examples.SCHEMA_VERSION,
            size_px=config.data.size_px,
            num_images=len(good),
            num_rejected=len(rejected),
            test_fraction=config.data.test_fraction,
            fingerprint=fingerprint,
            license=config.data.license or source.license,
            source=str(settings["data.source"]),
            sketch_detector=detector,
            color_segments="labels" if source.has_labels else "superpixels",
            eyes="labels" if source.has_labels else "canonical",
            has_hair=source.has_labels,
            preparation=settings,
        )
        _write_rejected(uri, rejected)
        _write_preview(config, uri)
        storage.write_bytes(storage.join(uri, "dataset.json"), info.to_json())
    except BaseException:
        for leftover in ("data", "rejected.parquet", "preview.png"):
            storage.delete(storage.join(uri, leftover))
        raise
    logger.info("prepared %d images, left out %d: %s", len(good), len(rejected), uri)
    return Preparation(uri, info, rejected)


def _run(config: Config, source: sources.FaceSource, keys: list[str], uri: str, detector: str) -> list[dict[str, Any]]:
    per_shard = config.data.shard_images
    blocks = [
        pa.table({"shard": pa.array([start // per_shard] * len(part), pa.int64()), "key": part})
        for start in range(0, len(keys), per_shard)
        if (part := keys[start : start + per_shard])
    ]
    logger.info("preparing %d images at %d px from %s", len(keys), config.data.size_px, source.name)
    dataset = ray.data.from_arrow(blocks).map_batches(
        _PrepareShard,
        fn_constructor_kwargs={"config": config, "source": source, "uri": uri, "detector": detector},
        batch_size=None,
        batch_format="pyarrow",
        # The pool grows with the cluster, up to one actor per shard.
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=len(blocks)),
        num_cpus=1,
    )
    summaries: list[dict[str, Any]] = []
    progress: Progress | None = None
    for shard in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        rows = shard.to_pylist()
        if rows[0]["error"]:
            raise getattr(errors, rows[0]["error"])(rows[0]["message"])
        summaries += rows
        # The rate counts from the first shard, when the actors have started.
        progress = progress or Progress("prepare", total=len(keys), start=len(summaries), log=logger.info)
        progress.update(len(summaries))
    if len(summaries) != len(keys):
        raise DataError(f"{len(keys) - len(summaries)} of {len(keys)} images got lost in preparation; run it again")
    return summaries


class _PrepareShard:
    """Ray Data stage: the keys of one shard to its Parquet file."""

    def __init__(self, config: Config, source: sources.FaceSource, uri: str, detector: str) -> None:
        cv2.setNumThreads(1)
        self._config = config.data
        self._source = source
        self._uri = uri
        self._detector_name = detector

    def __call__(self, block: pa.Table) -> pa.Table:
        """Prepare one shard.

        Args:
            block: columns shard and key.

        Returns:
            Columns key, sha256, reason, error, message; see the module's docstring.
        """
        keys = block.column("key").to_pylist()
        nothing = [""] * len(keys)
        try:
            digests, reasons = self._write_shard(block.column("shard")[0].as_py(), keys)
        except ScFeganError as error:
            ended = {"error": [type(error).__name__] * len(keys), "message": [str(error)] * len(keys)}
            return pa.table({"key": keys, "sha256": nothing, "reason": nothing} | ended)
        return pa.table(
            {
                "key": keys,
                "sha256": [digests.get(key, "") for key in keys],
                "reason": [reasons.get(key, "") for key in keys],
                "error": nothing,
                "message": nothing,
            }
        )

    @functools.cached_property
    def _detector(self) -> sketches.EdgeDetector:
        return sketches.make_detector(self._detector_name)

    def _write_shard(self, shard: int, keys: list[str]) -> tuple[dict[str, str], dict[str, str]]:
        """Write one Parquet file; return the digest or the reason of each key."""
        rows: list[dict[str, Any]] = []
        reasons: dict[str, str] = {}
        for key in keys:
            try:
                rows.append(self._prepare(key))
            except DataError as error:
                reasons[key] = str(error).removeprefix(f"{key}: ")
        if rows:
            buffer = io.BytesIO()
            pq.write_table(
                pa.Table.from_pylist(rows, schema=examples.SCHEMA), buffer, row_group_size=32, compression="none"
            )
            storage.write_bytes(storage.join(self._uri, "data", f"part-{shard:05d}.parquet"), buffer.getvalue())
        return {row["key"]: row["sha256"] for row in rows}, reasons

    def _prepare(self, key: str) -> dict[str, Any]:
        face = self._source.load(key, self._config.size_px)
        sketch = sketches.make_sketches(face.image[None], self._detector, self._config.sketch)[0]
        color = colors.make_color_map(face.image, face.labels, self._config.color)
        hair = None if face.labels is None else parsing.hair_region(face.labels)
        row: dict[str, Any] = {
            "key": key,
            "image": examples.encode_png(face.image),
            "sketch": examples.encode_png(sketch * np.uint8(255)),
            "color": examples.encode_png(color),
            "hair": None if hair is None else examples.encode_png(hair * np.uint8(255)),
            "eyes": face.eyes.astype(np.float32),
        }
        digest = hashlib.sha256()
        for name in ("key", "image", "sketch", "color", "hair", "eyes"):
            value = row[name]
            data = value.encode() if isinstance(value, str) else b"" if value is None else bytes(value)
            digest.update(len(data).to_bytes(8, "big") + data)
        return row | {"sha256": digest.hexdigest()}


def _write_rejected(uri: str, rejected: list[tuple[str, str]]) -> None:
    table = pa.table(
        {
            "key": pa.array([key for key, _ in rejected], pa.string()),
            "reason": pa.array([reason for _, reason in rejected], pa.string()),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    storage.write_bytes(storage.join(uri, "rejected.parquet"), buffer.getvalue())


def _read_rejected(uri: str) -> list[tuple[str, str]]:
    table = pq.read_table(pa.BufferReader(storage.read_bytes(storage.join(uri, "rejected.parquet"))))
    return list(zip(table.column("key").to_pylist(), table.column("reason").to_pylist(), strict=True))


def _write_preview(config: Config, uri: str) -> None:
    rows: list[dict[str, Any]] = []
    for name in storage.list_files(storage.join(uri, "data")):
        if len(rows) >= PREVIEW_ROWS:
            break
        shard = storage.read_bytes(storage.join(uri, "data", name))
        rows += [examples.decode_row(row) for row in pq.read_table(pa.BufferReader(shard)).to_pylist()]
    sheet = []
    for row in rows[:PREVIEW_ROWS]:
        example = examples.evaluation_example(row, config.masks)
        keep = 1 - example["mask"]
        hair = np.zeros_like(row["sketch"]) if row["hair"] is None else row["hair"]
        sheet.append(
            [
                row["image"],
                255 - row["sketch"] * np.uint8(255),
                row["color"],
                hair * np.uint8(255),
                row["image"] * keep + (1 - keep) * np.uint8(128),
                255 - example["sketch"][..., 0] * np.uint8(255),
                example["color"],
            ]
        )
    titles = ["image", "sketch", "color", "hair", "incomplete", "sketch in hole", "brushed color"]
    picture = images.contact_sheet(sheet, titles, PREVIEW_SIDE_PX)
    storage.write_bytes(storage.join(uri, "preview.png"), examples.encode_png(picture))
