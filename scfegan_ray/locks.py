"""One process at a time: a lock beside a run, a prepared dataset or a database, gone with the process that held it.

Locally it is the system's lock of a file, which ends with its process however that ends, and holds across the nodes of
a shared file system as far as that file system passes locks on. An object store has none; there it is a lease: an
object that its holder writes anew every few seconds, only where nobody else has written it meanwhile. Who finds one
that stays as it is for half a minute of his own clock takes it over. No two clocks are ever compared.

Why not filelock: its file stays beside the run and does not say who holds it, and where a file system knows no locks it
fails or goes over to another kind of lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scfegan_ray import storage
from scfegan_ray.errors import BusyError, StorageError

logger = logging.getLogger(__name__)

NAME = ".lock"
LEASE_SECONDS = 30.0
"""A lease that did not change for so long has lost its holder."""

_RENEW_SECONDS = 5.0
_ASK_SECONDS = 1.0
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_NO_CONDITIONS = ("NotImplemented", "MethodNotAllowed")
_CONFLICTS = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")
_ABSENT = ("NoSuchKey", "404", "NotFound")


class Lock:
    """What `held` gives."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._lost = ""

    def check(self) -> None:
        """Notice that another process has taken the lock over.

        Raises:
            StorageError: it has; whatever this process writes from now on, two write.
        """
        if self._lost:
            raise StorageError(
                f"{self._what} was taken over by {self._lost}, because this process could not renew its lease for "
                f"{LEASE_SECONDS:.0f} s; it ends, so that not both write; run the same command again once the other "
                "has ended"
            )

    def lose(self, to: str) -> None:
        """Note who has taken the lock over."""
        self._lost = to


@contextlib.contextmanager
def held(uri: str, what: str, *, patience_seconds: float = 0.0) -> Iterator[Lock]:
    """Let no other process into the same context meanwhile.

    Args:
        uri: folder or prefix that the lock is for; it is made where it is missing.
        what: is locked, for messages: "run tiny".
        patience_seconds: how long to wait for a holder that is at work. One that died is waited for besides: not at
            all locally, until its lease runs out in an object store.

    Raises:
        BusyError: another process is at work there, and still is when patience ends.
        StorageError: the place cannot be written.
    """
    place = storage.absolute(uri)
    lock = Lock(what)
    keeping = (
        _locked_file(place, what, patience_seconds)
        if storage.is_local(place)
        else _leased(place, lock, what, patience_seconds)
    )
    with keeping:
        yield lock


class _Patience:
    """Waits for another holder, says so once, and gives up."""

    def __init__(self, what: str, seconds: float) -> None:
        self._what, self._end = what, time.monotonic() + seconds
        self._has_said = False

    def wait(self, holder: str, seconds: float) -> None:
        """Wait a little for a holder that is at work.

        Raises:
            BusyError: patience is at its end.
        """
        if time.monotonic() >= self._end:
            raise BusyError(
                f"{self._what} is in use by {holder}; wait until it has ended, stop it, or use another name"
            )
        if not self._has_said:
            self._has_said = True
            logger.info("%s is in use by %s; waiting until it has ended", self._what, holder)
        time.sleep(seconds)


def _me() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


@contextlib.contextmanager
def _locked_file(folder: str, what: str, patience_seconds: float) -> Iterator[None]:
    path, patience = Path(folder, NAME), _Patience(what, patience_seconds)
    try:
        handle = None
        while handle is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Python closes it in the programs that this process starts, so that none of them holds the lock.
            handle = _try_file(path)
            if handle is None:
                patience.wait(_holder_in(path), min(_ASK_SECONDS, 0.2))
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(
            f"cannot lock {folder}: {error}; check the path, its permissions and the free space"
        ) from error
    try:
        yield
    finally:
        # Before the lock goes: who waits for this file finds out that its name is gone, and begins anew.
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(handle)


def _try_file(path: Path) -> int | None:
    """Lock a file and return its handle; None where somebody holds it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not is_named(path, handle):
            os.close(handle)
            return None
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            os.close(handle)
            if isinstance(error, BlockingIOError):
                return None
            raise
        logger.warning("the file system of %s knows no locks: two jobs there are not told apart", path.parent)
    with contextlib.suppress(OSError):  # on a full disk nobody can be named; the lock holds all the same
        os.ftruncate(handle, 0)
        os.pwrite(handle, _me().encode(), 0)
    return handle


def is_named(path: Path, handle: int) -> bool:
    """Tell whether an open file still has its name: whoever had it locked before may have deleted it."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def _holder_in(path: Path) -> str:
    try:
        return path.read_text(errors="replace")[:200] or "another process"
    except OSError:
        return "another process"


