"""URIs to bytes: the same few verbs for local paths and `s3://` objects.

The only reader of S3 settings: credentials, region and endpoint come from the standard AWS variables
(`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_DEFAULT_REGION`, `AWS_ENDPOINT_URL`), which pyarrow's
S3 filesystem reads by itself.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from pyarrow import fs as pafs

from scfegan_ray.errors import StorageError


def absolute(uri: str) -> str:
    """Return a URI that means the same place from any working directory.

    A relative path inside a submitted Ray job starts at the home folder: such a job runs in an unpacked copy of
    the code, which Ray deletes afterwards, and nothing may be lost with it.

    Args:
        uri: local path (relative, absolute or `~`), `file://` or `s3://` URI.
    """
    if uri.startswith("file://"):
        return uri.removeprefix("file://")
    if "://" in uri:
        return uri.rstrip("/")
    here = Path.cwd()
    base = Path.home() if "working_dir_files" in here.parts else here
    return os.path.normpath(base / Path(uri).expanduser())


def is_local(uri: str) -> bool:
    """Tell whether a URI names a place on this machine."""
    return "://" not in uri or uri.startswith("file://")


def join(uri: str, *parts: str) -> str:
    """Append path components to a URI."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def resolve(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the pyarrow filesystem of a URI, and the path within it.

    Raises:
        StorageError: the scheme is unknown, or the store's settings are unusable.
    """
    place = absolute(uri)
    if is_local(place):
        return pafs.LocalFileSystem(), place
    with _errors("use", uri):
        filesystem, path = pafs.FileSystem.from_uri(place)
    return filesystem, path


def read_bytes(uri: str) -> bytes:
    """Read one file or object whole.

    Raises:
        StorageError: it is missing or cannot be read.
    """
    filesystem, path = resolve(uri)
    with _errors("read", uri), filesystem.open_input_stream(path) as stream:
        data: bytes = stream.read()
    return data


def write_bytes(uri: str, data: bytes) -> None:
    """Write one file or object so that readers see all of it or nothing.

    Raises:
        StorageError: the place cannot be written.
    """
    filesystem, path = resolve(uri)
    with _errors("write", uri):
        if not isinstance(filesystem, pafs.LocalFileSystem):
            with filesystem.open_output_stream(path) as stream:
                stream.write(data)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            aside.write_bytes(data)
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)


def exists(uri: str) -> bool:
    """Tell whether a file, folder or object prefix is there.

    Raises:
        StorageError: the store cannot be asked.
    """
    filesystem, path = resolve(uri)
    with _errors("look up", uri):
        found: bool = filesystem.get_file_info(path).type != pafs.FileType.NotFound
    return found


def list_files(uri: str, *, recursive: bool = True) -> list[str]:
    """List the files under a folder as sorted paths relative to it; an absent folder has none.

    Hidden files and folders (a leading dot) are left out.

    Raises:
        StorageError: the folder cannot be listed.
    """
    filesystem, path = resolve(uri)
    selector = pafs.FileSelector(path, recursive=recursive, allow_not_found=True)
    with _errors("list", uri):
        infos = filesystem.get_file_info(selector)
    names = (info.path[len(path) :].lstrip("/") for info in infos if info.type == pafs.FileType.File)
    return sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))


def delete(uri: str) -> None:
    """Delete a file or a folder with all it holds; an absent one is no error.

    Raises:
        StorageError: it cannot be deleted.
    """
    filesystem, path = resolve(uri)
    with _errors("delete", uri):
        kind = filesystem.get_file_info(path).type
        if kind == pafs.FileType.Directory:
            filesystem.delete_dir(path)
        elif kind == pafs.FileType.File:
            filesystem.delete_file(path)


def check_writable(uri: str) -> None:
    """Prove that a folder or prefix takes new files, and leave nothing behind but the folder.

    Raises:
        StorageError: it does not.
    """
    probe = join(absolute(uri), f".writable-{uuid.uuid4().hex}")
    write_bytes(probe, b"")
    delete(probe)


@contextlib.contextmanager
def local_copy(uri: str) -> Iterator[Path]:
    """Give a folder as a local path: itself where it is local, else a copy that lives as long as the context.

    Raises:
        StorageError: it is missing or cannot be read.
    """
    if is_local(uri):
        yield Path(absolute(uri))
        return
    filesystem, path = resolve(uri)
    with tempfile.TemporaryDirectory(prefix="scfegan-") as scratch:
        with _errors("read", uri):
            pafs.copy_files(path, scratch, source_filesystem=filesystem)
        yield Path(scratch)


def cache_dir() -> Path:
    """Return this machine's cache for what can be fetched or made again; it need not exist yet.

    `SCFEGAN_CACHE` names it; otherwise it is `scfegan_ray` in the user's cache folder.
    """
    chosen = os.environ.get("SCFEGAN_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scfegan_ray"


@contextlib.contextmanager
def _errors(verb: str, uri: str) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except (OSError, ValueError) as error:
        cure = (
            "check the path, its permissions and the free space"
            if is_local(uri)
            else "check the URI and the AWS_* variables (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        )
        reason = " ".join(str(error).split())
        raise StorageError(f"cannot {verb} {uri}: {reason}; {cure}") from error
