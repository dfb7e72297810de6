"""What a dataset is to be: its name, its shards and all that shapes them; and whether what is there is the same."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from dataclasses import dataclass
from typing import Any

from scfegan_ray import config as configuration
from scfegan_ray import faces, storage
from scfegan_ray.config import Config, DataConfig
from scfegan_ray.data import decoding, parsing, sketches, sources
from scfegan_ray.data.dataset import (
    OTHER_FILES,
    SCHEMA_VERSION,
    DatasetInfo,
    Shard,
    fingerprint,
    is_test_key,
    read_shards,
    settle_identity_pattern,
    shard_name,
    shard_place,
)
from scfegan_ray.errors import DataError

logger = logging.getLogger(__name__)

_NOT_OF_THE_DATA = ("prepared", "license", "gpus_per_actor", "feed")

_UNKNOWN_BEFORE = ("data.sizes_sha256", "data.tags_sha256")
# Version 0.1.0 did not keep them: what it made is told by its keys alone.

_VERSIONS = {
    "data.decoding_version": "before color profiles and the bits in use of 16-bit files were heeded",
    "data.drawing_version": "from faces as an earlier version drew them",
    "data.identity_pattern": "before people were told apart: one person's pictures may be trained on and held back",
}
# What a dataset lacks that was finished without them.

_ASKED_FOR = ("data.identity_pattern",)
# Of these, what a user may ask for by name, which then is not done without.

_ADDRESSES = ("data.source", "data.parser.model")
# Version 0.1.0 kept them: what lies there is told by its listing or digest, wherever it lies.


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be made: the shards' keys, and everything that shapes them; and, to inform, where they come from."""

    source: sources.FaceSource
    address: str
    listing: sources.Listing
    settings: dict[str, Any]
    uri: str
    shards: list[list[str]]
    retry_seconds: float = 0.0


def make_plan(config: Config) -> Plan:
    """Look at the source and say what is to be made of it, and where.

    Raises:
        DataError: the source is missing or empty.
        StorageError: it cannot be read.
        ModelError: the face parser cannot be had.
    """
    source, listing = sources.open_source(config.data, config.seed, outputs=(config.storage.path,))
    if not listing.keys:
        kinds = " ".join(decoding.IMAGE_SUFFIXES)
        raise DataError(f"no images ({kinds}) under {config.data.source}; check --data.source")
    values = {name: value for name, value in config.to_dict()["data"].items() if name not in _NOT_OF_THE_DATA}
    embedded = config.data.source == sources.EMBEDDED
    if values["sketch"]["detector"] == "hed":
        values["sketch"]["detector"] = "auto"  # the same dataset, but where `check_detector` finds otherwise
    address = sources.EMBEDDED if embedded else storage.absolute(config.data.source)
    if not embedded:
        # Photographs are told by what their listing says, wherever they lie and however that place is spelled.
        del values["source"], values["num_embedded"]
    values["seed"] = config.seed if embedded else None
    values["schema_version"] = SCHEMA_VERSION
    pattern = settle_identity_pattern(values.pop("identity_pattern"), listing.keys)
    values |= {"identity_pattern": pattern} if pattern else {}
    values |= listing.identity
    values |= {"drawing_version": faces.VERSION} if embedded else {"decoding_version": decoding.VERSION}
    if config.data.parser.model:
        values["parser"]["sha256"] = parsing.load_parser(config.data.parser).digest
        del values["parser"]["model"]
    settings = configuration.flatten(values, "data.")
    uri = storage.absolute(config.data.prepared) if config.data.prepared else _default_place(config, source, settings)
    per_shard = config.data.shard_images
    keys = [listing.keys[start : start + per_shard] for start in range(0, len(listing.keys), per_shard)]
    return Plan(source, address, listing, settings, uri, keys, config.storage.retry_seconds)


def _default_place(config: Config, source: sources.FaceSource, settings: dict[str, Any]) -> str:
    """Return where a dataset of some settings goes under the storage path: where it was begun before, or a new place.

    Version 0.1.0 named the place by the addresses of source and parser, and neither by sizes, nor by tags, nor by how
    photographs were decoded or faces drawn.
    """
    before = {
        name: value
        for name, value in settings.items()
        if name not in _UNKNOWN_BEFORE and not _may_lack(config.data, name)
    }
    before.setdefault("data.source", storage.absolute(config.data.source))
    before.setdefault("data.parser.model", config.data.parser.model)
    places = []
    for named_by in (settings, before):
        digest = hashlib.sha256(json.dumps(named_by, sort_keys=True).encode()).hexdigest()[:10]
        name = f"{source.name}-{config.data.size_px}-{digest}"
        places.append(storage.join(storage.absolute(config.storage.path), "prepared", name))
    new, old = places
    return new if new == old or storage.exists(new) or not storage.exists(old) else old


