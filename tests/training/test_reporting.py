"""What Ray Train is told, and that training does not wait for it."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest
import ray.train

from scfegan_ray.training import reporting
from scfegan_ray.training.reporting import POINTER, Reports


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, float], str | None]]:
    """Stand for Ray Train; return the metrics of each report and the URI in its checkpoint."""
    found: list[tuple[dict[str, float], str | None]] = []

    def report(metrics: dict[str, float], checkpoint: Any = None) -> None:
        uri = None if checkpoint is None else json.loads(Path(checkpoint.path, POINTER).read_text())["uri"]
        found.append((metrics, uri))

    monkeypatch.setattr(ray.train, "report", report)
    return found


def test_a_report_waits_for_its_checkpoint_and_nobody_for_the_report(
    told: list[tuple[dict[str, float], str | None]],
) -> None:
    is_whole = threading.Event()

    def written() -> str:
        assert is_whole.wait(30)
        return "s3://bucket/run/checkpoints/checkpoint-8"

    reports = Reports()
    reports.add({"images_seen": 8}, written)
    reports.add({"images_seen": 16}, lambda: None)
    reports.add({"images_seen": 24}, None)
    assert told == []
    is_whole.set()
    reports.close()
    assert told == [
        ({"images_seen": 8}, "s3://bucket/run/checkpoints/checkpoint-8"),
        ({"images_seen": 16}, None),
        ({"images_seen": 24}, None),
    ]


def test_a_report_that_fails_is_the_last_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def report(metrics: dict[str, float], checkpoint: Any = None) -> None:
        calls.append(metrics)
        raise OSError("no space left")

    monkeypatch.setattr(ray.train, "report", report)
    reports = Reports()
    for seen in (8, 16):
        reports.add({"images_seen": seen}, None)
    reports.close()
    assert calls == [{"images_seen": 8}]
    [line] = caplog.messages
    assert "no space left" in line and "there will be no others" in line


def test_a_report_that_hangs_holds_nobody_up(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    over = threading.Event()
    monkeypatch.setattr(ray.train, "report", lambda *arguments, **options: over.wait(30))
    monkeypatch.setattr(reporting, "_PATIENCE_SECONDS", 0.1)
    reports = Reports()
    reports.add({"images_seen": 8}, None)
    reports.close()
    over.set()
    assert "did not take all reports" in caplog.text
