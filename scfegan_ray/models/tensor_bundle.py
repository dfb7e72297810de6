"""Checkpoints of TensorFlow (`tf.train.Saver`, format version 2), read without it.

A checkpoint PREFIX is `PREFIX.index`, a sorted table in LevelDB's format that says where each variable lies, and files
`PREFIX.data-NNNNN-of-NNNNN` of raw values. Its source: tensorflow/core/util/tensor_bundle and tensorflow/core/lib/io
(Apache-2.0). No library that is kept reads it but TensorFlow, which takes 1.3 GB and crashes on some damaged files.
"""

from __future__ import annotations

import io
import math
import struct
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from scfegan_ray import storage
from scfegan_ray.errors import ModelError

_SUFFIXES = (".index", ".meta", ".data-00000-of-00001")
_FOOTER_BYTES, _MAGIC = 48, 0xDB4775248B80FB57
_TRAILER_BYTES = 5  # of a block: kind of compression, checksum
_MASK_DELTA = 0xA282EAD8
_MOST_INDEX_BYTES, _MOST_NAME_BYTES, _MOST_DIMENSIONS = 1 << 24, 1 << 10, 8
_MOST_VARINT_BYTES = 10
_FLOAT32 = 1  # of TensorFlow's types
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # how a field of a protocol buffer is written