def check_finished(config: DataConfig, plan: Plan, found: DatasetInfo) -> None:
    """Refuse a finished dataset that is another than the planned one; one of an older version is taken as it is.

    Raises:
        DataError: it is.
    """
    lacking = {
        name: value
        for name, value in plan.settings.items()
        if name not in found.preparation and _may_lack(config, name)
    }
    for name in lacking:
        logger.warning(
            "%s was prepared %s; it is used as it is, prepare anew at another --data.prepared for what is new",
            plan.uri,
            _VERSIONS[name],
        )
    _check_same(plan, lacking | found.preparation, "was prepared")
    check_detector(config, plan.uri, found.sketch_detector)


def _may_lack(config: DataConfig, name: str) -> bool:
    """Tell whether a finished dataset of an earlier version is good enough without a setting."""
    if name in _ASKED_FOR and getattr(config, name.removeprefix("data.")) is not None:
        return False
    return name in _VERSIONS


def _check_same(plan: Plan, before: dict[str, Any], what: str) -> None:
    now = plan.settings
    if before.get("data.sketch.detector") == "hed":
        before = before | {"data.sketch.detector": "auto"}  # as in `make_plan`
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


def check_detector(config: DataConfig, uri: str, found: str) -> None:
    """Refuse sketches of another edge detector than was asked for by name.

    Raises:
        DataError: they are.
    """
    if config.sketch.detector == "hed" and found != "hed":
        raise DataError(
            f"the sketches of {uri} were drawn with {found}, now data.sketch.detector is hed; give "
            f"--data.sketch.detector auto to take them as they are, or another --data.prepared, or delete that folder"
        )


def _can_be_compared(now: str | None, before: str | None) -> bool:
    """Tell whether two digests were made over things of one kind: a zip's checksums are no ETags."""
    kinds = {value.rpartition(":")[0] if value else None for value in (now, before)}
    return len(kinds) == 1 and None not in kinds


def find_shards(plan: Plan) -> dict[int, Shard]:
    """Return the shards that are there already, in a place that takes more."""
    foreign = [
        name for name in storage.list_files(plan.uri) if name not in OTHER_FILES and not name.startswith("data/part-")
    ]
    if foreign:
        raise DataError(f"{plan.uri} holds other files ({foreign[0]}); choose an empty --data.prepared")
    storage.check_writable(plan.uri)
    return read_planned(plan, _finished(plan))


def _finished(plan: Plan) -> list[int]:
    """Return the numbers of the shards whose files are there."""
    names = set(storage.list_files(storage.join(plan.uri, "data")))
    numbers = [at for at in range(len(plan.shards)) if shard_name(at) in names]
    if len(numbers) < len(names):
        raise DataError(f"{plan.uri} holds shards of another dataset; choose another --data.prepared or delete it")
    return numbers


def read_planned(plan: Plan, numbers: list[int]) -> dict[int, Shard]:
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


def settle(config: DataConfig, uri: str, there: list[Shard]) -> DataConfig:
    """Decide once for all workers what the settings leave open, as it was decided for the shards that are there."""
    if not there:
        return dataclasses.replace(config, sketch=sketches.settle(config.sketch))
    settled = there[0].settled
    if any(shard.settled != settled for shard in there):
        raise DataError(f"two preparations of {uri} chose different edge detectors; delete it and start anew")
    check_detector(config, uri, settled["detector"])
    return dataclasses.replace(config, sketch=dataclasses.replace(config.sketch, **settled))


def describe(
    config: Config,
    plan: Plan,
    settled: DataConfig,
    rows: list[dict[str, Any]],
    rejected: list[tuple[str, str]],
) -> DatasetInfo:
    """Say what was made, once all shards are there; `rows` are those of `Shard`."""
    pattern = plan.settings.get("data.identity_pattern")
    num_test = sum(is_test_key(row["key"], config.data.test_fraction, pattern) for row in rows)
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
        identity_pattern=pattern,
    )
