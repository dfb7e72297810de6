"""What a dataset is to be: its name, its shards and all that shapes them; and whether what is there is the same."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from scfegan_ray import config as configuration
from scfegan_ray import faces, storage
from scfegan_ray.config import Config, DataConfig
from scfegan_ray.data import align, columns, decoding, parsing, sketches, sources
from scfegan_ray.data.dataset import (
    INDEX_SCHEMA,
    OTHER_FILES,
    SCHEMA_VERSION,
    SUMMARY,
    DatasetInfo,
    fingerprint,
    is_test_key,
    locate,
    photograph_of,
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


ROWS = pa.schema([*SUMMARY, *(INDEX_SCHEMA.field(name) for name in INDEX_SCHEMA.names if name not in SUMMARY.names)])
"""What is kept of each image that was prepared."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be made, and everything that shapes it; and, to inform, where the photographs come from.

    The images of one shard are those of the next `shard_images` keys of the listing, each of a photograph.
    """

    source: sources.FaceSource
    address: str
    listing: sources.Listing
    settings: dict[str, Any]
    uri: str
    shard_images: int
    retry_seconds: float = 0.0

    @property
    def num_shards(self) -> int:
        """Number of shards, the last of which may have fewer images."""
        return -(-len(self.listing.keys) // self.shard_images)

    @property
    def aligns(self) -> bool:
        """Whether faces are to be found in its photographs, if that can be done."""
        return "data.align" in self.settings

    def keys_of(self, number: int) -> pa.ChunkedArray:
        """Return the keys of the photographs of one shard: a view of the listing's."""
        return self.listing.keys.slice(number * self.shard_images, self.shard_images)

    def num_photographs(self, numbers: Sequence[int]) -> int:
        """Return of how many photographs some shards shall hold the images."""
        return sum(min(self.shard_images, len(self.listing.keys) - number * self.shard_images) for number in numbers)

    def holds_back(self, key: str) -> bool:
        """Tell whether an image is to be held back."""
        return is_test_key(key, self.settings["data.test_fraction"], self.settings.get("data.identity_pattern"))


@dataclass(frozen=True, slots=True)
class Made:
    """What the shards of a plan that are there hold together, without their pixels.

    Attributes:
        numbers: of the shards.
        rows: one per image, of `ROWS`, in the order of the shards as they were read.
        refused: (key, reason) of images that cannot be used.
        notes: (key, note) of images whose files needed a guess.
        settled: what was decided for all of them where `data.sketch` and `data.align` left it open; None where there
            are none.
    """

    numbers: frozenset[int] = frozenset()
    rows: pa.Table = field(default_factory=ROWS.empty_table, repr=False)
    refused: tuple[tuple[str, str], ...] = ()
    notes: tuple[tuple[str, str], ...] = ()
    settled: dict[str, Any] | None = None


def make_plan(config: Config) -> Plan:
    """Look at the source and say what is to be made of it, and where.

    Raises:
        DataError: the source is missing or empty.
        StorageError: it cannot be read.
        ModelError: the face parser cannot be had.
    """
    source, listing = sources.open_source(config.data, config.seed, outputs=(config.storage.path,))
    if not len(listing.keys):
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
    pattern = settle_identity_pattern(values.pop("identity_pattern"), columns.values_of(listing.keys))
    values |= {"identity_pattern": pattern} if pattern else {}
    if values.pop("align") != "none" and isinstance(source, sources.RawPhotographs):
        # The same dataset, but where `_check_align` finds otherwise.
        values |= {"align": "auto", "align_version": align.VERSION}
    values |= listing.identity
    values |= {"drawing_version": faces.VERSION} if embedded else {"decoding_version": decoding.VERSION}
    if config.data.parser.model:
        values["parser"]["sha256"] = parsing.load_parser(config.data.parser).digest
        del values["parser"]["model"]
    settings = configuration.flatten(values, "data.")
    uri = storage.absolute(config.data.prepared) if config.data.prepared else _default_place(config, source, settings)
    return Plan(source, address, listing, settings, uri, config.data.shard_images, config.storage.retry_seconds)


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
    _check_align(config, plan, found.align)


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


def _check_align(config: DataConfig, plan: Plan, found: str) -> None:
    """Refuse central squares where faces were asked for by name.

    Raises:
        DataError: they are.
    """
    if plan.aligns and config.align == "celeba_hq" and found != "celeba_hq":
        raise DataError(
            f"{plan.uri} holds the central squares of photographs, now data.align is celeba_hq; give --data.align auto "
            "to take them as they are, or another --data.prepared, or delete that folder"
        )


