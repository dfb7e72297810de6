"""Raw faces to a prepared dataset with Ray Data; what it makes is described in `dataset`.

Each block of the Ray dataset is one shard: the keys it shall hold. One stage of actors turns it into a Parquet file
and gives back a line about it, so pixels never cross a process border. A shard's file is written whole or not at all
and says what it was made from; so a preparation that was stopped at any moment goes on with the shards that lack.

| stage | reads columns | gives columns |
| --- | --- | --- |
| `_MakeShard` | shard: int64, key: string | prepared, refused: int64; began, ended: float64; error, message: string |

`began` and `ended` are seconds of the clock. `error` and `message` are empty, or the class and text of what ended the
whole preparation: Ray would pass it on as the text of a traceback.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import cv2
import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from numpy.typing import NDArray

from scfegan_ray import errors, locks, nodes, room, storage
from scfegan_ray.allocation import KEEP_MEMORY
from scfegan_ray.config import Config, DataConfig
from scfegan_ray.data import colors, parsing, report, sketches, sources
from scfegan_ray.data.codecs import encode_row
from scfegan_ray.data.dataset import DatasetInfo, read_rejected, write_index, write_rejected, write_shard
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

CHUNK_IMAGES = 8
"""Decoded photographs in memory at a time."""

_MANY_SHARDS = 8  # per core
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
    settled = settle(config.data, plan.uri, there.settled)
    missing = [number for number in range(plan.num_shards) if number not in there.numbers]
    busy_seconds, num_made = 0.0, 0
    if missing:
        num_images = plan.num_images(missing)
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
                cure = "give no --data.gpus-per-actor"
                nodes.require({"GPU": share}, "an actor needs", cure, may_wait=config.train.wait_for_nodes)
            busy_seconds, num_made = _run(plan, settled, missing)
        before = there
        there = _patiently(config, lambda: read_planned(plan, missing, before))
        settled = settle(config.data, plan.uri, there.settled)
    info, rejected = _patiently(config, lambda: _finish(config, plan, settled, there))
    for key, reason in rejected[:_LOGGED]:
        logger.warning("left out %s: %s", key, reason)
    if len(rejected) > _LOGGED:
        logger.warning("left out %d more; all are in %s/rejected.parquet", len(rejected) - _LOGGED, plan.uri)
    logger.info("prepared %d images, left out %d: %s", info.num_images, info.num_rejected, plan.uri)
    return Preparation(plan.uri, info, rejected, busy_seconds, num_made)


def _finish(config: Config, plan: Plan, settled: DataConfig, there: Made) -> tuple[DatasetInfo, list[tuple[str, str]]]:
    """Write what lies beside the shards, its description last; return that, and what was left out."""
    rejected = sorted([*plan.listing.refused, *there.refused])
    if not there.rows.num_rows:
        storage.delete(storage.join(plan.uri, "data"))
        raise DataError(
            f"none of the {len(rejected)} images of {config.data.source} can be used: {': '.join(rejected[0])}"
        )
    notes = sorted(there.notes)
    for note, count in Counter(note for _, note in notes).most_common():
        logger.warning("%d images, %s among them: %s", count, next(key for key, said in notes if said == note), note)
    info = describe(config, plan, settled, there.rows, len(rejected))
    for folder in (plan.uri, storage.join(plan.uri, "data")):
        storage.delete_abandoned(folder)
    write_index(plan.uri, there.rows)
    write_rejected(plan.uri, rejected)
    report.write(plan.uri, info, there.rows, rejected, config.masks, notes)
    storage.write_bytes(storage.join(plan.uri, "dataset.json"), info.to_json())
    return info, rejected


def _run(plan: Plan, config: DataConfig, missing: list[int]) -> tuple[float, int]:
    """Make shards on the cluster.

    Returns:
        The seconds between the first one's start and the last one's end, and how many images were prepared in them.
    """
    total = plan.num_images(missing)
    logger.info("preparing %d images at %d px from %s", total, config.size_px, plan.source.name)
    blocks = [
        pa.table({"shard": pa.array([number] * len(plan.shards[number]), pa.int64()), "key": plan.shards[number]})
        for number in missing
    ]
    # With one shard per actor at a time the pool is never more than fully busy, which is Ray Data's sign to grow it.
    ray.data.DataContext.get_current().autoscaling_config.actor_pool_util_upscaling_threshold = 0.8
    num_gpus = config.gpus_per_actor or 0.0
    initial = min(num_cores(), len(blocks))
    if num_gpus:
        initial = max(1, min(initial, int(ray.cluster_resources().get("GPU", 0.0) / num_gpus)))
    source = None if plan.address == sources.EMBEDDED else plan.address
    with nodes.seen_by_all({"data.prepared or storage.path": plan.uri}, {"data.source": source}) as landmarks:
        return _make_shards(plan, config, blocks, landmarks, initial, num_gpus, total)


def _make_shards(
    plan: Plan,
    config: DataConfig,
    blocks: list[pa.Table],
    landmarks: nodes.Landmarks,
    initial: int,
    num_gpus: float,
    total: int,
) -> tuple[float, int]:
    dataset = ray.data.from_arrow(blocks).map_batches(
        _MakeShard,
        fn_constructor_args=[
            ShardMaker(config, plan.source, plan.uri, plan.settings, plan.retry_seconds),
            landmarks,
        ],
        # That of every block but the last: a batch is a block, and Ray Data wants a number where a GPU is used.
        batch_size=config.shard_images,
        batch_format="pyarrow",
        # One actor per core from the start; the pool grows with the cluster, up to one per shard. A second shard in an
        # actor's queue saves the fifth of a second in which Ray Data finds it the next one; but where shards are few,
        # one that waits in a queue is missed by an idle core at the end.
        compute=ray.data.ActorPoolStrategy(
            min_size=1,
            max_size=len(blocks),
            initial_size=initial,
            # An actor has one call at a time, so nothing needs a lock; but without this Ray Data makes the call on a
            # thread of its own, beside which the main thread wakes up a hundred times a second.
            enable_true_multi_threading=True,
            max_tasks_in_flight_per_actor=2 if len(blocks) >= _MANY_SHARDS * num_cores() else 1,
        ),
        num_cpus=1,
        # Huge pages make the edge detector a twentieth faster.
        runtime_env={"env_vars": KEEP_MEMORY},
        num_gpus=num_gpus,
    )
    began, ended, done = float("inf"), 0.0, 0
    num_prepared = 0
    progress: Progress | None = None
    for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        for row in block.to_pylist():
            if row["error"]:
                raise getattr(errors, row["error"])(row["message"])
            began, ended = min(began, row["began"]), max(ended, row["ended"])
            num_prepared += row["prepared"]
            done += row["prepared"] + row["refused"]
        # The rate counts from the first shard, when the actors have started.
        progress = progress or Progress("prepare", total=total, start=done, log=logger.info)
        progress.update(done)
    if done != total:
        raise DataError(f"{total - done} of {total} images got lost in preparation; run it again")
    return ended - began, num_prepared


class _MakeShard:
    """Ray Data stage: the keys of one shard to its Parquet file."""

    def __init__(self, maker: ShardMaker, landmarks: nodes.Landmarks) -> None:
        self._maker = maker
        self._landmarks = landmarks
        self._device = assigned_device()

    def __call__(self, block: pa.Table) -> pa.Table:
        """Make one shard; see `make_shard`."""
        return make_shard(self._maker, block, self._device, self._landmarks)


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


def make_shard(
    maker: ShardMaker,
    block: pa.Table,
    device: torch.device | None = None,
    landmarks: nodes.Landmarks | None = None,
) -> pa.Table:
    """Make the shard of one block.

    Args:
        maker: does the work.
        block: columns shard and key.
        device: where edges are detected. Default: the CPU.
        landmarks: what this node must see, if anything.

    Returns:
        One row; see the module's docstring.
    """
    began, num_prepared, num_refused, error, message = time.time(), 0, 0, "", ""
    try:
        if landmarks is not None:
            landmarks.check()
        maker.set_up(device)
        began = time.time()
        number = block.column("shard")[0].as_py()
        num_prepared, num_refused = maker.make(number, block.column("key").to_pylist())
    except ScFeganError as raised:
        error, message = type(raised).__name__, str(raised)
    row = {"prepared": num_prepared, "refused": num_refused, "began": began, "ended": time.time()}
    return pa.Table.from_pylist([row | {"error": error, "message": message}])


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
            config: with `sketch` settled, so that no two workers choose differently.
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
        return parsing.load_parser(self._config.parser) if self._config.parser.model else None

    def set_up(self, device: torch.device | None = None) -> None:
        """Make this process ready: load weights and libraries, and keep to one core, for every core has a process.

        Args:
            device: where edges are detected. Default: the CPU.

        Raises:
            ModelError: weights cannot be had.
        """
        if self._is_set_up:
            return
        self._device = device or self._device
        cv2.setNumThreads(1)
        torch.set_num_threads(1)
        blank = np.full((self._config.size_px, self._config.size_px, 3), 128, np.uint8)
        face = sources.Face(blank, blank, None, parsing.canonical_eyes(self._config.size_px))
        # The first face through takes a second longer: libraries load parts of themselves when they are first used.
        self.encode("", face, self.sketch([face] * CHUNK_IMAGES)[0], self.color(face))
        if self.parser is not None:
            self.parser(blank)
        self._is_set_up = True

    def make(self, number: int, keys: Sequence[str]) -> tuple[int, int]:
        """Prepare the images of one shard and write its file.

        Args:
            number: of the shard.
            keys: of its images.

        Returns:
            How many images were prepared, and how many were refused.

        Raises:
            StorageError: the source or the dataset's place fails.
            ModelError: weights cannot be had.
        """
        rows: list[dict[str, Any]] = []
        refused: list[tuple[str, str]] = []
        notes: list[tuple[str, str]] = []
        for start in range(0, len(keys), CHUNK_IMAGES):
            loaded: list[tuple[str, sources.Face]] = []
            for key in keys[start : start + CHUNK_IMAGES]:
                try:
                    loaded.append((key, self._patiently(functools.partial(self.load, key))))
                except DataError as error:
                    refused.append((key, " ".join(str(error).split())))
            notes += [(key, note) for key, face in loaded for note in face.notes]
            drawn = self.sketch([face for _, face in loaded])
            rows += [
                self.encode(key, face, sketch, self.color(face))
                for (key, face), sketch in zip(loaded, drawn, strict=True)
            ]
        self._patiently(lambda: self.write(number, rows, refused, notes))
        return len(rows), len(refused)

    def _patiently(self, work: Callable[[], ResultT]) -> ResultT:
        return storage.retrying(work, self._retry_seconds, logger.warning)

    def load(self, key: str) -> sources.Face:
        """Read one face, with labels of the parser where nobody labelled it, and with eyes.

        Raises:
            DataError: this image cannot be used; the text is the reason, without the key.
        """
        size_px = self._config.size_px
        face = self._source.load(key, size_px, sketches.working_size_px(self._config.sketch, size_px))
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

    def sketch(self, faces: Sequence[sources.Face]) -> NDArray[np.uint8]:
        """Draw the lines of some faces: (N, S, S) uint8 in {0, 1}."""
        photographs = [face.photograph for face in faces]
        return sketches.make_sketches(photographs, self.detector, self._config.sketch, self._config.size_px)

    def color(self, face: sources.Face) -> NDArray[np.uint8]:
        """Paint the segments of one face: (S, S, 3) uint8 RGB."""
        return colors.make_color_map(face.image, face.labels, self._config.color)

    def encode(
        self, key: str, face: sources.Face, sketch: NDArray[np.uint8], color: NDArray[np.uint8]
    ) -> dict[str, Any]:
        """Make one face's row; its columns are documented in `dataset`."""
        hair = None if face.labels is None else parsing.hair_region(face.labels)
        assert face.eyes is not None, "load gives every face eyes"
        return encode_row(key, face.image, sketch, color, hair, face.eyes)

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
        write_shard(
            self._uri,
            number,
            rows,
            settings=self._settings,
            settled={"detector": self._config.sketch.detector, "precision": self._config.sketch.precision},
            refused=refused,
            notes=notes,
        )
