"""Ctrl-C and SIGTERM during long work: asked, ended, ignored, and what else ends it."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest

from scfegan_ray import locks
from scfegan_ray.errors import StorageError
from scfegan_ray.training import stopping


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_asks_to_stop_and_the_second_ends(number: signal.Signals) -> None:
    asked = threading.Event()
    before = signal.getsignal(number)

    def work() -> str:
        signal.raise_signal(number)
        return "stopped" if asked.wait(10) else "not asked"

    assert stopping.interruptible(work, asked.set, lambda: None) == "stopped"
    assert signal.getsignal(number) is before

    asked.clear()
    with pytest.raises(KeyboardInterrupt):
        stopping.interruptible(work, lambda: signal.raise_signal(number), lambda: None)
    assert signal.getsignal(number) is before


def test_a_signal_that_is_ignored_does_not_stop_training() -> None:
    asked = threading.Event()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stopping.interruptible(lambda: signal.raise_signal(signal.SIGINT), asked.set, lambda: None)
        assert not asked.is_set()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("before", [signal.default_int_handler, signal.SIG_IGN])
def test_a_lock_that_was_lost_ends_training(before: Any) -> None:
    handlers = {number: signal.signal(number, before) for number in (signal.SIGINT, signal.SIGTERM)}
    lock, over = locks.Lock("run tiny"), threading.Event()
    lock.lose("process 7 on elsewhere")
    try:
        with pytest.raises(StorageError, match="run tiny was taken over by process 7 on elsewhere"):
            stopping.interruptible(lambda: over.wait(10), over.set, lock.check)
        assert not over.is_set(), "nobody is asked to stop"
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
