"""Progress of long work as log lines with a rate and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable


class Progress:
    """Say how far long work is: soon after its start, then at least every so many seconds, and at its end."""

    def __init__(
        self,
        name: str,
        *,
        total: int,
        log: Callable[[str], object],
        start: int = 0,
        unit: str = "images",
        every_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._total, self._unit, self._log = name, total, unit, log
        self._first, self._every, self._clock = start, every_seconds, clock
        self._began = self._said = clock()
        self._done = start

    @property
    def rate(self) -> float:
        """Units per second since the start."""
        return (self._done - self._first) / max(self._clock() - self._began, 1e-9)

    @property
    def seconds_left(self) -> float:
        """Seconds until the end at the present rate; infinite where nothing was done yet."""
        return (self._total - self._done) / self.rate if self.rate else float("inf")

    def update(self, done: int, note: str = "") -> None:
        """Take notice of the state, and log it when it is time and something was done since the start.

        Args:
            done: units done so far, counted like `start` and `total`.
            note: more to say at the end of the line.
        """
        self._done = done
        if done <= self._first:
            return
        now = self._clock()
        if now - self._said < self._every and done < self._total:
            return
        self._said = now
        left = format_seconds(self.seconds_left)
        line = f"{self._name} {done}/{self._total} {self._unit}, {self.rate:.1f}/s, ETA {left}"
        self._log(f"{line}, {note}" if note else line)


def format_seconds(seconds: float) -> str:
    """Write a duration for people: `42s`, `3m05s`, `2h07m`, or `?` where it is unknown."""
    if seconds == float("inf"):
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
