"""Memory of one large array serves the next, on whichever thread."""

from __future__ import annotations

from pathlib import Path

import pytest
from running import run_code

from scfegan_ray.allocation import KEEP_MEMORY

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
