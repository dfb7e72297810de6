"""Checkpoints of TensorFlow: one that it wrote, what damage does to it, and what others may hold."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Sequence
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from published import CHECKPOINT, SMALL, draw_variables

from scfegan_ray import storage
from scfegan_ray.errors import ModelError, StorageError
from scfegan_ray.models.released import expected_variables
from scfegan_ray.models.tensor_bundle import read_variables

INDEX, DATA = ".index", ".data-00000-of-00001"
BIASES = "generator/gconv1_ds/bias"


def read(place: object) -> dict[str, np.ndarray]:
    return read_variables(str(place), lambda name: name.endswith(("/kernel", "/bias", "/w", "/biases1")))


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    for suffix in (INDEX, DATA):
        shutil.copyfile(f"{CHECKPOINT}{suffix}", tmp_path / f"x.ckpt{suffix}")
    return tmp_path / "x.ckpt"


@pytest.mark.parametrize("suffix", ["", INDEX, DATA, ".meta"])
def test_what_tensorflow_wrote_is_read(suffix: str) -> None:
    found, expected = read(f"{CHECKPOINT}{suffix}"), draw_variables(SMALL)
    assert {f"{name}:0" for name in found} == set(expected_variables(SMALL))
    for name, values in found.items():
        assert values.dtype == np.float32 and values.flags.writeable
        np.testing.assert_array_equal(values, expected[f"{name}:0"])


def test_only_what_is_wanted_is_read() -> None:
    assert set(read_variables(str(CHECKPOINT), lambda name: name == "beta1_power")) == {"beta1_power"}
    with pytest.raises(ModelError, match=r"global_step in .* is not kept in one piece of 32-bit floats"):
        read_variables(str(CHECKPOINT), lambda name: True)


def test_every_wrong_byte_of_an_index_is_found(copied: Path) -> None:
    """But in the block of metadata that nobody reads, and in what fills the end up."""
    index = Path(f"{copied}{INDEX}")
    whole, expected, unnoticed = index.read_bytes(), read(copied), 0
    for at in range(len(whole)):
        index.write_bytes(whole[:at] + bytes([whole[at] ^ 0x21]) + whole[at + 1 :])
        try:
            found = read(copied)
        except ModelError:
            continue
        unnoticed += 1
        assert found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in found)
    assert unnoticed < 60


@pytest.mark.parametrize("share", [0, 0.3, 0.99])
@pytest.mark.parametrize("suffix", [INDEX, DATA])
def test_what_was_cut_off_is_found(copied: Path, suffix: str, share: float) -> None:
    file = Path(f"{copied}{suffix}")
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ModelError, match=rf"x.ckpt{suffix} is damaged .*copy it again"):
        read(copied)


def test_a_wrong_value_is_found(copied: Path) -> None:
    file = Path(f"{copied}{DATA}")
    data = bytearray(file.read_bytes())
    data[5000] ^= 1
    file.write_bytes(data)
    with pytest.raises(ModelError, match="another checksum of generator/"):
        read(copied)


def test_absent_files_are_named(copied: Path) -> None:
    Path(f"{copied}{DATA}").unlink()
    with pytest.raises(StorageError, match="x.ckpt.data-00000-of-00001"):
        read(copied)
    with pytest.raises(ModelError, match=r"no .*none.ckpt.index; give the path that its files begin with"):
        read(copied.parent / "none.ckpt")


def varint(number: int) -> bytes:
    lower, number = number & 0x7F, number >> 7
    return bytes([lower | 0x80]) + varint(number) if number else bytes([lower])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def masked(data: bytes) -> bytes:
    checksum = int(google_crc32c.value(data))
    return struct.pack("<I", ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def entry(values: np.ndarray, shard: int = 0, offset: int = 0, *, kind: int = 1, more: bytes = b"") -> bytes:
    shape = b"".join(field(2, field(1, side)) for side in values.shape)
    where = field(3, shard) + field(4, offset) + field(5, values.nbytes)
    return field(1, kind) + field(2, shape) + where + varint(6 << 3 | 5) + masked(values.tobytes()) + more


def block(pairs: Sequence[tuple[bytes, bytes]], kind: int = 0) -> bytes:
    body, before = b"", b""
    for key, value in pairs:
        shared = next((at for at in range(len(key)) if key[at : at + 1] != before[at : at + 1]), len(key))
        body += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    body += struct.pack("<II", 0, 1)
    return body + bytes([kind]) + masked(body + bytes([kind]))


def write(place: Path, blocks: Sequence[bytes], *, order: Sequence[int] | None = None) -> None:
    """Write an index of several blocks; `order` says which of them the root names, if not each in turn."""
    data, handles = b"", []
    for one in blocks:
        handles.append(varint(len(data)) + varint(len(one) - 5))
        data += one
    root = block([(b"%06d" % at, handles[number]) for at, number in enumerate(order or range(len(blocks)))])
    footer = varint(0) + varint(0) + varint(len(data)) + varint(len(root) - 5)
    place.write_bytes(data + root + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57))


def test_several_blocks_and_several_data_files(tmp_path: Path) -> None:
    first, second = np.arange(6, dtype=np.float32).reshape(2, 3), np.full((), 7, np.float32)
    (tmp_path / "x.data-00000-of-00002").write_bytes(b"1234" + first.tobytes())
    (tmp_path / "x.data-00001-of-00002").write_bytes(second.tobytes())
    header = field(1, 2) + field(2, 0)
    write(
        tmp_path / "x.index",
        [block([(b"", header), (b"a/kernel", entry(first, 0, 4))]), block([(b"b/bias", entry(second, 1))])],
    )
    found = read(tmp_path / "x")
    assert list(found) == ["a/kernel", "b/bias"]
    np.testing.assert_array_equal(found["a/kernel"], first)
    np.testing.assert_array_equal(found["b/bias"], second)


@pytest.mark.parametrize(
    ("header", "what", "kind", "reason"),
    [
        (field(1, 1) + field(2, 1), entry(np.zeros(2, np.float32)), 0, "big end first"),
        (b"", entry(np.zeros(2, np.float32)), 0, "no header"),
        (field(1, 1), entry(np.zeros(2, np.float32)), 1, "compressed"),
        (field(1, 1), entry(np.zeros(2, np.float16)), 0, "4 bytes for a/kernel"),
        (field(1, 1), entry(np.zeros(2, np.float64), kind=2), 0, "one piece of 32-bit floats"),
        (field(1, 1), entry(np.zeros(2, np.float32), more=field(7, b"")), 0, "one piece of 32-bit floats"),
        (field(1, 1), entry(np.zeros((1,) * 9, np.float32)), 0, "too many dimensions"),
        (field(1, 1), field(2, b"\x12\x7f"), 0, "a field is cut off"),
        (field(1, 1), b"\x0b", 0, "unknown kind"),
        (field(1, 1), b"\x08" + b"\xff" * 11, 0, "a number is cut off"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, header: bytes, what: bytes, kind: int, reason: str) -> None:
    (tmp_path / "x.data-00000-of-00001").write_bytes(bytes(64))
    write(tmp_path / "x.index", [block([(b"", header), (b"a/kernel", what)], kind)])
    with pytest.raises(ModelError, match=reason):
        read(tmp_path / "x")


def test_an_index_cannot_grow_as_it_is_read(tmp_path: Path) -> None:
    value = entry(np.zeros(2, np.float32))
    blocks = [block([(b"", field(1, 1))]), block([(b"a/kernel", value)])]
    write(tmp_path / "x.index", blocks, order=[0, 1, 1, 1])
    with pytest.raises(ModelError, match="blocks overlap"):
        read(tmp_path / "x")
    write(tmp_path / "x.index", [block([(b"", field(1, 1)), (b"a" * 2000, value)])])
    with pytest.raises(ModelError, match="an entry is cut off"):
        read(tmp_path / "x")


def test_from_an_object_store(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    for suffix in (INDEX, DATA):
        storage.write_bytes(f"s3://lab/weights/x.ckpt{suffix}", Path(f"{CHECKPOINT}{suffix}").read_bytes())
    np.testing.assert_array_equal(read("s3://lab/weights/x.ckpt")[BIASES], draw_variables(SMALL)[f"{BIASES}:0"])
