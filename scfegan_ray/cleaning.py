"""What accumulates and can be made again: prepared datasets, this machine's cache, and folders that Ray left behind.

What is in use stays: a dataset that a run was trained on or that may be in the making, a copy that a process holds,
the session of a living Ray. So do links and what belongs to another user.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs as pafs

from scfegan_ray import cache, environment, storage
from scfegan_ray.config import Config
from scfegan_ray.data.dataset import OTHER_FILES
from scfegan_ray.errors import DataError, StorageError
from scfegan_ray.weights import HED_WEIGHTS

_YOUNG_SECONDS = 3600.0
_UNFINISHED_SECONDS = 24 * 3600.0
_OLD = re.compile(r"tmp\w{8}")
"""How version 0.1 called a copy in the making."""


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that lies about.

    Attributes:
        place: path or URI.
        kind: "dataset", "copy", "references" (measured on one), "weights" or "ray".
        num_bytes: that it takes.
        kept_because: why it must stay; empty where it can go.
    """

    place: str
    kind: str
    num_bytes: int
    kept_because: str


def clean(config: Config, *, delete: bool) -> dict[str, Any]:
    """List what accumulates under the storage path and on this machine; delete what nobody uses, if told to.

    Args:
        config: `storage.path` says where runs and datasets are.
        delete: without it nothing is changed.

    Returns:
        kept: what is in use, with the reason; unused: what can go and is there still; deleted: what went; each a list
        of place, kind and bytes; kept_bytes, unused_bytes, deleted_bytes: their sums.

    Raises:
        DataError: the record of a run is damaged, so that nobody knows what it uses.
        StorageError: a place cannot be listed.
    """
    root = storage.absolute(config.storage.path)
    found: dict[str, list[dict[str, Any]]] = {"kept": [], "unused": [], "deleted": []}
    for item in [*_datasets(root), *_cached(cache.cache_dir()), *_sessions(environment.ray_folder())]:
        line = {"place": item.place, "kind": item.kind, "bytes": item.num_bytes}
        if item.kept_because:
            found["kept"].append(line | {"reason": item.kept_because})
        elif not delete:
            found["unused"].append(line)
        else:
            reason = _delete(item)
            if reason:
                found["kept"].append(line | {"reason": reason})
            else:
                found["deleted"].append(line)
    return found | {f"{name}_bytes": sum(line["bytes"] for line in lines) for name, lines in found.items()}


def _delete(item: Item) -> str:
    """Delete something; return why it is still there, or nothing."""
    try:
        if item.kind == "dataset":
            storage.delete_folder(item.place, last="dataset.json")
        elif item.kind == "ray":
            shutil.rmtree(item.place)
        elif not cache.delete_unused(Path(item.place)):
            return "in use by a process"
    except OSError as error:
        return f"cannot be deleted: {error}"
    return ""


def _datasets(root: str) -> Iterator[Item]:
    """Find the datasets that jobs made under the storage path by themselves."""
    used = _used_fingerprints(root)
    folder = storage.join(root, "prepared")
    for name in _folders(folder):
        place = storage.join(folder, name)
        num_bytes, changed, why = _measure(place)
        age = time.time() - changed
        if not why and any(
            name not in OTHER_FILES and not name.startswith("data/part-") for name in storage.list_files(place)
        ):
            why = "it holds other files"
        if not why:
            if not storage.exists(storage.join(place, "dataset.json")):
                why = "it may be in the making: changed in the last 24 hours" if age < _UNFINISHED_SECONDS else ""
            else:
                fingerprint = json.loads(storage.read_bytes(storage.join(place, "dataset.json"))).get("fingerprint")
                if fingerprint in used:
                    why = f"run {used[fingerprint]} was trained on it"
                elif age < _YOUNG_SECONDS:
                    why = "a job may be about to use it: made in the last hour"
        yield Item(place, "dataset", num_bytes, why)


