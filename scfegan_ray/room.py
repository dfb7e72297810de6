"""Whether a disk has room for what is to come."""

from __future__ import annotations

import shutil
from pathlib import Path

from scfegan_ray import storage
from scfegan_ray.errors import StorageError


def require(uri: str, num_bytes: int, what: str, cure: str) -> None:
    """Refuse what surely does not fit; an object store does not tell how much room it has.

    Args:
        uri: of the place; it need not exist yet.
        num_bytes: that will be written there at least.
        what: they are.
        cure: what to do, besides freeing space.

    Raises:
        StorageError: there are fewer bytes free.
    """
    place = storage.absolute(uri)
    if not storage.is_local(place):
        return
    try:
        free = free_bytes(Path(place))
    except OSError as error:
        raise StorageError(f"cannot use {place}: {error}; {cure}") from error
    if num_bytes > free:
        raise StorageError(
            f"{place} needs room for {what}, {readable(num_bytes)} in all, and has {readable(free)}; free space, or "
            f"{cure}"
        )


def free_bytes(place: Path) -> int:
    """Return how many bytes are free where a place is, or would be made.

    Raises:
        OSError: its disk cannot be asked.
    """
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def readable(num_bytes: float) -> str:
    """Return a number of bytes in three digits and a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"
