"""Raw faces to a prepared dataset with Ray Data; what it makes is described in `dataset`.

Each row of the Ray dataset is one shard: the keys it shall hold. On CPUs one stage of actors turns it into a Parquet
file and gives back a line about it, so pixels never cross a process border. Where the cluster has GPUs there are three
stages, so that nodes without one read, draw and write, and few actors share a GPU; then a row carries the shard's
photographs. Both ways call the same methods of `ShardMaker`. A shard's file is written whole or not at all and says
what it was made from; so a preparation that was stopped at any moment goes on with the shards that lack.

| stage | runs on | reads columns | gives columns |
| --- | --- | --- | --- |
| `_MakeShard` | a core | shard, keys | `MADE` |
| `_LoadShard` | half a core | shard, keys | `LOADED` |
| `_DetectEdges` | a share of a GPU | `LOADED` | `DETECTED` |
| `_FinishShard` | half a core | `DETECTED` | `MADE` |

| column | type | meaning |
| --- | --- | --- |
| shard | int64 | its number |
| keys | list of string | of its photographs |
| faces | list of lists of struct | those that can be used, in chunks; key: string, eyes: 4 float32; as binary image: \
(S, S, 3) uint8 and labels: (S, S) uint8 or null; square: struct or null |
| equalized | list of binary | a chunk's (N, P, P, 3) uint8, what the edge detector is to see |
| edges | list of binary | a chunk's (N, P, P) float32 |
| refused, notes | list of struct | key and text: string, each |
| num_photographs | int64 | how many the shard is made of |
| prepared | int64 | how many images were |
| began, ended | float64 | seconds of the clock |
| error, message | string | null, or the class and text of what ended the whole preparation: Ray would pass it on as \
the text of a traceback |
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeVar

import cv2
import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from numpy.typing import NDArray
from ray.data.read_api import from_blocks

from scfegan_ray import errors, locks, nodes, room, storage
from scfegan_ray.allocation import KEEP_MEMORY
from scfegan_ray.config import Config, DataConfig
from scfegan_ray.data import align, colors, decoding, parsing, report, sketches, sources
from scfegan_ray.data.codecs import encode_row
from scfegan_ray.data.dataset import SQUARE, DatasetInfo, read_rejected, write_index, write_rejected, write_shard
from scfegan_ray.data.plan import (
    Made,
    Plan,
    check_detector,
    check_finished,
    describe,
    find_shards,
    make_plan,
    read_planned,
    settle,
)
from scfegan_ray.errors import DataError, ScFeganError
from scfegan_ray.progress import Progress

logger = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")
PixelT = TypeVar("PixelT", np.uint8, np.float32)

CHUNK_IMAGES = 8
"""Decoded photographs in memory at a time."""

Stage = Literal["load", "detect", "finish"]
STAGES: tuple[Stage, ...] = ("load", "detect", "finish")
"""Parts of the work on a shard, in their order."""

GPU_SHARE = 0.5
"""Of a GPU, for each actor that detects edges, where nobody says another: one hands over while the other computes."""

_MANY_SHARDS = 8  # per core
_MOST_BLOCKS = 4096
"""That Ray Data is given at once: each costs the driver a millisecond and some kilobytes."""
_CORE_SHARE = 0.5
"""Of a core, for each actor that loads or finishes: one of each on every core, whichever of them has work."""
_LOGGED = 20
_LEAST_BYTES_PER_PIXEL = 1
"""Of a prepared photograph with its maps; most take up to twice as much."""


@dataclass(frozen=True, slots=True)
class Preparation:
    """What a preparation made.

    Attributes:
        uri: of the dataset.
        info: its description.
        rejected: (key, reason) of what was left out.
        busy_seconds: from the first image's start to the last one's end; 0 where nothing was left to do.
        num_made: images prepared in these seconds.
    """

    uri: str
    info: DatasetInfo
    rejected: list[tuple[str, str]]
    busy_seconds: float = 0.0
    num_made: int = 0


def prepare(
    config: Config, *, session: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
) -> Preparation:
    """Make the prepared dataset that a config asks for, go on making it, or find it already made.

    Args:
        config: `data` says what to read and how; with `data.prepared` unset the dataset goes under the storage path,
            named by everything that shapes it, so that another setting makes another dataset. `masks` shape the
            sample holes of the report only.
        session: entered only when there is something to make; Ray must run within it.

    Raises:
        DataError: the source is missing or empty, no image of it can be used, or the place holds a dataset, whole or
            begun, of other settings.
        StorageError: the source cannot be read or the place cannot be written.
        ModelError: weights that are needed cannot be had.
    """
    plan = _patiently(config, lambda: make_plan(config))
    found = _patiently(config, lambda: DatasetInfo.read(plan.uri))
    if found is not None:
        check_finished(config.data, plan, found)
        logger.info("%s is already prepared: %d images", plan.uri, found.num_images)
        return Preparation(plan.uri, found, _patiently(config, lambda: read_rejected(plan.uri)))
    with locks.held(plan.uri, f"the dataset {plan.uri}", patience_seconds=float("inf")):
        # Another process may have made it while this one waited.
        if _patiently(config, lambda: DatasetInfo.read(plan.uri)) is None:
            return _make(config, plan, session)
    return prepare(config, session=session)


def ensure_prepared(
    config: Config, *, session: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
) -> str:
    """Return the URI of the dataset to train on; prepare it first where it is not there yet.

    Args:
        config: names it or its source.
        session: Ray must run within it; entered only where something is left to prepare.

    Raises:
        DataError: as `prepare`; or the dataset holds another image size than the config.
    """
    uri = storage.absolute(config.data.prepared) if config.data.prepared else None
    info = _patiently(config, functools.partial(DatasetInfo.read, uri)) if uri else None
    if uri is None or info is None:
        made = prepare(config, session=session)
        uri, info = made.uri, made.info
    check_detector(config.data, uri, info.sketch_detector)
    if info.size_px != config.data.size_px:
        raise DataError(
            f"{uri} holds {info.size_px}-pixel images, the run wants {config.data.size_px}; "
            f"give --data.size-px {info.size_px} or another --data.prepared"
        )
    return uri


def num_cores() -> int:
    """Return the cores of the cluster that is there now, each of which one actor prepares images on."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _patiently(config: Config, work: Callable[[], ResultT]) -> ResultT:
    """Do something with storage that may be begun again, and again while storage fails."""
    return storage.retrying(work, config.storage.retry_seconds, logger.warning)


