"""What a process gets of its machine: cores, and memory that it keeps from one image or batch to the next."""

from __future__ import annotations

import math
import os
from pathlib import Path, PurePosixPath

KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_ARENA_MAX": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""Environment that lets glibc keep the memory of one image or batch for the next: by default it goes back to the system
and comes again page by page. And asks for that memory in huge pages. All threads share the main thread's arena: in any
other one glibc keeps nothing larger than 64 MiB, and Ray Train's loop runs on a thread of its own, where that took a
tenth of an update's time at 256 px."""


def training_memory(use_gpu: bool) -> dict[str, str]:
    """Return the environment of a process that trains: `KEEP_MEMORY` where it does so on CPUs.

    Where a GPU trains, the host only holds batches, in buffers of their own.
    """
    return {} if use_gpu else KEEP_MEMORY


def num_cores(root: str | Path = "/") -> int:
    """Return how many cores this process may keep busy: those it may run on, but no more than its CPU quota allows.

    A quota is that of its control group, version 1 or 2, or of one that the group lies in, whichever is least; part of
    a core counts as a whole one.

    Args:
        root: folder that has `proc` and `sys` of the system below it.
    """
    quota = _cpu_quota(Path(root))
    allowed = len(os.sched_getaffinity(0))
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def _cpu_quota(root: Path) -> float | None:
    """Return the least quota on the path of this process's control groups, in cores; None where there is none."""
    groups: dict[str, str] = {}
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, group = line.split(":", 2)
        groups |= dict.fromkeys(controllers.split(","), group)
    quotas: list[float] = []
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        _, _, _, top, mount, *_ = before.split(" ")
        controller = "" if kind == "cgroup2" else "cpu"
        if kind not in ("cgroup", "cgroup2") or controller not in groups or controller not in ["", *options.split(",")]:
            continue
        # A container sees its own group as the top of the mount, and perhaps its path from outside of it.
        ours, folder = PurePosixPath(groups[controller]), root / mount.lstrip("/")
        below = ours.relative_to(top) if ours.is_relative_to(top) else ours.relative_to("/")
        for place in (folder, *(folder.joinpath(*below.parts[: at + 1]) for at in range(len(below.parts)))):
            quotas += _quota(place)
    return min(quotas, default=None)


def _quota(group: Path) -> list[float]:
    """Return what one group says: no or one number of cores."""
    words = " ".join(_lines(group / "cpu.max")).split()
    if not words:
        words = [*_lines(group / "cpu.cfs_quota_us"), *_lines(group / "cpu.cfs_period_us")]
    try:
        share, period = (int(word) for word in words)
    except ValueError:  # "max", or nothing
        return []
    return [share / period] if share > 0 and period > 0 else []


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
