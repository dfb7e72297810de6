"""This machine's cache of what can be fetched or made again, which several processes and users may share.

A file appears whole or not at all, with the permissions that the user's umask gives any other. Whoever makes one holds
the lock of the file beside it; whoever uses one for longer holds a shared lock on the file itself, so that nobody
deletes it meanwhile. Locks are the system's: they end with their process, however it ends, and a file that may only
be read can be locked.

Why not filelock: its FileLock opens the lock for writing, so that the file which one user's umask made (0644) stops
every other user; in a folder with the sticky bit it refuses another user's lock even where that may be written; and it
cannot share a lock on the file in use (its ReadWriteLock is a database of one user's).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from scfegan_ray import locks, storage

LOCK_SUFFIX = ".lock"
PARTIAL_SUFFIX = ".part"
CURE = "set SCFEGAN_CACHE to a folder that you can read and write, with free space"
"""For the text of an error that comes from the cache."""


def cache_dir() -> Path:
    """Return this machine's cache for what can be fetched or made again; it need not exist yet.

    `SCFEGAN_CACHE` names it; otherwise it is `scfegan_ray` in the user's cache folder.

    Raises:
        StorageError: it starts at a home folder that is not there.
    """
    chosen = os.environ.get("SCFEGAN_CACHE")
    if chosen:
        return Path(storage.absolute(chosen))
    return Path(storage.absolute(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "scfegan_ray"


@contextlib.contextmanager
def making(path: Path) -> Iterator[None]:
    """Let one process or thread of this machine at a time make the file at a path; the others wait.

    Raises:
        OSError: the folder cannot be made or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_name(path.name + LOCK_SUFFIX), fcntl.LOCK_EX, create=True):
        yield


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give the path of a new, empty file that takes the place of another one when the context ends without an error.

    Raises:
        OSError: the folder cannot be written.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
    try:
        partial.touch(exist_ok=False)
        yield partial
        storage.flush(partial)  # a name must not outlive a power cut that its content did not
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def kept(path: Path, is_intact: Callable[[bytes], bool], fetch: Callable[[], bytes]) -> bytes:
    """Return the content of a file that is fetched where it is not there, or damaged.

    Args:
        path: of the file.
        is_intact: tells whether a content is the right one.
        fetch: brings it; many processes of a machine may want it together, one fetches and the others find the file.

    Raises:
        OSError: the folder cannot be written.
    """
    content = _read_if(is_intact, path)
    if content is not None:
        return content
    with making(path):
        content = _read_if(is_intact, path)
        if content is None:
            content = fetch()
            with new_file(path) as partial:
                partial.write_bytes(content)
    return content


def _read_if(is_intact: Callable[[bytes], bool], path: Path) -> bytes | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    return content if is_intact(content) else None


def hold(path: Path) -> int:
    """Keep a file from being deleted by `delete_unused` until the handle that this returns is closed.

    Raises:
        OSError: it is not there or cannot be read.
    """
    while True:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH)
            if locks.is_named(path, handle):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def in_use(path: Path) -> bool:
    """Tell whether somebody holds a file, or makes one at its place.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with contextlib.ExitStack() as held:
            for place in (path, path.with_name(path.name + LOCK_SUFFIX)):
                with contextlib.suppress(FileNotFoundError):
                    held.enter_context(_locked(place, fcntl.LOCK_EX | fcntl.LOCK_NB))
    except BlockingIOError:
        return True
    return False


def delete_unused(path: Path) -> bool:
    """Delete a file and its lock, unless somebody holds it or makes one at its place; tell whether it was deleted.

    Raises:
        OSError: it cannot be deleted.
    """
    lock = path.with_name(path.name + LOCK_SUFFIX)
    try:
        with contextlib.ExitStack() as held:
            for place in (path, lock):
                with contextlib.suppress(FileNotFoundError):
                    held.enter_context(_locked(place, fcntl.LOCK_EX | fcntl.LOCK_NB))
            path.unlink(missing_ok=True)
            lock.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _locked(path: Path, how: int, *, create: bool = False) -> Iterator[None]:
    while True:
        handle = _open_lock(path) if create else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, how)
            # While we waited, its owner may have deleted it, and somebody else made a new one.
            if locks.is_named(path, handle):
                yield
                return
        finally:
            os.close(handle)


def _open_lock(path: Path) -> int:
    # Another user's lock may only be read by us, which is enough to lock it; asking to create it might be refused.
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