class _Damaged(Exception):
    """Of a file; the text is the reason."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """What an index says of a variable."""

    kind: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    num_bytes: int
    checksum: int
    is_sliced: bool


def read_variables(uri: str, is_wanted: Callable[[str], bool]) -> dict[str, NDArray[np.float32]]:
    """Read variables of a checkpoint.

    Args:
        uri: its prefix, such as `SC-FEGAN.ckpt`, or one of its files; local or `s3://`.
        is_wanted: tells by its name, such as `generator/gconv1_ds/kernel`, whether a variable is to be read.

    Returns:
        Arrays by name.

    Raises:
        ModelError: it is no such checkpoint, or damaged, or what is wanted is not kept in one piece of 32-bit floats.
        StorageError: it cannot be read.
    """
    prefix = storage.absolute(uri)
    for suffix in _SUFFIXES:
        prefix = prefix.removesuffix(suffix)
    place = f"{prefix}.index"
    if not storage.is_file(place):
        raise ModelError(
            f"{prefix} is no checkpoint of TensorFlow: there is no {place}; give the path that its files begin with "
            "(.index, .data-00000-of-00001)"
        )
    found = {}
    try:
        num_shards, entries = _read_index(storage.read_bytes(place, limit=_MOST_INDEX_BYTES))
        for name, entry in entries.items():
            if is_wanted(name):
                place = f"{prefix}.data-{entry.shard:05d}-of-{num_shards:05d}"
                found[name] = _read_values(place, name, entry)
    except _Damaged as error:
        raise ModelError(f"{place} is damaged or of no TensorFlow checkpoint: {error}; copy it again") from None
    return found


def _read_values(place: str, name: str, entry: _Entry) -> NDArray[np.float32]:
    if entry.is_sliced or entry.kind != _FLOAT32:
        raise ModelError(f"{name} in {place} is not kept in one piece of 32-bit floats; give what was published")
    if entry.num_bytes != 4 * math.prod(entry.shape):
        raise _Damaged(f"{entry.num_bytes} bytes for {name} of shape {entry.shape}")
    stream = storage.open_seekable(place)
    with stream, storage.errors_of_reading(place):
        if entry.offset + entry.num_bytes > stream.seek(0, io.SEEK_END):
            raise _Damaged(f"it ends before {name}")
        stream.seek(entry.offset)
        data = stream.read(entry.num_bytes)
    if _masked(google_crc32c.value(data)) != entry.checksum:
        raise _Damaged(f"another checksum of {name}")
    return np.frombuffer(data, "<f4").reshape(entry.shape).astype(np.float32)


def _read_index(data: bytes) -> tuple[int, dict[str, _Entry]]:
    """Return the number of data files, and entries by name."""
    if len(data) < _FOOTER_BYTES or struct.unpack("<Q", data[-8:])[0] != _MAGIC:
        raise _Damaged("its end is missing")
    at = len(data) - _FOOTER_BYTES
    _, at = _read_handle(data, at)
    root, _ = _read_handle(data, at)
    num_shards, entries, reached = 0, dict[str, _Entry](), 0
    for _, handle in _read_block(data, root):
        (offset, size), _ = _read_handle(handle, 0)
        if offset < reached:
            raise _Damaged("blocks overlap")
        reached = offset + size
        for key, value in _read_block(data, (offset, size)):
            if key:
                entries[key.decode("utf-8", "backslashreplace")] = _parse_entry(value)
                continue
            header, _ = _parse(value)
            num_shards = header.get(1, 0)
            if header.get(2):
                raise _Damaged("numbers lie big end first")
    if not num_shards:
        raise _Damaged("no header")
    return num_shards, entries


def _read_handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """Return offset and size of a block, and where what follows begins."""
    offset, at = _read_varint(data, at)
    size, at = _read_varint(data, at)
    return (offset, size), at


def _read_block(data: bytes, handle: tuple[int, int]) -> Iterator[tuple[bytes, bytes]]:
    """Yield keys and values of a block; of each key only that lies there which the one before does not begin with."""
    offset, size = handle
    block, trailer = data[offset : offset + size], data[offset + size : offset + size + _TRAILER_BYTES]
    if len(trailer) < _TRAILER_BYTES or size < 4:
        raise _Damaged("a block is missing")
    if _masked(google_crc32c.value(block + trailer[:1])) != struct.unpack("<I", trailer[1:])[0]:
        raise _Damaged("wrong checksum")
    if trailer[0]:
        raise _Damaged("a block is compressed")
    end = len(block) - 4 - 4 * struct.unpack("<I", block[-4:])[0]
    at, key = 0, b""
    while at < end:
        shared, at = _read_varint(block, at)
        own, at = _read_varint(block, at)
        length, at = _read_varint(block, at)
        if shared > len(key) or shared + own > _MOST_NAME_BYTES or at + own + length > end:
            raise _Damaged("an entry is cut off")
        key = key[:shared] + block[at : at + own]
        at += own + length
        yield key, block[at - length : at]


def _parse_entry(data: bytes) -> _Entry:
    """Read a `BundleEntryProto`."""
    numbers, messages = _parse(data)
    _, shape = _parse(messages[2][-1] if 2 in messages else b"")  # a `TensorShapeProto`
    if len(shape[2]) > _MOST_DIMENSIONS:
        raise _Damaged("a shape of too many dimensions")
    sizes = tuple(_parse(dimension)[0].get(1, 0) for dimension in shape[2])
    kind, shard, offset, num_bytes, checksum = (numbers.get(field, 0) for field in (1, 3, 4, 5, 6))
    return _Entry(kind, sizes, shard, offset, num_bytes, checksum, is_sliced=7 in messages)


def _parse(data: bytes) -> tuple[dict[int, int], defaultdict[int, list[bytes]]]:
    """Return the fields of a protocol buffer by their numbers: the last number of each, all bytes of each."""
    numbers, messages = dict[int, int](), defaultdict[int, list[bytes]](list)
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        field, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            numbers[field], at = _read_varint(data, at)
            continue
        if wire == _BYTES:
            length, at = _read_varint(data, at)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            raise _Damaged("a field of an unknown kind")
        if at + length > len(data):
            raise _Damaged("a field is cut off")
        piece = data[at : at + length]
        at += length
        if wire == _BYTES:
            messages[field].append(piece)
        else:
            numbers[field] = int.from_bytes(piece, "little")
    return numbers, messages


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number that lies in seven bits of each byte, and where what follows begins."""
    value = 0
    for place, byte in enumerate(data[at : at + _MOST_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, at + place + 1
    raise _Damaged("a number is cut off")


def _masked(checksum: int) -> int:
    """Return a CRC-32C as LevelDB keeps it."""
    return ((checksum >> 15 | checksum << 17) + _MASK_DELTA) & 0xFFFFFFFF