def _make(config: Config, plan: Plan, session: Callable[[], contextlib.AbstractContextManager[object]]) -> Preparation:
    if storage.is_local(plan.uri):
        storage.check_writable(plan.uri)  # a folder that cannot be made now cannot be made in a minute
    there = _patiently(config, lambda: find_shards(plan))
    settled = settle(config.data, plan, there.settled)
    missing = [number for number in range(plan.num_shards) if number not in there.numbers]
    busy_seconds, num_made = 0.0, 0
    if missing:
        num_images = plan.num_photographs(missing)  # at least, where faces are found
        room.require(
            plan.uri,
            _LEAST_BYTES_PER_PIXEL * num_images * config.data.size_px**2,
            f"{num_images} images of {config.data.size_px} pixels",
            "give another --data.prepared or --storage.path",
        )
        if there.numbers:
            logger.info("going on with the %d of %d shards that are there", len(there.numbers), plan.num_shards)
        with session():
            if share := config.data.gpus_per_actor:
                cure = "give --data.gpus-per-actor 0, or none"
                nodes.require(
                    {"GPU": share}, "an actor that detects edges needs", cure, may_wait=config.train.wait_for_nodes
                )
            busy_seconds, num_made = _run(plan, settled, missing)
        there = _patiently(config, functools.partial(read_planned, plan, missing, there))
        settled = settle(config.data, plan, there.settled)
    info, rejected = _describe(config, plan, settled, there)
    rows, notes = there.rows.drop_columns("sha256"), sorted(there.notes)
    del there  # digests of millions of images take a fifth of this process
    _patiently(config, functools.partial(_finish, config, plan, info, rows, rejected, notes))
    for key, reason in rejected[:_LOGGED]:
        logger.warning("left out %s: %s", key, reason)
    if len(rejected) > _LOGGED:
        logger.warning("left out %d more; all are in %s/rejected.parquet", len(rejected) - _LOGGED, plan.uri)
    logger.info("prepared %d images, left out %d: %s", info.num_images, info.num_rejected, plan.uri)
    return Preparation(plan.uri, info, rejected, busy_seconds, num_made)