@contextlib.contextmanager
def _leased(prefix: str, lock: Lock, what: str, patience_seconds: float) -> Iterator[None]:
    lease = _Lease(storage.join(prefix, NAME))
    if not lease.take(_Patience(what, patience_seconds), what):
        logger.warning("the store of %s knows no conditional writes: two jobs there are not told apart", prefix)
        yield
        return
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(_RENEW_SECONDS):
            try:
                taken_by = lease.renew()
            except StorageError as error:
                # Nobody else may reach the store either; if somebody does, the next renewal that succeeds finds out.
                logger.debug("%s", error)
                continue
            if taken_by:
                lock.lose(taken_by)
                return

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        try:
            lease.give_back()
        except StorageError as error:
            logger.warning("the next job waits until the lease has run out: %s", error)


class _Lease:
    """An object that its holder keeps changing.

    Args:
        uri: `s3://` URI of the object.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._bucket, _, self._key = uri.removeprefix("s3://").partition("/")
        self._token = uuid.uuid4().hex
        self._tag: str | None = None
        self._client = _client()

    def take(self, patience: _Patience, what: str) -> bool:
        """Get hold of it; False where the store cannot say who was first.

        Raises:
            BusyError: its holder is at work.
            StorageError: the store cannot be used.
        """
        seen: str | None = None
        seen_at, has_said = time.monotonic(), False
        while True:
            found = self._read()
            if found is None:
                code = self._write(IfNoneMatch="*")
                if code in _NO_CONDITIONS:
                    return False
                if code is None:
                    return True
                continue  # another one was faster
            tag, content = found
            holder = str(content.get("holder", "another process"))
            now = time.monotonic()
            if seen is not None and tag != seen:
                patience.wait(holder, 0.0)
            if tag != seen:
                seen, seen_at = tag, now
            elif now - seen_at >= LEASE_SECONDS:
                logger.info("%s: the lease of %s has run out", what, holder)
                if self._write(IfMatch=tag) is None:
                    return True
                continue
            elif not has_said and now - seen_at > 2 * _RENEW_SECONDS:
                has_said = True
                logger.info(
                    "%s: %s, which was at work on it, does not answer; its lease runs out in %.0f s",
                    what, holder, LEASE_SECONDS - (now - seen_at),
                )  # fmt: skip
            time.sleep(_ASK_SECONDS)

    def renew(self) -> str | None:
        """Change it; return who has taken it over, if somebody has.

        Raises:
            StorageError: the store cannot be asked.
        """
        assert self._tag is not None, "it was taken"
        if self._write(IfMatch=self._tag) is None:
            return None
        found = self._read()
        if found is None:
            # Somebody deleted the folder, or took the lease over and has ended since: whoever comes next is second.
            return None if self._write(IfNoneMatch="*") is None else "another process"
        tag, content = found
        if content.get("token") != self._token:
            return str(content.get("holder", "another process"))
        self._tag = tag  # an answer to an earlier renewal got lost
        return None

    def give_back(self) -> None:
        """Delete it where it is still this process's.

        Raises:
            StorageError: the store cannot be asked.
        """
        found = self._read()
        if found is not None and found[1].get("token") == self._token:
            self._call("delete_object")

    def _write(self, **condition: str) -> str | None:
        """Write it under a condition; return the error's code where that does not hold."""
        content = {"holder": _me(), "token": self._token, "beat": uuid.uuid4().hex}
        code, answer = self._call("put_object", Body=json.dumps(content).encode(), **condition)
        if code is None:
            self._tag = answer["ETag"]
        return code

    def _read(self) -> tuple[str, dict[str, Any]] | None:
        code, answer = self._call("get_object")
        if code is not None:
            return None
        with storage.errors_of_reading(self._uri):
            content = answer["Body"].read()
        try:
            values = json.loads(content)
        except ValueError:
            values = {}
        return answer["ETag"], values if isinstance(values, dict) else {}

    def _call(self, verb: str, **arguments: Any) -> tuple[str | None, Any]:
        """Ask the store; return the code of an error that belongs to the protocol, and the answer."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return None, getattr(self._client, verb)(Bucket=self._bucket, Key=self._key, **arguments)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in _CONFLICTS + _NO_CONDITIONS or (verb == "get_object" and code in _ABSENT):
                return code, None
            trouble: Exception = error
        except BotoCoreError as error:
            trouble = error
        reason = " ".join(str(trouble).split())
        raise StorageError(
            f"cannot lock {self._uri}: {reason}; check the URI and the AWS_* variables (AWS_ENDPOINT_URL, "
            "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        ) from trouble


def _client() -> Any:
    """Connect to S3 as Arrow does in `storage`, which has no conditional writes."""
    import boto3
    from botocore.config import Config

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint,
        region_name=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
        config=Config(
            connect_timeout=5,
            read_timeout=10,
            retries={"max_attempts": 2},
            s3={"addressing_style": "path" if endpoint else "auto"},
            # Stores other than Amazon's need not know the newer checksums.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
