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
import dataclasses
import functools
import hashlib
import io
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
import torch

from scfegan_ray import config as configuration
from scfegan_ray import errors, locks, nodes, room, storage
from scfegan_ray.allocation import KEEP_MEMORY
from scfegan_ray.config import Config, DataConfig
from scfegan_ray.data import decoding, parsing, report, shards, sketches, sources
from scfegan_ray.data.dataset import (
    OTHER_FILES,
    SCHEMA_VERSION,
    DatasetInfo,
    Shard,
    fingerprint,
    is_test_key,
    read_shards,
    shard_name,
    shard_place,
)
from scfegan_ray.errors import DataError, ScFeganError
from scfegan_ray.progress import Progress

logger = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")

_MANY_SHARDS = 8  # per core
_LOGGED = 20
_LEAST_BYTES_PER_PIXEL = 1
"""Of a prepared photograph with its maps; most take up to twice as much."""

_DECODING = "data.decoding_version"
_NOT_OF_THE_DATA = ("prepared", "license", "gpus_per_actor")

_UNKNOWN_BEFORE = ("data.sizes_sha256", "data.tags_sha256")
# Version 0.1.0 did not keep them: what it made is told by its keys alone.

_ADDRESSES = ("data.source", "data.parser.model")
# Version 0.1.0 kept them: what lies there is told by its listing or digest, wherever it lies.


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


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to be made: the shards' keys, and everything that shapes them; and, to inform, where they come from."""

    source: sources.FaceSource
    address: str
    listing: sources.Listing
    settings: dict[str, Any]
    uri: str
    shards: list[list[str]]
    retry_seconds: float = 0.0


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
    plan = _patiently(config, lambda: _make_plan(config))
    found = _patiently(config, lambda: DatasetInfo.read(plan.uri))
    if found is not None:
        if _DECODING not in found.preparation and _DECODING in plan.settings:
            logger.warning(
                "%s was prepared before color profiles and the bits in use of 16-bit files were heeded; it is used as "
                "it is, prepare anew at another --data.prepared to have them heeded",
                plan.uri,
            )
        _check_same(plan, {_DECODING: plan.settings.get(_DECODING)} | found.preparation, "was prepared")
        _check_detector(config.data, plan.uri, found.sketch_detector)
        logger.info("%s is already prepared: %d images", plan.uri, found.num_images)
        return Preparation(plan.uri, found, _patiently(config, lambda: _read_rejected(plan.uri)))
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
    _check_detector(config.data, uri, info.sketch_detector)
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


def _make_plan(config: Config) -> _Plan:
    source, listing = sources.open_source(config.data, config.seed, outputs=(config.storage.path,))
    if not listing.keys:
        kinds = " ".join(decoding.IMAGE_SUFFIXES)
        raise DataError(f"no images ({kinds}) under {config.data.source}; check --data.source")
    values = {name: value for name, value in config.to_dict()["data"].items() if name not in _NOT_OF_THE_DATA}
    embedded = config.data.source == sources.EMBEDDED
    if values["sketch"]["detector"] == "hed":
        values["sketch"]["detector"] = "auto"  # the same dataset, but where `_check_detector` finds otherwise
    address = sources.EMBEDDED if embedded else storage.absolute(config.data.source)
    if not embedded:
        # Photographs are told by what their listing says, wherever they lie and however that place is spelled.
        del values["source"], values["num_embedded"]
    values["seed"] = config.seed if embedded else None
    values["schema_version"] = SCHEMA_VERSION
    values |= listing.identity
    if not embedded:
        values["decoding_version"] = decoding.VERSION
    if config.data.parser.model:
        values["parser"]["sha256"] = parsing.load_parser(config.data.parser).digest
        del values["parser"]["model"]
    settings = configuration.flatten(values, "data.")
    uri = storage.absolute(config.data.prepared) if config.data.prepared else _default_place(config, source, settings)
    per_shard = config.data.shard_images
    keys = [listing.keys[start : start + per_shard] for start in range(0, len(listing.keys), per_shard)]
    return _Plan(source, address, listing, settings, uri, keys, config.storage.retry_seconds)


def _default_place(config: Config, source: sources.FaceSource, settings: dict[str, Any]) -> str:
    """Return where a dataset of some settings goes under the storage path: where it was begun before, or a new place.

    Version 0.1.0 named the place by the addresses of source and parser, and neither by sizes, nor by tags, nor by how
    photographs were decoded.
    """
    before = {name: value for name, value in settings.items() if name not in (*_UNKNOWN_BEFORE, _DECODING)}
    before.setdefault("data.source", storage.absolute(config.data.source))
    before.setdefault("data.parser.model", config.data.parser.model)
    places = []
    for named_by in (settings, before):
        digest = hashlib.sha256(json.dumps(named_by, sort_keys=True).encode()).hexdigest()[:10]
        name = f"{source.name}-{config.data.size_px}-{digest}"
        places.append(storage.join(storage.absolute(config.storage.path), "prepared", name))
    new, old = places
    return new if new == old or storage.exists(new) or not storage.exists(old) else old


