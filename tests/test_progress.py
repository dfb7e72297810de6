"""Progress lines: when they come, what they say."""

from __future__ import annotations

import pytest

from scfegan_ray.progress import Progress, format_seconds


def test_lines_come_every_few_seconds_and_at_the_end() -> None:
    now, lines = [0.0], list[str]()
    progress = Progress("train", total=100, start=20, log=lines.append, every_seconds=5.0, clock=lambda: now[0])
    for done in range(21, 101):
        now[0] += 0.5
        progress.update(done)
    assert len(lines) == 8
    # 10 images in 5 seconds, 70 left.
    assert lines[0] == "train 30/100 images, 2.0/s, ETA 35s"
    assert lines[-1] == "train 100/100 images, 2.0/s, ETA 0s"


def test_seconds_left_follow_the_rate() -> None:
    now = [0.0]
    progress = Progress("train", total=100, log=list[str]().append, clock=lambda: now[0])
    assert progress.seconds_left == float("inf"), "nothing was done yet"
    now[0] = 4.0
    assert progress.seconds_left == float("inf")
    progress.update(20)
    assert (progress.rate, progress.seconds_left) == (5.0, 16.0)
    progress.update(100)
    assert progress.seconds_left == 0.0


def test_seconds_left_of_a_resumed_run() -> None:
    now = [0.0]
    progress = Progress("train", total=100, start=60, log=list[str]().append, clock=lambda: now[0])
    now[0] = 4.0
    progress.update(60)
    assert (progress.rate, progress.seconds_left) == (0.0, float("inf"))
    progress.update(80)
    assert (progress.rate, progress.seconds_left) == (5.0, 4.0)


def test_note_is_added() -> None:
    lines: list[str] = []
    Progress("x", total=1, log=lines.append, clock=lambda: 0.0).update(1, "loss 3")
    assert lines[0].endswith(", loss 3")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.4, "59s"), (185, "3m05s"), (7620, "2h07m"), (float("inf"), "?")],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_resumed_work_has_no_rate_before_its_first_step() -> None:
    progress = Progress("x", total=100, start=40, log=lambda line: None, clock=lambda: 0.0)
    assert (progress.rate, progress.seconds_left) == (0.0, float("inf"))