def _describe(
    config: Config, plan: Plan, settled: DataConfig, there: Made
) -> tuple[DatasetInfo, list[tuple[str, str]]]:
    """Say what was made and what was left out, once all shards are there.

    Raises:
        DataError: no image can be used.
    """
    rejected = sorted([*plan.listing.refused, *there.refused])
    if not there.rows.num_rows:
        _patiently(config, lambda: storage.delete(storage.join(plan.uri, "data")))
        raise DataError(
            f"none of the {len(rejected)} images of {config.data.source} can be used: {': '.join(rejected[0])}"
        )
    return describe(config, plan, settled, there.rows, len(rejected)), rejected


def _finish(
    config: Config,
    plan: Plan,
    info: DatasetInfo,
    rows: pa.Table,
    rejected: list[tuple[str, str]],
    notes: list[tuple[str, str]],
) -> None:
    """Write what lies beside the shards, its description last."""
    for note, count in Counter(note for _, note in notes).most_common():
        logger.warning("%d images, %s among them: %s", count, next(key for key, said in notes if said == note), note)
    for folder in (plan.uri, storage.join(plan.uri, "data")):
        storage.delete_abandoned(folder)
    write_index(plan.uri, rows)
    write_rejected(plan.uri, rejected)
    report.write(plan.uri, info, rows, rejected, config.masks, notes, _reader(plan, info))
    storage.write_bytes(storage.join(plan.uri, "dataset.json"), info.to_json())


def _reader(plan: Plan, info: DatasetInfo) -> Callable[[str], NDArray[np.uint8]] | None:
    """Return what reads a whole photograph by its key; None where no faces were found in any."""
    source = plan.source
    if info.align == "none" or not isinstance(source, sources.RawPhotographs):
        return None
    return lambda key: decoding.decode_whole(source.read(key), max_megapixels=source.max_megapixels)


def _run(plan: Plan, config: DataConfig, missing: list[int]) -> tuple[float, int]:
    """Make shards on the cluster.

    Returns:
        The seconds between the first one's start and the last one's end, and how many images were prepared in them.
    """
    total = plan.num_photographs(missing)
    logger.info("preparing %d photographs at %d px from %s", total, config.size_px, plan.source.name)
    # With one shard per actor at a time the pool is never more than fully busy, which is Ray Data's sign to grow it.
    ray.data.DataContext.get_current().autoscaling_config.actor_pool_util_upscaling_threshold = 0.8
    gpu_share = _choose_gpu_share(config)
    source = None if plan.address == sources.EMBEDDED else plan.address
    with nodes.seen_by_all({"data.prepared or storage.path": plan.uri}, {"data.source": source}) as landmarks:
        maker = ShardMaker(config, plan.source, plan.uri, plan.settings, plan.retry_seconds)
        shards = from_blocks(list(_blocks(plan, missing)))
        made = _in_stages(shards, maker, landmarks, len(missing), gpu_share)
        return _collect(made, total)


def _choose_gpu_share(config: DataConfig) -> float:
    """Return which share of a GPU each actor that detects edges takes; 0 where CPUs do all of it; and say why."""
    if config.gpus_per_actor is not None:
        return config.gpus_per_actor
    if config.sketch.detector != "hed":
        return 0.0
    with_gpu = nodes.able({"GPU": GPU_SHARE})
    seeing = sum(nodes.ask(torch.cuda.is_available, with_gpu))
    if not with_gpu:
        logger.info("edges are detected on CPUs: no node has a GPU")
    elif seeing < len(with_gpu):
        logger.warning(
            "edges are detected on CPUs: torch sees no GPU on %d of the %d nodes that have one; install a torch built "
            "for CUDA there, or give --data.gpus-per-actor 0 to be told no more",
            len(with_gpu) - seeing, len(with_gpu),
        )  # fmt: skip
    else:
        logger.info(
            "edges are detected on the GPUs of %d nodes, each by actors that take %g of one; --data.gpus-per-actor "
            "says how much, or 0 for CPUs alone", seeing, GPU_SHARE,
        )  # fmt: skip
        return GPU_SHARE
    return 0.0