def _check_same(plan: _Plan, before: dict[str, Any], what: str) -> None:
    now = plan.settings
    if before.get("data.sketch.detector") == "hed":
        before = before | {"data.sketch.detector": "auto"}  # as in `_make_plan`
    for name in sorted(now.keys() | before.keys()):
        if now.get(name) == before.get(name) or name in _ADDRESSES:
            continue
        if name in _UNKNOWN_BEFORE and not _can_be_compared(now.get(name), before.get(name)):
            continue
        difference = (
            "from other photographs than the source holds now"
            if name == "data.keys_sha256" or name in _UNKNOWN_BEFORE
            else f"with {name} = {before.get(name)}, now it is {now.get(name)}"
        )
        raise DataError(f"{plan.uri} {what} {difference}; choose another --data.prepared or delete that folder")


def _check_detector(config: DataConfig, uri: str, found: str) -> None:
    if config.sketch.detector == "hed" and found != "hed":
        raise DataError(
            f"the sketches of {uri} were drawn with {found}, now data.sketch.detector is hed; give "
            f"--data.sketch.detector auto to take them as they are, or another --data.prepared, or delete that folder"
        )


def _can_be_compared(now: str | None, before: str | None) -> bool:
    """Tell whether two digests were made over things of one kind: a zip's checksums are no ETags."""
    kinds = {value.rpartition(":")[0] if value else None for value in (now, before)}
    return len(kinds) == 1 and None not in kinds


def _make(config: Config, plan: _Plan, session: Callable[[], contextlib.AbstractContextManager[object]]) -> Preparation:
    if storage.is_local(plan.uri):
        storage.check_writable(plan.uri)  # a folder that cannot be made now cannot be made in a minute
    there = _patiently(config, lambda: _look(plan))
    settled = _settle(config.data, plan.uri, list(there.values()))
    missing = [number for number in range(len(plan.shards)) if number not in there]
    busy_seconds, num_made = 0.0, 0
    if missing:
        room.require(
            plan.uri,
            _LEAST_BYTES_PER_PIXEL * sum(len(plan.shards[number]) for number in missing) * config.data.size_px**2,
            f"{sum(len(plan.shards[number]) for number in missing)} images of {config.data.size_px} pixels",
            "give another --data.prepared or --storage.path",
        )
        if there:
            logger.info("going on with the %d of %d shards that are there", len(there), len(plan.shards))
        with session():
            busy_seconds, num_made = _run(plan, settled, missing)
        there |= _patiently(config, lambda: _read_shards(plan, missing))
        settled = _settle(config.data, plan.uri, list(there.values()))
    info, rejected = _patiently(config, lambda: _finish(config, plan, settled, there))
    for key, reason in rejected[:_LOGGED]:
        logger.warning("left out %s: %s", key, reason)
    if len(rejected) > _LOGGED:
        logger.warning("left out %d more; all are in %s/rejected.parquet", len(rejected) - _LOGGED, plan.uri)
    logger.info("prepared %d images, left out %d: %s", info.num_images, info.num_rejected, plan.uri)
    return Preparation(plan.uri, info, rejected, busy_seconds, num_made)


def _look(plan: _Plan) -> dict[int, Shard]:
    """Return the shards that are there already, in a place that takes more."""
    foreign = [
        name for name in storage.list_files(plan.uri) if name not in OTHER_FILES and not name.startswith("data/part-")
    ]
    if foreign:
        raise DataError(f"{plan.uri} holds other files ({foreign[0]}); choose an empty --data.prepared")
    storage.check_writable(plan.uri)
    return _read_shards(plan, _finished(plan))


def _finish(
    config: Config, plan: _Plan, settled: DataConfig, there: dict[int, Shard]
) -> tuple[DatasetInfo, list[tuple[str, str]]]:
    """Write what lies beside the shards, its description last; return that, and what was left out."""
    rows = [row for number in sorted(there) for row in there[number].rows]
    rejected = sorted(plan.listing.refused + [one for shard in there.values() for one in shard.refused])
    if not rows:
        storage.delete(storage.join(plan.uri, "data"))
        raise DataError(
            f"none of the {len(rejected)} images of {config.data.source} can be used: {': '.join(rejected[0])}"
        )
    notes = sorted(one for shard in there.values() for one in shard.notes)
    for note, count in Counter(note for _, note in notes).most_common():
        logger.warning("%d images, %s among them: %s", count, next(key for key, said in notes if said == note), note)
    info = _describe(config, plan, settled, rows, rejected)
    for folder in (plan.uri, storage.join(plan.uri, "data")):
        storage.delete_abandoned(folder)
    _write_rejected(plan.uri, rejected)
    report.write(plan.uri, info, rows, rejected, config.masks, notes)
    storage.write_bytes(storage.join(plan.uri, "dataset.json"), info.to_json())
    return info, rejected


