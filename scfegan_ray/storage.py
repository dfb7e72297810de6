"""URIs to bytes: the same few verbs for local paths and `s3://` objects.

The only reader of S3 settings: credentials, region and endpoint come from the standard AWS variables
(`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_DEFAULT_REGION`, `AWS_ENDPOINT_URL`), which pyarrow's
S3 filesystem reads by itself.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import quote, unquote

from pyarrow import fs as pafs

from scfegan_ray.errors import ScFeganError, StorageError

ResultT = TypeVar("ResultT")

_OF_ONE_FILE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.EIO, errno.ENAMETOOLONG, errno.ELOOP)
_READ_AHEAD_BYTES = 1 << 18
_UPLOAD_BYTES = 1 << 24
_PARTIAL_SUFFIX = ".part"
_S3_ATTEMPTS = 3
_ABANDONED_SECONDS = 60.0
_HOPELESS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
_REFUSED = ("ACCESS_DENIED", "SIGNATURE_DOES_NOT_MATCH", "INVALID_ACCESS_KEY_ID", "NO_SUCH_BUCKET")
"""How Arrow calls what an object store does not permit; it gives no number for it."""
_LONGEST_PAUSE_SECONDS = 30.0
_LOGIN = re.compile(r"(?<=://)[^/\s'\"]*@")
_SECRET_VALUE = re.compile(
    r"([?&;][\w.-]*(?:password|passwd|pwd|passphrase|secret|token|api_?key|access_?key|credential|signature)[\w.-]*=)"
    r"[^&;#\s'\"]+",
    re.IGNORECASE,
)
"""A setting behind the `?` of a URI that nobody but its server may see."""


def absolute(uri: str) -> str:
    """Return a URI that means the same place from any working directory.

    A relative path inside a submitted Ray job starts at the home folder: such a job runs in an unpacked copy of
    the code, which Ray deletes afterwards, and nothing may be lost with it.

    Args:
        uri: local path (relative, absolute or `~`) or `s3://` URI, taken letter by letter; or `file:` URI, in which
            %20 stands for a space.

    Raises:
        StorageError: it holds a key or password, or starts at a home folder that is not there.
    """
    if uri.startswith("file:"):
        place = unquote(uri.removeprefix("file:"))
        uri = place.removeprefix("//localhost") if place.startswith("//localhost/") else place.removeprefix("//")
    elif "://" in uri:
        scheme, _, rest = uri.partition("://")
        owner = rest.partition("/")[0]
        if "@" in owner or (":" in owner and scheme == "s3") or _SECRET_VALUE.search(uri):
            raise StorageError(
                f"the {scheme}:// URI holds a key or password, which would be stored and logged; give it without, and "
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        if scheme != "s3":
            raise StorageError(f"cannot use {uri}: {scheme}:// is not understood; give a local path or an s3:// URI")
        return uri.rstrip("/")
    try:
        here = Path.cwd()
        base = Path.home() if "working_dir_files" in here.parts else here
        return os.path.normpath(base / Path(uri).expanduser())
    except (RuntimeError, FileNotFoundError) as error:
        raise StorageError(f"cannot tell where {uri} is: {error}; give a path that begins with /") from error


def as_uri(place: str) -> str:
    """Return an absolute place as a URI for a library that takes `#`, `?` and `%` for syntax.

    Args:
        place: as `absolute` returns it. A local path of plain letters stays one.

    Raises:
        StorageError: it is the key of an object, which such a library would cut off at a `#` or `?`.
    """
    if not is_local(place) and set(place) & set("#?"):
        raise StorageError(f"MLflow cannot keep artifacts at {place}; choose a --storage.path without # and ?")
    return f"file://{quote(place)}" if is_local(place) and quote(place) != place else place


def without_secrets(text: str) -> str:
    """Return a message without what may be a user, password or token of a URI in it."""
    return _SECRET_VALUE.sub(r"\1***", _LOGIN.sub("", text))


def is_local(uri: str) -> bool:
    """Tell whether a URI names a place on this machine."""
    return "://" not in uri or uri.startswith("file://")


def join(uri: str, *parts: str) -> str:
    """Append path components, taken letter by letter, to a URI."""
    if uri.startswith("file:"):
        uri = absolute(uri)
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def resolve(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the pyarrow filesystem of a URI, and the path within it.

    Raises:
        StorageError: the scheme is unknown, or the store's settings are unusable.
    """
    place = absolute(uri)
    if is_local(place):
        return pafs.LocalFileSystem(), place
    scheme, _, path = place.partition("://")
    settings = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    with _errors("use", uri):
        filesystem = _object_store(f"{scheme}://{path.partition('/')[0]}", settings)
    # Not the path that Arrow makes of a whole URI: it takes spaces, # and % of an object's name for syntax.
    return filesystem, path