def _can_be_compared(now: str | None, before: str | None) -> bool:
    """Tell whether two digests were made over things of one kind: a zip's checksums are no ETags."""
    kinds = {value.rpartition(":")[0] if value else None for value in (now, before)}
    return len(kinds) == 1 and None not in kinds


def find_shards(plan: Plan) -> Made:
    """Read the shards that are there already, in a place that takes more."""
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
    numbers = [at for at in range(plan.num_shards) if shard_name(at) in names]
    if len(numbers) < len(names):
        raise DataError(f"{plan.uri} holds shards of another dataset; choose another --data.prepared or delete it")
    return numbers


def read_planned(plan: Plan, numbers: Sequence[int], before: Made | None = None) -> Made:
    """Read what shards say of themselves.

    Args:
        plan: says what they should say.
        numbers: of the shards.
        before: what others of the plan hold.

    Returns:
        What all of them hold together.

    Raises:
        DataError: one was made with other settings, or does not hold the images that it should.
    """
    before = before or Made()
    settled = before.settled
    refused, notes = list(before.refused), list(before.notes)

    def read() -> Iterator[pa.Table]:
        nonlocal settled
        yield before.rows
        found = read_shards([shard_place(plan.uri, number) for number in numbers])
        for number, shard in zip(numbers, found, strict=True):
            _check_same(plan, shard.settings, "holds shards of a preparation that was begun")
            keys = shard.rows.column("key").to_pylist()
            if {photograph_of(key) for key in (*keys, *(key for key, _ in shard.refused))} != set(
                plan.keys_of(number).to_pylist()
            ):
                raise DataError(f"{shard_place(plan.uri, number)} holds other images than it should; delete it")
            settled = settled or shard.settled
            if shard.settled != settled:
                raise DataError(
                    f"two preparations of {plan.uri} chose different edge detectors, or only one of them could find "
                    "faces; delete it and start anew"
                )
            refused.extend(shard.refused)
            notes.extend(shard.notes)
            summary = {name: shard.rows.column(name) for name in SUMMARY.names}
            yield pa.table(summary | locate(number, keys, plan.holds_back), ROWS)

    rows = columns.gather(read(), ROWS)
    return Made(before.numbers.union(numbers), rows, tuple(refused), tuple(notes), settled)


def settle(config: DataConfig, plan: Plan, settled: dict[str, Any] | None) -> DataConfig:
    """Decide once for all workers what the settings leave open, as it was decided for the shards that are there.

    Raises:
        DataError: that was decided otherwise than is asked for by name.
        ModelError: weights that are asked for by name cannot be had.
    """
    if settled is None:
        return dataclasses.replace(
            config,
            sketch=sketches.settle(config.sketch),
            align=align.settle(config.align) if plan.aligns else "none",
        )
    check_detector(config, plan.uri, settled["detector"])
    found = settled.get("align", "none")
    _check_align(config, plan, found)
    sketch = dataclasses.replace(config.sketch, detector=settled["detector"], precision=settled["precision"])
    return dataclasses.replace(config, sketch=sketch, align=found)


def describe(config: Config, plan: Plan, settled: DataConfig, rows: pa.Table, num_rejected: int) -> DatasetInfo:
    """Say what was made, once all shards are there; `rows` are those of `Made`."""
    num_test = pc.sum(rows.column("held_back")).as_py()
    # What rows hold, not what was hoped for: a parser may find no face anywhere, and labels may know no hair.
    hair_areas = rows.column("hair_area")
    labels = ("labels" if plan.source.has_labels else "parser") if hair_areas.null_count < len(hair_areas) else None
    has_hair = pc.any(pc.greater(hair_areas, 0.0)).as_py()
    return DatasetInfo(
        schema_version=SCHEMA_VERSION,
        size_px=config.data.size_px,
        num_images=len(rows),
        num_train=len(rows) - num_test,
        num_test=num_test,
        num_rejected=num_rejected,
        num_shards=plan.num_shards,
        test_fraction=config.data.test_fraction,
        fingerprint=fingerprint(rows),
        license=config.data.license or plan.source.license,
        source=plan.address,
        sketch_detector=settled.sketch.detector,
        sketch_precision=settled.sketch.precision,
        color_segments=labels or "superpixels",
        eyes=labels or "canonical",
        hair=(labels if has_hair else None) or "none",
        preparation=plan.settings,
        identity_pattern=plan.settings.get("data.identity_pattern"),
        align="celeba_hq" if settled.align == "celeba_hq" else "none",
    )