def _finished(plan: _Plan) -> list[int]:
    """Return the numbers of the shards whose files are there."""
    names = set(storage.list_files(storage.join(plan.uri, "data")))
    numbers = [at for at in range(len(plan.shards)) if shard_name(at) in names]
    if len(numbers) < len(names):
        raise DataError(f"{plan.uri} holds shards of another dataset; choose another --data.prepared or delete it")
    return numbers


def _read_shards(plan: _Plan, numbers: list[int]) -> dict[int, Shard]:
    """Read what shards say of themselves.

    Raises:
        DataError: one was made with other settings, or does not hold the images that it should.
    """
    found = read_shards([shard_place(plan.uri, number) for number in numbers])
    read = dict(zip(numbers, found, strict=True))
    for number, shard in read.items():
        _check_same(plan, shard.settings, "holds shards of a preparation that was begun")
        if {row["key"] for row in shard.rows} | {key for key, _ in shard.refused} != set(plan.shards[number]):
            raise DataError(f"{shard_place(plan.uri, number)} holds other images than it should; delete it")
    return read


def _settle(config: DataConfig, uri: str, there: list[Shard]) -> DataConfig:
    """Decide once for all workers what the settings leave open, as it was decided for the shards that are there."""
    if not there:
        return dataclasses.replace(config, sketch=sketches.settle(config.sketch))
    settled = there[0].settled
    if any(shard.settled != settled for shard in there):
        raise DataError(f"two preparations of {uri} chose different edge detectors; delete it and start anew")
    _check_detector(config, uri, settled["detector"])
    return dataclasses.replace(config, sketch=dataclasses.replace(config.sketch, **settled))


def _run(plan: _Plan, config: DataConfig, missing: list[int]) -> tuple[float, int]:
    """Make shards on the cluster.

    Returns:
        The seconds between the first one's start and the last one's end, and how many images were prepared in them.
    """
    total = sum(len(plan.shards[number]) for number in missing)
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
        fitting = int(ray.cluster_resources().get("GPU", 0.0) / num_gpus)
        if not fitting:
            logger.warning("the cluster has no GPU for data.gpus_per_actor = %g; waiting for a node with one", num_gpus)
        initial = max(1, min(initial, fitting))
    source = None if plan.address == sources.EMBEDDED else plan.address
    with nodes.seen_by_all({"data.prepared or storage.path": plan.uri}, {"data.source": source}) as landmarks:
        return _make_shards(plan, config, blocks, landmarks, initial, num_gpus, total)


def _make_shards(
    plan: _Plan,
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
            shards.ShardMaker(config, plan.source, plan.uri, plan.settings, plan.retry_seconds),
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

    def __init__(self, maker: shards.ShardMaker, landmarks: nodes.Landmarks) -> None:
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
    maker: shards.ShardMaker,
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


def _describe(
    config: Config,
    plan: _Plan,
    settled: DataConfig,
    rows: list[dict[str, Any]],
    rejected: list[tuple[str, str]],
) -> DatasetInfo:
    num_test = sum(is_test_key(row["key"], config.data.test_fraction) for row in rows)
    # What rows hold, not what was hoped for: a parser may find no face anywhere, and labels may know no hair.
    hair_areas = [row["hair_area"] for row in rows if row["hair_area"] is not None]
    labels = ("labels" if plan.source.has_labels else "parser") if hair_areas else None
    return DatasetInfo(
        schema_version=SCHEMA_VERSION,
        size_px=config.data.size_px,
        num_images=len(rows),
        num_train=len(rows) - num_test,
        num_test=num_test,
        num_rejected=len(rejected),
        num_shards=len(plan.shards),
        test_fraction=config.data.test_fraction,
        fingerprint=fingerprint(rows),
        license=config.data.license or plan.source.license,
        source=plan.address,
        sketch_detector=settled.sketch.detector,
        sketch_precision=settled.sketch.precision,
        color_segments=labels or "superpixels",
        eyes=labels or "canonical",
        hair=(labels if any(hair_areas) else None) or "none",
        preparation=plan.settings,
    )


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