@functools.lru_cache(maxsize=16)
def _object_store(bucket: str, settings: tuple[tuple[str, str], ...]) -> pafs.FileSystem:
    """Connect to a bucket once per process and state of the AWS variables, which Arrow reads by itself."""
    filesystem, _ = pafs.FileSystem.from_uri(bucket)
    if isinstance(filesystem, pafs.S3FileSystem):
        # Made from a URI it would try again for 100 s without a word where a store hangs.
        given = dict(settings)
        filesystem = pafs.S3FileSystem(
            region=filesystem.region,
            endpoint_override=given.get("AWS_ENDPOINT_URL_S3") or given.get("AWS_ENDPOINT_URL"),
            retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=_S3_ATTEMPTS),
        )
    return filesystem


def read_bytes(uri: str, *, limit: int | None = None) -> bytes:
    """Read one file or object: all of it, or its first `limit` bytes.

    Raises:
        StorageError: it is missing or cannot be read.
    """
    filesystem, path = resolve(uri)
    with _errors("read", uri), filesystem.open_input_stream(path) as stream:
        data: bytes = stream.read(limit)
    return data


def reason_of_one_file(uri: str, error: StorageError) -> str | None:
    """Tell whether a failed read of a URI says something of that one file only, and what; None where storage failed."""
    cause = error.__cause__
    number = getattr(cause, "errno", None)
    if number in _OF_ONE_FILE:
        return os.strerror(number)
    # On this machine, an error that is not the system's comes from what the file holds.
    return str(cause) if number is None and is_local(uri) else None


def open_seekable(uri: str) -> io.BufferedReader:
    """Open one file or object for reads at any place of it; `errors_of_reading` is for what happens later.

    Raises:
        StorageError: it is missing or cannot be opened.
    """
    filesystem, path = resolve(uri)
    with _errors("read", uri):
        return io.BufferedReader(filesystem.open_input_file(path), _READ_AHEAD_BYTES)


