"""Where files of a source lie: a folder, or a zip archive of one that is read in place; local or in an object store.

A tree tells trouble with one file (`DataError`, whose text is the reason) from trouble with the storage
(`StorageError`): the first costs one image, the second ends the job.
"""

from __future__ import annotations

import contextlib
import itertools
import lzma
import re
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from scfegan_ray import storage
from scfegan_ray.data.columns import Files
from scfegan_ray.errors import DataError, StorageError

MAX_FILE_BYTES = 1 << 28
"""Largest encoded image that is read."""

READ_AHEAD_FILES = 16
"""Of a folder, that are read at a time or wait in memory for whoever is to use them next."""


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

    def files(self, refuse: Callable[[str, str], None]) -> Files:
        """Return all files with their sizes, sorted by their unique paths, hidden ones left out; none is read.

        Args:
            refuse: told (path, reason) of each entry that cannot be read as a file.
        """
        ...

    def read_ahead(self, names: Iterable[str]) -> None:
        """Take note of what will be read next, in this order, so that reading may begin before it is asked for."""
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

    def files(self, refuse: Callable[[str, str], None]) -> Files:
        """List the files; see `FileTree`."""
        return Files.sort(storage.describe_files(self.root, refuse=refuse))

    def read_ahead(self, names: Iterable[str]) -> None:
        """Begin to read files; see `FileTree`."""
        self._ahead.begin(names)

    def read(self, name: str) -> bytes:
        """Read one file; see `FileTree`."""
        return self._ahead.read(name)

    @cached_property
    def _ahead(self) -> _ReadAhead:
        return _ReadAhead(self._read)

    def _read(self, name: str) -> bytes:
        uri = storage.join(self.root, name)
        with errors_of_content(uri, "cannot be read"):
            return _checked(storage.read_bytes(uri, limit=MAX_FILE_BYTES + 1))

    def __getstate__(self) -> dict[str, Any]:
        """Leave what is being read behind."""
        return {"root": self.root}


class _ReadAhead:
    """Reads files before they are asked for, several at a time: on an object store each is a round trip."""

    def __init__(self, read: Callable[[str], bytes]) -> None:
        self._read = read
        self._pool = ThreadPoolExecutor(READ_AHEAD_FILES, thread_name_prefix="read-ahead")
        self._rest: Iterator[str] = iter(())
        self._reading: deque[tuple[str, Future[bytes]]] = deque()

    def begin(self, names: Iterable[str]) -> None:
        self._reading.clear()
        self._rest = iter(names)
        self._go_on()

    def read(self, name: str) -> bytes:
        """Return a file that is being read, or else read it now.

        What storage failed to give ahead of time is read again: whoever asks for it decides how patient to be.
        """
        if all(name != begun for begun, _ in self._reading):
            return self._read(name)
        while True:
            # What was passed over is asked for no more: a face that cannot be used needs none of its other files.
            begun, future = self._reading.popleft()
            if begun == name:
                break
        self._go_on()
        try:
            return future.result()
        except StorageError:
            return self._read(name)

    def _go_on(self) -> None:
        for name in itertools.islice(self._rest, READ_AHEAD_FILES - len(self._reading)):
            self._reading.append((name, self._pool.submit(self._read, name)))


@dataclass(frozen=True)
class ZipArchive:
    """The files of a zip archive; nothing is unpacked to disk.

    Attributes:
        uri: of the archive.
    """

    uri: str

    def files(self, refuse: Callable[[str, str], None]) -> Files:
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
        return Files.sort(files.values())

    def read_ahead(self, names: Iterable[str]) -> None:
        """Do nothing: an archive is one file."""

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