def _used_fingerprints(root: str) -> dict[str, str]:
    """Return the fingerprint of each dataset that a run names, and one such run; trials lie a folder deeper."""
    used: dict[str, str] = {}
    for name in storage.list_files(root):
        if name.rpartition("/")[2] == "run.json":
            place = storage.join(root, name)
            try:
                used[json.loads(storage.read_bytes(place))["data_fingerprint"]] = name.rpartition("/")[0]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{place} is damaged ({error}), so nobody knows which dataset it needs; delete that run's folder"
                ) from error
    return used


def _folders(uri: str) -> list[str]:
    """Return the names of the folders in a folder, those of links among them."""
    filesystem, path = storage.resolve(uri)
    if storage.is_local(uri):
        return [file.name for file in _entries(Path(path)) if not file.name.startswith(".") and file.is_dir()]
    with storage.errors_of_reading(uri):
        infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in infos if info.type == pafs.FileType.Directory)


def _measure(uri: str) -> tuple[int, float, str]:
    """Return the bytes of a folder, when something in it changed last, and why it must stay whatever it is."""
    filesystem, path = storage.resolve(uri)
    if storage.is_local(uri):
        return _measure_local(Path(path))
    with storage.errors_of_reading(uri):
        infos = filesystem.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    files = [info for info in infos if info.type == pafs.FileType.File]
    changed = max((info.mtime_ns / 1e9 for info in files if info.mtime_ns is not None), default=0.0)
    return sum(info.size for info in files), changed, ""


def _measure_local(place: Path) -> tuple[int, float, str]:
    about = place.lstat()
    num_bytes, changed = 0, about.st_mtime
    if place.is_symlink():
        return 0, changed, "a link"
    for folder, _, names in os.walk(place):
        for one in (folder, *(os.path.join(folder, name) for name in names)):
            try:
                there = os.lstat(one)
            except FileNotFoundError:
                continue
            num_bytes += 0 if one == folder else there.st_size
            changed = max(changed, there.st_mtime)
    return num_bytes, changed, "" if about.st_uid == os.getuid() else "another user's"


def _cached(folder: Path) -> Iterator[Item]:
    """Find copies, weights, and what was left of them when a process was killed."""
    ours = Path(HED_WEIGHTS.member).name
    copies, kept = _entries(folder / "prepared"), _entries(folder)
    files = [
        ("copy", file) for file in copies if file.suffix in (".arrow", cache.ASIDE_SUFFIX) or _OLD.match(file.name)
    ]
    files += [("references", file) for file in copies if file.suffix == ".json"]
    files += [("weights", file) for file in kept if file.name == ours or file.name.startswith(f".{ours}.")]
    for kind, file in files:
        about = file.lstat()
        why = "a link" if file.is_symlink() else "" if about.st_uid == os.getuid() else "another user's"
        is_scrap = file.suffix not in (".arrow", ".json", Path(ours).suffix)
        if not why and is_scrap and time.time() - about.st_mtime < _YOUNG_SECONDS:
            why = "it may be in the making: changed in the last hour"
        if not why and cache.in_use(file):
            why = "in use by a process"
        yield Item(str(file), kind, about.st_size, why)


def _sessions(folder: Path) -> Iterator[Item]:
    """Find what Ray left behind; a session is alive as long as a process was started for it."""
    commands = [_command(process) for process in Path("/proc").iterdir() if process.name.isdigit()]
    for parent in (folder, folder / "ray"):
        for session in _entries(parent):
            if session.name.startswith("session_") and not session.is_symlink() and session.is_dir():
                num_bytes, changed, why = _measure_local(session)
                if not why and any(session.name in command for command in commands):
                    why = "a living Ray's"
                elif not why and time.time() - changed < _YOUNG_SECONDS / 60:
                    why = "a Ray may be starting: changed in the last minute"
                yield Item(str(session), "ray", num_bytes, why)


def _command(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StorageError(f"cannot list {folder}: {error}; check its permissions") from error