def errors_of_reading(uri: str) -> contextlib.AbstractContextManager[None]:
    """Turn what the storage raises within the context into a `StorageError` that names the place."""
    return _errors("read", uri)


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
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}{_PARTIAL_SUFFIX}")
        try:
            with partial.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())  # a name must not outlive a power cut that its content did not
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(uri: str, *, last: str) -> Iterator[Path]:
    """Give an empty folder on this machine whose files appear at a URI when the context ends without an error.

    Locally all of them appear at once. In an object store, which has no folders, `last` appears after the others: what
    lacks it is not there yet. A folder that was there before is replaced.

    Args:
        uri: where the files shall appear.
        last: name of the file that tells a whole folder.

    Raises:
        StorageError: the place cannot be written.
    """
    target = absolute(uri)
    if not is_local(target):
        with tempfile.TemporaryDirectory(prefix="scfegan-") as scratch:
            yield Path(scratch)
            # What is left of an interrupted deletion or writing must not be taken for a whole one meanwhile.
            delete(join(target, last))
            for file in sorted(Path(scratch).iterdir(), key=lambda file: file.name == last):
                _upload(file, join(target, file.name))
        return
    place = Path(target)
    partial = place.with_name(f".{place.name}.{uuid.uuid4().hex}{_PARTIAL_SUFFIX}")
    with _errors("write", uri):
        partial.mkdir(parents=True)
    try:
        yield partial
        with _errors("write", uri):
            delete_folder(target, last=last)
            partial.rename(place)
            flush(place.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def delete_folder(uri: str, *, last: str) -> None:
    """Delete what `new_folder` made, in the order in which it is never taken for whole while it is not.

    Raises:
        StorageError: it cannot be deleted.
    """
    delete(join(uri, last))
    delete(uri)


def retrying(work: Callable[[], ResultT], seconds: float, log: Callable[[str], object]) -> ResultT:
    """Do something with storage, again and again with growing pauses while it fails.

    What no repetition mends, such as a full disk or missing permissions, is not tried again.

    Args:
        work: what to do; it must not matter how often it is begun.
        seconds: how long to try again.
        log: told of each failure that is not the last.

    Raises:
        StorageError: it still fails.
    """
    end, pause = time.monotonic() + seconds, 1.0
    while True:
        try:
            return work()
        except StorageError as error:
            left = end - time.monotonic()
            hopeless = getattr(error.__cause__, "errno", None) in _HOPELESS or any(
                name in str(error) for name in _REFUSED
            )
            if hopeless or left <= 0:
                raise
            pause = min(pause, left)
            log(f"{error}; trying again in {pause:.0f} s")
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _upload(file: Path, uri: str) -> None:
    filesystem, path = resolve(uri)
    with _errors("write", uri), file.open("rb") as source, filesystem.open_output_stream(path) as stream:
        shutil.copyfileobj(source, stream, _UPLOAD_BYTES)


def flush(path: Path) -> None:
    """Make sure that a file's content, or the new names in a folder, outlive a power cut.

    Raises:
        OSError: it is not there, or cannot be written through.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def exists(uri: str) -> bool:
    """Tell whether a file, folder or object prefix is there.

    Raises:
        StorageError: the store cannot be asked.
    """
    filesystem, path = resolve(uri)
    with _errors("look up", uri):
        found: bool = filesystem.get_file_info(path).type != pafs.FileType.NotFound
    return found


def is_file(uri: str) -> bool:
    """Tell whether there is one file or object at a URI.

    Raises:
        StorageError: the store cannot be asked.
    """
    filesystem, path = resolve(uri)
    with _errors("look up", uri):
        found: bool = filesystem.get_file_info(path).type == pafs.FileType.File
    return found


def list_files(uri: str) -> list[str]:
    """List the files under a folder, at any depth, as sorted paths relative to it; an absent folder has none.

    Hidden files and folders (a leading dot) are left out, and what is no file. Links are followed.

    Args:
        uri: the folder.

    Raises:
        StorageError: the folder, or one within it, cannot be listed.
    """
    filesystem, path = resolve(uri)
    with _errors("list", uri):
        if isinstance(filesystem, pafs.LocalFileSystem):
            return sorted(name for name, _ in _list_local(path, None))
        infos = filesystem.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    names = (info.path[len(path) :].lstrip("/") for info in infos if info.type == pafs.FileType.File)
    return sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))


class File(NamedTuple):
    """What a listing says of a file.

    Attributes:
        name: path relative to what was listed.
        size: in bytes.
        tag: what the listing tells of its content: an object's ETag, or an archive's CRC; empty where it tells nothing.
    """

    name: str
    size: int
    tag: str = ""


def describe_files(uri: str, *, refuse: Callable[[str, str], None]) -> Iterator[File]:
    """List the files under a folder as `list_files` does, with what the listing says of each; none is opened.

    Args:
        uri: the folder.
        refuse: told (relative path, reason) of each local entry within it that cannot be listed or is no file.

    Yields:
        The files in any order.

    Raises:
        StorageError: the folder cannot be listed.
    """
    filesystem, path = resolve(uri)
    with _errors("list", uri):
        if isinstance(filesystem, pafs.LocalFileSystem):
            yield from _with_sizes(_list_local(path, refuse), refuse)
            return
        for file in _list_objects(filesystem, path.rstrip("/") + "/"):
            if not any(part.startswith(".") for part in file.name.split("/")):
                yield file


def describe_file(uri: str) -> File:
    """Return what a listing says of the one file at a URI; it is called by the last part of its path.

    Raises:
        StorageError: it is missing or cannot be looked up.
    """
    filesystem, path = resolve(uri)
    folder, _, name = path.rpartition("/")
    with _errors("look up", uri):
        if isinstance(filesystem, pafs.LocalFileSystem):
            return File(name, os.stat(path).st_size)
        for file in _list_objects(filesystem, path):
            if not file.name:
                return file._replace(name=name)
        raise FileNotFoundError(f"no {name} in {folder}")


def _with_sizes(entries: Iterator[tuple[str, os.DirEntry[str]]], refuse: Callable[[str, str], None]) -> Iterator[File]:
    for name, entry in entries:
        try:
            yield File(name, entry.stat().st_size)
        except OSError as error:
            refuse(name, str(error.strerror))


def _list_objects(filesystem: pafs.S3FileSystem, path: str) -> Iterator[File]:
    """List the objects of a bucket whose keys begin with a path; Arrow's own listing knows no ETags."""
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, prefix = path.partition("/")
    session = boto3.Session()
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    client = session.client(
        "s3",
        region_name=filesystem.region,
        endpoint_url=endpoint,
        config=Config(
            # As Arrow does: it asks for a public bucket without a signature where there are no keys.
            signature_version=None if session.get_credentials() else UNSIGNED,
            s3={"addressing_style": "path" if endpoint else "auto"},
            retries={"max_attempts": _S3_ATTEMPTS, "mode": "standard"},
            connect_timeout=10,
            read_timeout=30,
        ),
    )
    try:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for item in page.get("Contents", ()):
                if not item["Key"].endswith("/"):
                    yield File(item["Key"].removeprefix(prefix), item["Size"], item["ETag"].strip('"'))
    except ClientError as error:
        if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in (401, 403):
            raise PermissionError(errno.EACCES, str(error)) from error
        raise OSError(str(error)) from error
    except BotoCoreError as error:
        raise OSError(str(error)) from error


def _list_local(root: str, refuse: Callable[[str, str], None] | None) -> Iterator[tuple[str, os.DirEntry[str]]]:
    seen: set[tuple[int, int]] = set()
    waiting, links = [""], list[str]()
    while waiting or links:
        # Links come last: whichever way the system lists a folder, one that is reached twice is called by its own name.
        folder = waiting.pop() if waiting else links.pop(0)
        try:
            place = os.stat(os.path.join(root, folder))
            if (place.st_dev, place.st_ino) in seen:
                continue  # a link to a folder that was walked, perhaps the one it lies in
            seen.add((place.st_dev, place.st_ino))
            entries = os.scandir(os.path.join(root, folder))
        except FileNotFoundError:
            if folder:
                continue
            return
        except OSError as error:
            if refuse is None or not folder:
                raise
            refuse(_readable(folder), f"the folder cannot be listed: {error.strerror}")
            continue
        folders, linked = list[str](), list[str]()
        with entries:
            for entry in entries:
                name = os.path.join(folder, entry.name)
                if entry.name.startswith("."):
                    continue
                reason = ""
                try:
                    if entry.is_dir():
                        (linked if entry.is_symlink() else folders).append(name)
                        continue
                    if not entry.is_file():
                        reason = "a link to nowhere" if entry.is_symlink() else "not a regular file"
                except OSError as error:
                    reason = str(error.strerror)
                if not reason and _readable(name) != name:
                    reason = "the file's name is not valid UTF-8"
                if not reason:
                    yield name, entry
                elif refuse is not None:
                    refuse(_readable(name), reason)
        waiting += sorted(folders)
        links += sorted(linked)


def _readable(name: str) -> str:
    # The system gives bytes that are no UTF-8 as lone surrogates, which neither Arrow nor a terminal takes.
    return name.encode("utf-8", "backslashreplace").decode()


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


def delete_abandoned(uri: str) -> None:
    """Delete what writers that were killed left behind in a folder, unseen by `list_files`.

    Raises:
        StorageError: it cannot be deleted.
    """
    if not is_local(uri):
        return  # an object store shows nothing before all of it is there
    dead = time.time() - _ABANDONED_SECONDS
    with _errors("clean", uri):
        for partial in Path(absolute(uri)).glob(f".*{_PARTIAL_SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):
                if partial.stat().st_mtime >= dead:
                    continue
                if partial.is_dir():
                    shutil.rmtree(partial)
                else:
                    partial.unlink()


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


@contextlib.contextmanager
def _errors(verb: str, uri: str) -> Iterator[None]:
    try:
        yield
    except ScFeganError:
        raise
    except (OSError, ValueError) as error:
        cure = (
            "check the path, its permissions and the free space"
            if is_local(uri)
            else "check the URI and the AWS_* variables (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        )
        reason = without_secrets(" ".join(str(error).split()))
        raise StorageError(f"cannot {verb} {uri}: {reason}; {cure}") from error
