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
    folder = Path(place)
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise StorageError(f"cannot use {place}: {error}; {cure}") from error
    if num_bytes > free:
        raise StorageError(
            f"{place} needs room for {what}, {readable(num_bytes)} in all, and has {readable(free)}; free space, or "
            f"{cure}"
        )


def readable(num_bytes: float) -> str:
    """Return a number of bytes in three digits and a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"