def _blocks(plan: Plan, missing: Sequence[int]) -> Iterator[pa.Table]:
    """Give the shards to make: one in each block, or as many as keep the number of blocks bearable."""
    each = -(-len(missing) // _MOST_BLOCKS)
    for start in range(0, len(missing), each):
        numbers = missing[start : start + each]
        keys = [plan.keys_of(number).to_pylist() for number in numbers]
        yield pa.table({"shard": pa.array(numbers, pa.int64()), "keys": pa.array(keys, pa.list_(pa.string()))})


def _in_stages(
    shards: ray.data.Dataset, maker: ShardMaker, landmarks: nodes.Landmarks, num_shards: int, gpu_share: float
) -> ray.data.Dataset:
    """Lay out the work: in one stage, or in three around the GPUs."""

    def through(before: ray.data.Dataset, stage: type[_Stage], at_first: int, **resources: float) -> ray.data.Dataset:
        return before.map_batches(
            stage,
            fn_constructor_args=[maker, landmarks],
            batch_size=1,
            batch_format="pyarrow",
            # The pool grows with the cluster, up to one actor per shard. A second shard in an actor's queue saves the
            # fifth of a second in which Ray Data finds it the next one; but where shards are few, one that waits in a
            # queue is missed by an idle core at the end.
            compute=ray.data.ActorPoolStrategy(
                min_size=1,
                max_size=num_shards,
                initial_size=max(1, min(at_first, num_shards)),
                # An actor has one call at a time, so nothing needs a lock; but without this Ray Data makes the call on
                # a thread of its own, beside which the main thread wakes up a hundred times a second.
                enable_true_multi_threading=True,
                max_tasks_in_flight_per_actor=2 if num_shards >= _MANY_SHARDS * num_cores() else 1,
            ),
            # Huge pages make the edge detector a twentieth faster.
            runtime_env={"env_vars": KEEP_MEMORY},
            **resources,
        )

    if not gpu_share:
        return through(shards, _MakeShard, num_cores(), num_cpus=1)
    num_gpus = ray.cluster_resources().get("GPU", 0.0)
    loaded = through(shards, _LoadShard, num_cores(), num_cpus=_CORE_SHARE)
    # Without a core, so that cores which are all taken never keep a GPU waiting.
    detected = through(loaded, _DetectEdges, int(num_gpus / gpu_share), num_cpus=0, num_gpus=gpu_share)
    return through(detected, _FinishShard, num_cores(), num_cpus=_CORE_SHARE)


def _collect(made: ray.data.Dataset, total: int) -> tuple[float, int]:
    """Follow the work to its end; see `_run`."""
    began, ended, done = float("inf"), 0.0, 0
    num_prepared = 0
    progress: Progress | None = None
    for block in made.iter_batches(batch_size=None, batch_format="pyarrow"):
        for row in block.to_pylist():
            if row["error"]:
                raise getattr(errors, row["error"])(row["message"])
            began, ended = min(began, row["began"]), max(ended, row["ended"])
            num_prepared += row["prepared"]
            done += row["num_photographs"]
        # The rate counts from the first shard, when the actors have started.
        progress = progress or Progress("prepare", total=total, start=done, log=logger.info)
        progress.update(done)
    if done != total:
        raise DataError(f"{total - done} of {total} photographs got lost in preparation; run it again")
    return ended - began, num_prepared


class _Stage:
    """Ray Data stage: what an actor does with one shard after the other."""

    def __init__(self, maker: ShardMaker, landmarks: nodes.Landmarks) -> None:
        self._maker = maker
        self._landmarks = landmarks
        self._device = assigned_device()


class _MakeShard(_Stage):
    """The keys of one shard to its Parquet file."""

    def __call__(self, block: pa.Table) -> pa.Table:
        """Make one shard; see `make_shard`."""
        return make_shard(self._maker, block, self._landmarks)


class _LoadShard(_Stage):
    """The keys of one shard to its photographs."""

    def __call__(self, block: pa.Table) -> pa.Table:
        """Load one shard; see `load_shard`."""
        return load_shard(self._maker, block, self._landmarks)


class _DetectEdges(_Stage):
    """The photographs of one shard to their edges."""

    def __call__(self, block: pa.Table) -> pa.Table:
        """Detect the edges of one shard; see `detect_edges`."""
        return detect_edges(self._maker, block, self._device)


class _FinishShard(_Stage):
    """Faces and edges of one shard to its Parquet file."""

    def __call__(self, block: pa.Table) -> pa.Table:
        """Finish one shard; see `finish_shard`."""
        return finish_shard(self._maker, block, self._landmarks)


def assigned_device() -> torch.device:
    """Return the GPU that Ray assigned to this process, or the CPU where it assigned none.

    What torch sees says nothing: Ray hides no GPU from a process that asked for none.
    """
    assigned = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    if not assigned:
        return torch.device("cpu")
    # Ray usually makes these the only ones that are seen, which are then counted from 0.
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    number = seen.index(assigned[0]) if assigned[0] in seen else int(assigned[0])
    return torch.device("cuda", number)


_TEXTS = pa.list_(pa.struct([("key", pa.string()), ("text", pa.string())]))
_FACE = pa.struct(
    [
        ("key", pa.string()),
        ("image", pa.large_binary()),
        ("labels", pa.large_binary()),
        ("eyes", pa.list_(pa.float32())),
        ("square", SQUARE),
    ]
)
_PIXELS = pa.list_(pa.large_binary())
_HANDED_ON = [
    ("shard", pa.int64()),
    ("num_photographs", pa.int64()),
    ("faces", pa.list_(pa.list_(_FACE))),
    ("refused", _TEXTS),
    ("notes", _TEXTS),
]
_TOLD = [("began", pa.float64()), ("error", pa.string()), ("message", pa.string())]

LOADED = pa.schema([*_HANDED_ON, ("equalized", _PIXELS), *_TOLD])
"""Columns of a shard whose photographs are read."""

DETECTED = pa.schema([*_HANDED_ON, ("edges", _PIXELS), *_TOLD])
"""Columns of a shard whose edges are found."""

MADE = pa.schema([("num_photographs", pa.int64()), ("prepared", pa.int64()), ("ended", pa.float64()), *_TOLD])
"""Columns about a shard that is made."""


def make_shard(maker: ShardMaker, block: pa.Table, landmarks: nodes.Landmarks | None = None) -> pa.Table:
    """Make one shard.

    Args:
        maker: does the work.
        block: one row: its number and keys.
        landmarks: what this node must see, if anything.

    Returns:
        One row of `MADE`.
    """

    def work() -> dict[str, Any]:
        _get_ready(maker, landmarks, *STAGES)
        began = time.time()
        [row] = block.to_pylist()
        prepared, _ = maker.make(row["shard"], row["keys"])
        told = {"began": began, "ended": time.time()}
        return {"num_photographs": len(row["keys"]), "prepared": prepared} | told

    return _attempt(work, MADE)


def load_shard(maker: ShardMaker, block: pa.Table, landmarks: nodes.Landmarks | None = None) -> pa.Table:
    """Read the photographs of one shard: the first part of `make_shard`.

    Returns:
        One row of `LOADED`.
    """

    def work() -> dict[str, Any]:
        _get_ready(maker, landmarks, "load")
        began = time.time()
        [row] = block.to_pylist()
        refused: list[tuple[str, str]] = []
        notes: list[tuple[str, str]] = []
        faces, equalized = [], []
        for chunk in maker.load_chunks(row["keys"], refused, notes):
            faces.append([_pack(key, face) for key, face in chunk])
            equalized.append(maker.equalize([face for _, face in chunk]).tobytes())
        told: dict[str, Any] = {"refused": _pairs(refused), "notes": _pairs(notes)}
        told |= {"shard": row["shard"], "num_photographs": len(row["keys"]), "began": began}
        return {"faces": faces, "equalized": equalized} | told

    return _attempt(work, LOADED)


def detect_edges(maker: ShardMaker, block: pa.Table, device: torch.device | None = None) -> pa.Table:
    """Detect the edges in the photographs of one shard: the second part of `make_shard`.

    Args:
        maker: does the work.
        block: one row of `LOADED`.
        device: where it is done. Default: the CPU.

    Returns:
        One row of `DETECTED`; what is handed on is not copied.
    """

    def work() -> dict[str, Any]:
        maker.set_up("detect", device=device)
        [equalized] = block.column("equalized").to_pylist()
        sizes = [len(chunk) for chunk in block.column("faces")[0]]
        return {
            "edges": [
                maker.detect(_squares(pixels, np.uint8, size, 3)).tobytes()
                for pixels, size in zip(equalized, sizes, strict=True)
            ]
        }

    if block.column("error")[0].is_valid:
        return block.set_column(block.column_names.index("equalized"), "edges", pa.nulls(1, _PIXELS))
    found = _attempt(work, DETECTED)
    handed_on = (*(name for name, _ in _HANDED_ON), "began")
    return pa.table({name: (block if name in handed_on else found).column(name) for name in DETECTED.names}, DETECTED)


def finish_shard(maker: ShardMaker, block: pa.Table, landmarks: nodes.Landmarks | None = None) -> pa.Table:
    """Draw, paint, encode and write one shard: the last part of `make_shard`.

    Args:
        maker: does the work.
        block: one row of `DETECTED`.
        landmarks: what this node must see, if anything.

    Returns:
        One row of `MADE`.
    """

    def work() -> dict[str, Any]:
        _get_ready(maker, landmarks, "finish")
        [row] = block.to_pylist()
        rows = [
            one
            for faces, edges in zip(row["faces"], row["edges"], strict=True)
            for one in maker.finish([_unpack(face) for face in faces], _squares(edges, np.float32, len(faces)))
        ]
        refused, notes = ([(one["key"], one["text"]) for one in row[name]] for name in ("refused", "notes"))
        maker.write(row["shard"], rows, refused, notes)
        told = {"began": row["began"], "ended": time.time()}
        return {"num_photographs": row["num_photographs"], "prepared": len(rows)} | told

    if block.column("error")[0].is_valid:
        return pa.Table.from_pylist(block.select(["began", "error", "message"]).to_pylist(), MADE)
    return _attempt(work, MADE)


def _get_ready(maker: ShardMaker, landmarks: nodes.Landmarks | None, *stages: Stage) -> None:
    if landmarks is not None:
        landmarks.check()
    maker.set_up(*stages)


def _attempt(work: Callable[[], dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return a row, of which what ended the work is all that is known where it fails."""
    try:
        row = work()
    except ScFeganError as raised:
        row = {"error": type(raised).__name__, "message": str(raised)}
    return pa.Table.from_pylist([row], schema)


def _pairs(texts: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"key": key, "text": text} for key, text in texts]


def _pack(key: str, face: sources.Face) -> dict[str, Any]:
    labels = None if face.labels is None else face.labels.tobytes()
    square = None if face.square is None else asdict(face.square)
    return {"key": key, "image": face.image.tobytes(), "labels": labels, "eyes": face.eyes, "square": square}


def _unpack(packed: dict[str, Any]) -> tuple[str, sources.Face]:
    [image] = _squares(packed["image"], np.uint8, 1, 3)
    labels = None if packed["labels"] is None else _squares(packed["labels"], np.uint8, 1)[0]
    square = None if packed["square"] is None else align.Square(**packed["square"])
    return packed["key"], sources.Face(image, image, labels, np.asarray(packed["eyes"], np.float32), square=square)


def _squares(pixels: bytes, kind: type[PixelT], count: int, *channels: int) -> NDArray[PixelT]:
    """Return (count, W, W, *channels) pixels, whatever their side."""
    values = np.frombuffer(pixels, kind)
    side = math.isqrt(values.size // (count * math.prod(channels)))
    return values.reshape(count, side, side, *channels)


class ShardMaker:
    """Prepares faces, one shard after the other, in one process."""

    def __init__(
        self,
        config: DataConfig,
        source: sources.FaceSource,
        uri: str,
        settings: dict[str, Any],
        retry_seconds: float = 0.0,
    ) -> None:
        """Take the work's description.

        Args:
            config: with `sketch` and `align` settled, so that no two workers choose differently.
            source: where the keys are read from.
            uri: of the dataset.
            settings: everything that shapes the shards; written into each.
            retry_seconds: how long storage that fails is tried again.
        """
        self._config = config
        self._source = source
        self._uri = uri
        self._settings = settings
        self._retry_seconds = retry_seconds
        self._device = torch.device("cpu")
        self._is_set_up = False

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave weights behind; who works with them loads them."""
        return ShardMaker, (self._config, self._source, self._uri, self._settings, self._retry_seconds)

    @functools.cached_property
    def detector(self) -> sketches.EdgeDetector:
        """What finds the edges of all sketches."""
        return sketches.make_detector(self._config.sketch, self._device)

    @functools.cached_property
    def parser(self) -> parsing.FaceParser | None:
        """What labels photographs that nobody labelled, if anything."""
        config = self._config.parser
        return parsing.load_parser(config, self._retry_seconds) if config.model else None

    @functools.cached_property
    def finder(self) -> align.FaceFinder | None:
        """What finds the faces of photographs, if that is wanted."""
        if self._config.align == "none" or not isinstance(self._source, sources.RawPhotographs):
            return None
        # Where they would have to be enlarged more than twice, there is little to learn.
        return align.FaceFinder(max(align.LEAST_SIDE_PX, self._config.size_px // 2))

    def set_up(self, *stages: Stage, device: torch.device | None = None) -> None:
        """Make this process ready: load weights and libraries, and keep to one core, for every core has a process.

        Args:
            stages: what it will do.
            device: where edges are detected. Default: the CPU.

        Raises:
            ModelError: weights cannot be had.
        """
        if self._is_set_up:
            return
        self._device = device or self._device
        cv2.setNumThreads(1)
        torch.set_num_threads(1)
        size_px = self._config.size_px
        blank = np.full((size_px, size_px, 3), 128, np.uint8)
        # The first face through takes a second longer: libraries load parts of themselves when they are first used.
        equalized = self.equalize([sources.Face(blank, blank)] * CHUNK_IMAGES)
        if "load" in stages and self.finder is not None:
            self.finder.find(blank)
        if "load" in stages and self.parser is not None:
            self.parser(blank)
        if "detect" in stages:
            self.detect(equalized)
        if "finish" in stages:
            face = sources.Face(blank, blank, None, parsing.canonical_eyes(size_px))
            self.finish([("", face)], np.zeros((1, *equalized.shape[1:3]), np.float32))
        self._is_set_up = True

    def make(self, number: int, keys: Sequence[str]) -> tuple[int, int]:
        """Prepare the images of one shard and write its file.

        Args:
            number: of the shard.
            keys: of its photographs.

        Returns:
            How many images were prepared, and how many were refused.

        Raises:
            StorageError: the source or the dataset's place fails.
            ModelError: weights cannot be had.
        """
        rows: list[dict[str, Any]] = []
        refused: list[tuple[str, str]] = []
        notes: list[tuple[str, str]] = []
        for chunk in self.load_chunks(keys, refused, notes):
            rows += self.finish(chunk, self.detect(self.equalize([face for _, face in chunk])))
        self.write(number, rows, refused, notes)
        return len(rows), len(refused)

    def load_chunks(
        self, keys: Sequence[str], refused: list[tuple[str, str]], notes: list[tuple[str, str]]
    ) -> Iterator[list[tuple[str, sources.Face]]]:
        """Read faces, a few at a time, each photograph's as `load` does.

        Args:
            keys: of the photographs.
            refused: takes (key, reason) of those that cannot be used.
            notes: takes (key, note) of those whose files needed a guess.

        Yields:
            (key, face) of the next `CHUNK_IMAGES` that can be used.

        Raises:
            StorageError: the source fails.
        """
        self._source.read_ahead(keys)
        chunk: list[tuple[str, sources.Face]] = []
        for key in keys:
            try:
                faces, left_out = self._patiently(functools.partial(self.load, key))
            except DataError as error:
                faces, left_out = [], [(key, " ".join(str(error).split()))]
            refused += left_out
            notes += [(name, note) for name, face in faces for note in face.notes]
            chunk += faces
            while len(chunk) >= CHUNK_IMAGES:
                yield chunk[:CHUNK_IMAGES]
                chunk = chunk[CHUNK_IMAGES:]
        if chunk:
            yield chunk

    def _patiently(self, work: Callable[[], ResultT]) -> ResultT:
        return storage.retrying(work, self._retry_seconds, logger.warning)

    def load(self, key: str) -> tuple[list[tuple[str, sources.Face]], list[tuple[str, str]]]:
        """Read the faces of one photograph, with labels of the parser where nobody labelled them, and with eyes.

        Returns:
            (key, face) of each, and (key, reason) of those that are left out.

        Raises:
            DataError: the photograph cannot be used; the text is the reason, without the key.
        """
        size_px = self._config.size_px
        detail_px = sketches.working_size_px(self._config.sketch, size_px)
        if self.finder is None:
            return [(key, self._completed(self._source.load(key, size_px, detail_px)))], []
        assert isinstance(self._source, sources.RawPhotographs), "for others there is no finder"
        faces, refused = sources.load_faces(self._source, key, self.finder, size_px, detail_px)
        return [(name, self._completed(face)) for name, face in faces], refused

    def _completed(self, face: sources.Face) -> sources.Face:
        size_px = self._config.size_px
        labels = face.labels
        if labels is None and self.parser is not None:
            found = self.parser(face.photograph)
            if parsing.has_face(found):
                labels = parsing.resize_labels(found, size_px)
        eyes = face.eyes
        if eyes is None and labels is not None:
            eyes = parsing.eye_positions(labels, self._config.eyes)
        if eyes is None:
            eyes = parsing.canonical_eyes(size_px, self._config.eyes)
        return replace(face, labels=labels, eyes=eyes)

    def equalize(self, faces: Sequence[sources.Face]) -> NDArray[np.uint8]:
        """Give what the edge detector is to see of some faces: (N, P, P, 3) uint8 RGB."""
        return sketches.equalize([face.photograph for face in faces], self._config.sketch, self._config.size_px)

    def detect(self, equalized: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Find the edges of what `equalize` gave: (N, P, P) float32 in [0, 1]."""
        return self.detector(equalized)

    def finish(self, faces: Sequence[tuple[str, sources.Face]], edges: NDArray[np.float32]) -> list[dict[str, Any]]:
        """Draw, paint and encode: the rows of some (key, face), whose columns are documented in `dataset`."""
        return [
            self.encode(key, face, sketch, self.color(face))
            for (key, face), sketch in zip(faces, self.draw(edges), strict=True)
        ]

    def draw(self, edges: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Draw the lines along edges: (N, S, S) uint8 in {0, 1}."""
        return sketches.draw_lines(edges, self._config.sketch, self._config.size_px)

    def color(self, face: sources.Face) -> NDArray[np.uint8]:
        """Paint the segments of one face: (S, S, 3) uint8 RGB."""
        return colors.make_color_map(face.image, face.labels, self._config.color)

    def encode(
        self, key: str, face: sources.Face, sketch: NDArray[np.uint8], color: NDArray[np.uint8]
    ) -> dict[str, Any]:
        """Make one face's row; its columns are documented in `dataset`."""
        hair = None if face.labels is None else parsing.hair_region(face.labels)
        assert face.eyes is not None, "load gives every face eyes"
        square = None if face.square is None else asdict(face.square)
        return encode_row(key, face.image, sketch, color, hair, face.eyes) | {"square": square}

    def write(
        self,
        number: int,
        rows: list[dict[str, Any]],
        refused: list[tuple[str, str]],
        notes: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Write one shard's file, so that readers see all of it or nothing.

        Raises:
            StorageError: the dataset's place fails.
        """
        settled: dict[str, str] = {"detector": self._config.sketch.detector, "precision": self._config.sketch.precision}
        if "data.align" in self._settings:
            settled["align"] = self._config.align
        self._patiently(
            lambda: write_shard(
                self._uri,
                number,
                rows,
                settings=self._settings,
                settled=settled,
                refused=refused,
                notes=notes,
            )
        )
