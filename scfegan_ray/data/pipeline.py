"""Raw faces to a prepared dataset with Ray Data; what it makes is described in `prepared`.

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
import hashlib
import io
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from scfegan_ray import config as configuration
from scfegan_ray import errors, locks, room, storage
from scfegan_ray.allocation import KEEP_MEMORY
from scfegan_ray.config import Config, DataConfig
from scfegan_ray.data import decoding, parsing, prepared, report, shards, sketches, sources
from scfegan_ray.errors import DataError, ScFeganError
from scfegan_ray.progress import Progress

logger = logging.getLogger(__name__)

_MANY_SHARDS = 8  # per core
_LOGGED = 20
_LEAST_BYTES_PER_PIXEL = 1
"""Of a prepared photograph with its maps; most take up to twice as much."""

_NOT_OF_THE_DATA = ("prepared", "license", "gpus_per_actor")


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
    info: prepared.DatasetInfo
    rejected: list[tuple[str, str]]
    busy_seconds: float = 0.0
    num_made: int = 0


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to be made: the shards' keys, and everything that shapes them."""

    source: sources.FaceSource
    listing: sources.Listing
    settings: dict[str, Any]
    uri: str
    shards: list[list[str]]


def prepare(
    config: Config, *, session: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
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
    plan = _make_plan(config)
    found = prepared.DatasetInfo.read(plan.uri)
    if found is not None:
        _check_same(plan, found.preparation, "was prepared")
        logger.info("%s is already prepared: %d images", plan.uri, found.num_images)
        return Preparation(plan.uri, found, _read_rejected(plan.uri))
    with locks.held(plan.uri, f"the dataset {plan.uri}", patience_seconds=float("inf")):
        # Another process may have made it while this one waited.
        if prepared.DatasetInfo.read(plan.uri) is None:
            return _make(config, plan, session)
    return prepare(config, session=session)


def ensure_prepared(
    config: Config, *, session: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
) -> str:
    """Return the URI of the dataset to train on; prepare it first where it is not there yet.

    Args:
        config: names it or its source.
        session: Ray must run within it; entered only where something is left to prepare.

    Raises:
        DataError: as `prepare`; or the dataset holds another image size than the config.
    """
    uri = storage.absolute(config.data.prepared) if config.data.prepared else None
    info = prepared.DatasetInfo.read(uri) if uri else None
    if uri is None or info is None:
        made = prepare(config, session=session)
        uri, info = made.uri, made.info
    if info.size_px != config.data.size_px:
        raise DataError(
            f"{uri} holds {info.size_px}-pixel images, the run wants {config.data.size_px}; "
            f"give --data.size-px {info.size_px} or another --data.prepared"
        )
    return uri


def num_cores() -> int:
    """Return the cores of the cluster that is there now, each of which one actor prepares images on."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _make_plan(config: Config) -> _Plan:
    source, listing = sources.open_source(config.data, config.seed)
    if not listing.keys:
        kinds = " ".join(decoding.IMAGE_SUFFIXES)
        raise DataError(f"no images ({kinds}) under {config.data.source}; check --data.source")
    values = {name: value for name, value in config.to_dict()["data"].items() if name not in _NOT_OF_THE_DATA}
    embedded = config.data.source == sources.EMBEDDED
    values["source"] = sources.EMBEDDED if embedded else storage.absolute(config.data.source)
    if not embedded:
        del values["num_embedded"]
    values["seed"] = config.seed if embedded else None
    values["schema_version"] = prepared.SCHEMA_VERSION
    values["keys_sha256"] = hashlib.sha256("\n".join(listing.keys).encode()).hexdigest()
    if config.data.parser.model:
        values["parser"]["sha256"] = parsing.load_parser(config.data.parser).digest
    settings = configuration.flatten(values, "data.")
    if config.data.prepared:
        uri = storage.absolute(config.data.prepared)
    else:
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
        name = f"{source.name}-{config.data.size_px}-{digest}"
        uri = storage.join(storage.absolute(config.storage.path), "prepared", name)
    per_shard = config.data.shard_images
    keys = [listing.keys[start : start + per_shard] for start in range(0, len(listing.keys), per_shard)]
    return _Plan(source, listing, settings, uri, keys)


def _check_same(plan: _Plan, before: dict[str, Any], what: str) -> None:
    for name in sorted(plan.settings.keys() | before.keys()):
        if plan.settings.get(name) == before.get(name):
            continue
        difference = (
            "from other photographs than the source holds now"
            if name == "data.keys_sha256"
            else f"with {name} = {before.get(name)}, now it is {plan.settings.get(name)}"
        )
        raise DataError(f"{plan.uri} {what} {difference}; choose another --data.prepared or delete that folder")


def _make(config: Config, plan: _Plan, session: Callable[[], contextlib.AbstractContextManager[None]]) -> Preparation:
    foreign = [
        name
        for name in storage.list_files(plan.uri)
        if name not in prepared.OTHER_FILES and not name.startswith("data/part-")
    ]
    if foreign:
        raise DataError(f"{plan.uri} holds other files ({foreign[0]}); choose an empty --data.prepared")
    storage.check_writable(plan.uri)
    there = _read_shards(plan, _finished(plan))
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
        there |= _read_shards(plan, missing)
        settled = _settle(config.data, plan.uri, list(there.values()))
    rows = [row for number in sorted(there) for row in there[number].rows]
    rejected = sorted(plan.listing.refused + [one for shard in there.values() for one in shard.refused])
    if not rows:
        storage.delete(storage.join(plan.uri, "data"))
        raise DataError(
            f"none of the {len(rejected)} images of {config.data.source} can be used: {': '.join(rejected[0])}"
        )
    for key, reason in rejected[:_LOGGED]:
        logger.warning("left out %s: %s", key, reason)
    if len(rejected) > _LOGGED:
        logger.warning("left out %d more; all are in %s/rejected.parquet", len(rejected) - _LOGGED, plan.uri)
    info = _describe(config, plan, settled, rows, rejected)
    for folder in (plan.uri, storage.join(plan.uri, "data")):
        storage.delete_abandoned(folder)
    _write_rejected(plan.uri, rejected)
    report.write(plan.uri, info, rows, rejected, config.masks)
    storage.write_bytes(storage.join(plan.uri, "dataset.json"), info.to_json())
    logger.info("prepared %d images, left out %d: %s", info.num_images, info.num_rejected, plan.uri)
    return Preparation(plan.uri, info, rejected, busy_seconds, num_made)


def _finished(plan: _Plan) -> list[int]:
    """Return the numbers of the shards whose files are there."""
    names = set(storage.list_files(storage.join(plan.uri, "data")))
    numbers = [at for at in range(len(plan.shards)) if shards.file_name(at) in names]
    if len(numbers) < len(names):
        raise DataError(f"{plan.uri} holds shards of another dataset; choose another --data.prepared or delete it")
    return numbers


def _read_shards(plan: _Plan, numbers: list[int]) -> dict[int, shards.Shard]:
    """Read what shards say of themselves.

    Raises:
        DataError: one was made with other settings, or does not hold the images that it should.
    """
    found = shards.read_all([shards.place(plan.uri, number) for number in numbers])
    read = dict(zip(numbers, found, strict=True))
    for number, shard in read.items():
        _check_same(plan, shard.settings, "holds shards of a preparation that was begun")
        if {row["key"] for row in shard.rows} | {key for key, _ in shard.refused} != set(plan.shards[number]):
            raise DataError(f"{shards.place(plan.uri, number)} holds other images than it should; delete it")
    return read


def _settle(config: DataConfig, uri: str, there: list[shards.Shard]) -> DataConfig:
    """Decide once for all workers what the settings leave open, as it was decided for the shards that are there."""
    if not there:
        return dataclasses.replace(config, sketch=sketches.settle(config.sketch))
    settled = there[0].settled
    if any(shard.settled != settled for shard in there):
        raise DataError(f"two preparations of {uri} chose different edge detectors; delete it and start anew")
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
    num_gpus = ray.cluster_resources().get("GPU", 0.0) / num_cores()
    dataset = ray.data.from_arrow(blocks).map_batches(
        _MakeShard,
        fn_constructor_args=[shards.ShardMaker(config, plan.source, plan.uri, plan.settings)],
        # That of every block but the last: a batch is a block, and Ray Data wants a number where a GPU is used.
        batch_size=config.shard_images,
        batch_format="pyarrow",
        # One actor per core from the start; the pool grows with the cluster, up to one per shard. A second shard in an
        # actor's queue saves the fifth of a second in which Ray Data finds it the next one; but where shards are few,
        # one that waits in a queue is missed by an idle core at the end.
        compute=ray.data.ActorPoolStrategy(
            min_size=1,
            max_size=len(blocks),
            initial_size=min(num_cores(), len(blocks)),
            # An actor has one call at a time, so nothing needs a lock; but without this Ray Data makes the call on a
            # thread of its own, beside which the main thread wakes up a hundred times a second.
            enable_true_multi_threading=True,
            max_tasks_in_flight_per_actor=2 if len(blocks) >= _MANY_SHARDS * num_cores() else 1,
        ),
        num_cpus=1,
        # Huge pages make the edge detector a twentieth faster.
        runtime_env={"env_vars": KEEP_MEMORY},
        num_gpus=min(1.0, num_gpus) if config.gpus_per_actor is None else config.gpus_per_actor,
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

    def __init__(self, maker: shards.ShardMaker) -> None:
        self._maker = maker

    def __call__(self, block: pa.Table) -> pa.Table:
        """Make one shard; see `make_shard`."""
        return make_shard(self._maker, block)


def make_shard(maker: shards.ShardMaker, block: pa.Table) -> pa.Table:
    """Make the shard of one block.

    Args:
        maker: does the work.
        block: columns shard and key.

    Returns:
        One row; see the module's docstring.
    """
    began, num_prepared, num_refused, error, message = time.time(), 0, 0, "", ""
    try:
        maker.set_up()
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
) -> prepared.DatasetInfo:
    num_test = sum(prepared.is_test_key(row["key"], config.data.test_fraction) for row in rows)
    has_parser = config.data.parser.model is not None
    labels = "labels" if plan.source.has_labels else "parser" if has_parser else None
    return prepared.DatasetInfo(
        schema_version=prepared.SCHEMA_VERSION,
        size_px=config.data.size_px,
        num_images=len(rows),
        num_train=len(rows) - num_test,
        num_test=num_test,
        num_rejected=len(rejected),
        num_shards=len(plan.shards),
        test_fraction=config.data.test_fraction,
        fingerprint=prepared.fingerprint(rows),
        license=config.data.license or plan.source.license,
        source=str(plan.settings["data.source"]),
        sketch_detector=settled.sketch.detector,
        sketch_precision=settled.sketch.precision,
        color_segments=labels or "superpixels",
        eyes=labels or "canonical",
        hair=labels or "none",
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
