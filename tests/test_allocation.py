"""Memory of one large array serves the next, on whichever thread; and threads follow the CPU quota."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from running import run_code

from scfegan_ray.allocation import KEEP_MEMORY, num_cores, training_memory

_HUGE_PAGE_BYTES = 2 << 20
_ARRAY_BYTES = 128 << 20
_COUNT_FAULTS = f"""
import resource, threading
import numpy as np

def work():
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        array = np.ones({_ARRAY_BYTES}, np.uint8)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        del array

{{call}}
"""


def _page_faults(call: str, folder: Path, environment: dict[str, str]) -> list[int]:
    return [int(line) for line in run_code(_COUNT_FAULTS.format(call=call), folder, environment).split()]


@pytest.mark.parametrize("call", ["work()", "threading.Thread(target=work).start()"], ids=["main", "another"])
def test_the_next_array_costs_no_new_pages(call: str, tmp_path: Path) -> None:
    pages = _ARRAY_BYTES // _HUGE_PAGE_BYTES  # more, where pages are small
    first, *others = _page_faults(call, tmp_path, KEEP_MEMORY)
    assert first >= pages
    assert max(others) < pages / 4
    assert min(_page_faults(call, tmp_path, {})) >= pages, "glibc's own way, which the settings are there to change"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    return tmp_path


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


V2 = {
    "proc/self/cgroup": "0::/kubepods/pod1/box\n",
    "proc/self/mountinfo": "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw,nsdelegate\n",
}
GROUP = "sys/fs/cgroup/kubepods/pod1/box"


@pytest.mark.parametrize(
    ("quotas", "cores"),
    [
        ({}, 64),
        ({"box": "max 100000"}, 64),
        ({"box": "400000 100000"}, 4),
        ({"box": "50000 100000"}, 1),
        ({"box": "250000 100000"}, 3),
        ({"box": "10000000 100000"}, 64),
        ({"pod1": "200000 100000", "box": "max 100000"}, 2),
        ({"kubepods": "300000 50000", "pod1": "800000 100000", "box": "700000 100000"}, 6),
    ],
)
def test_quota_of_version_2_is_the_least_on_the_path(root: Path, quotas: dict[str, str], cores: int) -> None:
    folders = {"box": GROUP, "pod1": GROUP.rpartition("/")[0], "kubepods": "sys/fs/cgroup/kubepods"}
    write(root, V2 | {f"{folders[name]}/cpu.max": f"{text}\n" for name, text in quotas.items()})
    assert num_cores(root) == cores


def test_quota_of_version_1(root: Path) -> None:
    write(
        root,
        {
            "proc/self/cgroup": "4:memory:/m\n3:cpu,cpuacct:/slurm/job\n0::/\n",
            "proc/self/mountinfo": "33 32 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
            "34 32 0:31 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
            "35 32 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup rw\n",
            "sys/fs/cgroup/cpu,cpuacct/slurm/job/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/slurm/job/cpu.cfs_period_us": "100000\n",
        },
    )
    assert num_cores(root) == 64
    write(root, {"sys/fs/cgroup/cpu,cpuacct/slurm/cpu.cfs_quota_us": "350000\n"})
    write(root, {"sys/fs/cgroup/cpu,cpuacct/slurm/cpu.cfs_period_us": "100000\n"})
    assert num_cores(root) == 4


def test_container_sees_its_group_at_the_top_of_the_mount(root: Path) -> None:
    """Docker with version 1: the group's path is the host's, and only the group itself is mounted."""
    mount = "34 32 0:31 /docker/abc /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu\n"
    write(root, {"proc/self/cgroup": "3:cpu:/docker/abc\n", "proc/self/mountinfo": mount})
    write(root, {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"})
    assert num_cores(root) == 2


def test_without_control_groups_the_affinity_counts(root: Path) -> None:
    assert num_cores(root) == 64
    assert num_cores() >= 1


def test_a_workers_threads_follow_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    from scfegan_ray import allocation
    from scfegan_ray.training import worker

    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    monkeypatch.setattr(allocation, "_cpu_quota", lambda root: 4.0)
    assert [worker._share_of_cores(count) for count in (1, 2, 8)] == [4, 2, 1]


def test_memory_is_kept_where_cpus_train() -> None:
    assert training_memory(use_gpu=False) == KEEP_MEMORY
    assert training_memory(use_gpu=True) == {}
