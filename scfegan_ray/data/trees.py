"""Where files of a source lie: a folder, or a zip archive of one that is read in place; local or in an object store.

A tree tells trouble with one file (`DataError`, whose text is the reason) from trouble with the storage
(`StorageError`): the first costs one image, the second ends the job.
"""

from __future__ import annotations

import contextlib
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from scfegan_ray import storage
from scfegan_ray.errors import DataError, StorageError

MAX_FILE_BYTES = 1 << 28
"""Largest encoded image that is read."""


@contextlib.contextmanager
def errors_of_content(uri: str, what: str) -> Iterator[None]:
    """Turn errors that come from what one file holds into a `DataError` that begins with a text.

    Raises:
        DataError: the file is missing, closed to us, or damaged.
        StorageError: the storage fails.
    """
    try:
        with storage.errors_of_reading(uri):
            yield
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError) as error:
        raise DataError(f"{what}: {error}") from error
    except StorageError as error:
        reason = storage.reason_of_one_file(uri, error)
        if reason is None:
            raise
        raise DataError(f"{what}: {reason}") from error


class FileTree(Protocol):
    """Files under relative paths; small enough to be sent to every worker."""

    def files(self, refuse: Callable[[str, str], None]) -> list[storage.File]:
        """Return all files with their sizes, sorted by their unique paths, hidden ones left out; none is read.

        Args:
            refuse: told (path, reason) of each entry that cannot be read as a file.
        """
        ...

    def read(self, name: str) -> bytes:
        """Read one file.

        Raises:
            DataError: this file cannot be read; others may.
            StorageError: the storage fails.
        """
        ...


@dataclass(frozen=True)
class Folder:
    """The files under a folder or object prefix.

    Attributes:
        root: its URI.
    """

    root: str

    def files(self, refuse: Callable[[str, str], None]) -> list[storage.File]:
        """List the files; see `FileTree`."""
        return storage.describe_files(self.root, refuse=refuse)

    def read(self, name: str) -> bytes:
        """Read one file; see `FileTree`."""
        uri = storage.join(self.root, name)
        with errors_of_content(uri, "cannot be read"):
            return _checked(storage.read_bytes(uri, limit=MAX_FILE_BYTES + 1))


@dataclass(frozen=True)
class ZipArchive:
    """The files of a zip archive; nothing is unpacked to disk.

    Attributes:
        uri: of the archive.
    """

    uri: str

    def files(self, refuse: Callable[[str, str], None]) -> list[storage.File]:
        """List the archive's files; see `FileTree`."""
        files: dict[str, storage.File] = {}
        for info in self._archive.infolist():
            name = info.filename
            if info.is_dir() or name.endswith("\\"):
                continue
            if self._has_backslashes:
                name = name.replace("\\", "/")
            if any(_is_hidden(part) for part in re.split(r"[/\\]", name)):
                continue
            if "\\" in name:
                refuse(name, "a backslash in its name, where others of the archive have /; pack it again")
                continue
            files[name] = storage.File(name, info.file_size, f"{info.CRC:08x}")
        return sorted(files.values())

    def read(self, name: str) -> bytes:
        """Read one file of the archive; see `FileTree`."""
        if self._has_backslashes:
            name = name.replace("/", "\\")
        if self._archive.getinfo(name).flag_bits & 1:
            raise DataError("encrypted in the archive; unpack it with its password first")
        # One byte more than is taken, so that an archive bomb ends here.
        with errors_of_content(self.uri, "damaged in the archive"), self._archive.open(name) as stream:
            return _checked(stream.read(MAX_FILE_BYTES + 1))

    @cached_property
    def _archive(self) -> zipfile.ZipFile:
        # Stays open as long as this tree, which lives as long as its worker.
        stream = storage.open_seekable(self.uri)
        with errors_of_content(self.uri, f"{self.uri} is no readable zip archive, copy it again"):
            return zipfile.ZipFile(stream)

    @cached_property
    def _has_backslashes(self) -> bool:
        # Some programs of Windows separate folders so, against the rule of the format.
        names = [info.filename for info in self._archive.infolist() if not info.is_dir()]
        return any("\\" in name for name in names) and not any("/" in name for name in names)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open archive behind."""
        return {"uri": self.uri}


def _is_hidden(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"


def _checked(data: bytes) -> bytes:
    if len(data) > MAX_FILE_BYTES:
        raise DataError(f"more than {MAX_FILE_BYTES >> 20} MiB")
    return data
