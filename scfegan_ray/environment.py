"""What a job needs of the machine and the shell it was started in: put right, or refused in one line with the cure.

Nothing here imports Ray, which reads most of this from the environment when it is imported.
"""

from __future__ import annotations

import getpass
import logging
import os
import stat
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from scfegan_ray import cache, storage
from scfegan_ray.errors import ConfigError, StorageError

logger = logging.getLogger(__name__)

_SOCKET_PATH_BYTES = 107
"""A Unix socket's path may not be longer."""
_LONGEST_SOCKET = "/ray/session_2026-01-31_23-59-59_123456_1234567/sockets/dash_TaskEventsHead"
"""What Ray puts behind its temporary folder, at the longest."""
RAY_FOLDER_BYTES = _SOCKET_PATH_BYTES - len(_LONGEST_SOCKET)
"""How long the path of Ray's temporary folder may be."""
JOIN_CURES = (
    "start the job with `ray job submit`, or on a node of the cluster with RAY_ADDRESS=HOST:6379, or unset RAY_ADDRESS "
    "for a Ray of its own"
)
"""What to do where a cluster cannot be joined."""


def cluster_address() -> str | None:
    """Return the address of the cluster to join, from `RAY_ADDRESS`; None where a job starts a Ray of its own."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return None if address in ("", "local") else address


def settle() -> None:
    """Set in this process's environment what lacks or does not work: home folder, user name, cache.

    Raises:
        ConfigError: a variable names what cannot be used, or there is no folder for temporary files.
    """
    _settle_home()
    _settle_cache()


def ray_folder() -> Path:
    """Return where a Ray of our own keeps its session: `RAY_TMPDIR`, or a folder short enough for its sockets.

    The latter is made where there is none.

    Raises:
        ConfigError: no place is short enough.
    """
    given = os.environ.get("RAY_TMPDIR")
    return Path(storage.absolute(given)) if given else _private_folder(RAY_FOLDER_BYTES)


def settle_ray_folder() -> None:
    """Set `RAY_TMPDIR` to `ray_folder()`, which a Ray of our own reads, or refuse it.

    Not Ray's usual one: there a `ray start` that was killed may have left an address where nobody answers any more,
    which parts of Ray Train would ask.

    Raises:
        ConfigError: `RAY_TMPDIR` is too long or cannot be written, or no place is short enough.
    """
    place = str(ray_folder())
    size = len(os.fsencode(place))
    if size > RAY_FOLDER_BYTES:
        raise ConfigError(
            f"RAY_TMPDIR {place} has {size} bytes, too many for the sockets of Ray; unset it, or name a folder of at "
            f"most {RAY_FOLDER_BYTES} bytes, such as /tmp/ray-me"
        )
    try:
        storage.check_writable(place)
    except StorageError as error:
        raise ConfigError(f"RAY_TMPDIR cannot be used: {error}") from error
    os.environ["RAY_TMPDIR"] = place


def check_address(address: str) -> None:
    """Refuse what is no address of a Ray cluster's head.

    Raises:
        ConfigError: it is not HOST:PORT.
    """
    named = f"RAY_ADDRESS {address}"
    if "://" in address:
        kind = "is of a Ray Client, which this job does not run in" if address.startswith("ray:") else "is no cluster's"
        raise ConfigError(f"{named} {kind}; {JOIN_CURES}")
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise ConfigError(f"{named} is not HOST:PORT; {JOIN_CURES}")


def _settle_home() -> None:
    """Give a user without a home folder, such as a bare uid in a container, one that Ray, torch and MLflow can ask."""
    try:
        Path.home()
    except RuntimeError:
        home = _private_folder() / "home"
        home.mkdir(exist_ok=True)
        os.environ["HOME"] = str(home)
        logger.warning("user %d has no home folder: taking %s; set HOME to choose another", os.getuid(), home)
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = f"uid-{os.getuid()}"


def _settle_cache() -> None:
    place = cache.cache_dir()
    try:
        storage.check_writable(str(place))
    except StorageError as error:
        if not os.environ.get("SCFEGAN_CACHE"):
            fallback = _private_folder() / "cache"
            os.environ["SCFEGAN_CACHE"] = str(fallback)
            logger.warning("%s cannot be written: caching in %s; set SCFEGAN_CACHE to choose another", place, fallback)
        elif not place.is_dir():  # one that can only be read may hold all that is wanted
            raise ConfigError(
                f"SCFEGAN_CACHE cannot be used ({error}); set it to a folder that can be written"
            ) from error


def _private_folder(longest: int | None = None) -> Path:
    """Return this user's folder for temporary files, which no other user has a hand in.

    Args:
        longest: bytes that its path may have.

    Raises:
        ConfigError: there is none.
    """
    for parent in (*_temporary_folder(), "/tmp", "/var/tmp", "/dev/shm"):
        place = Path(parent, f"scfegan-{os.getuid()}")
        if (longest is None or len(os.fsencode(place)) <= longest) and _is_own(place):
            return place
    short = "" if longest is None else f" with at most {longest} bytes in its path"
    variable = "TMPDIR" if longest is None else "RAY_TMPDIR"
    raise ConfigError(f"no folder for temporary files can be written; set {variable} to one{short}")


def _temporary_folder() -> list[str]:
    try:
        return [tempfile.gettempdir()]
    except FileNotFoundError:
        return []


def _is_own(place: Path) -> bool:
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        info = place.lstat()
        storage.check_writable(str(place))
    except (OSError, StorageError):
        return False
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.getuid()
