"""What only a GPU can show: `pytest -m gpu` runs all of it and ends with a table, and skips without one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

DEVICE = torch.device(os.environ.get("GPU_TESTS_ON", "cuda:0"))
"""`GPU_TESTS_ON=cpu` tries these tests themselves out, as far as a CPU can; what they then say is of no GPU."""


def _why_not() -> str:
    """Return why the device cannot be used; "" where it can."""
    if DEVICE.type != "cuda" or torch.cuda.is_available():
        return ""
    return f"torch {torch.__version__} sees no CUDA device"


@pytest.fixture(scope="session", autouse=True)
def gpu() -> torch.device:
    """Return the device that the tests are about."""
    if reason := _why_not():
        pytest.skip(reason)
    return DEVICE


def _reports(reporter: Any) -> Iterator[pytest.TestReport]:
    """Give what each part of each test here came to."""
    for reports in reporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport) and report.nodeid.startswith("tests/gpu/"):
                yield report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print a table: what each test came to, its seconds, and the figures that it recorded."""
    outcomes: dict[str, str] = {}
    seconds: dict[str, float] = {}
    figures: dict[str, dict[str, object]] = {}
    for report in _reports(terminalreporter):
        name = report.nodeid.removeprefix("tests/gpu/")
        if report.when == "call" or not report.passed:
            outcomes[name] = report.outcome if report.when == "call" or report.skipped else "error"
        seconds[name] = seconds.get(name, 0.0) + report.duration
        figures.setdefault(name, {}).update(report.user_properties)
    if not outcomes:
        return
    terminalreporter.section("GPU")
    if reason := _why_not():
        terminalreporter.line(f"{len(outcomes)} tests were skipped: {reason}")
        return
    terminalreporter.line(f"{_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    width = max(map(len, outcomes))
    for name, outcome in sorted(outcomes.items()):
        found = ", ".join(f"{key} {_short(value)}" for key, value in figures[name].items())
        terminalreporter.line(f"{name:<{width}}  {outcome:<7} {seconds[name]:7.1f} s  {found}".rstrip())


def _device_name() -> str:
    if DEVICE.type != "cuda":
        return f"{DEVICE}, no GPU"
    return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(DEVICE)}"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
