"""Ctrl-C and SIGTERM during long work: asked, ended, ignored, and what else ends it."""

from __future__ import annotations

import signal
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import ray

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


class Fakes:
    """Stands for Ray: what is asked is answered at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.writer: object = SimpleNamespace(__ray_ready__=SimpleNamespace(remote=lambda: "ready"))
        self.is_alive = True
        flag = SimpleNamespace(set=SimpleNamespace(remote=lambda: "told"))
        made = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda: flag))
        monkeypatch.setattr(ray, "remote", lambda **_: lambda kind: made)
        monkeypatch.setattr(ray, "get", self._get)
        monkeypatch.setattr(stopping.nodes, "this_node", lambda: None)

    def _get(self, ref: str, timeout: float) -> object:
        if ref == "told":
            return self.writer
        if not self.is_alive:
            raise ray.exceptions.RayActorError
        return True


def test_worker_that_is_lost_is_waited_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes, stop = Fakes(monkeypatch), stopping.StopSender()
    stop.check()
    stop.tell()
    for _ in range(4):
        stop.check()
    fakes.is_alive = False
    for _ in range(4):
        stop.check()  # it may have written its checkpoint: training ends by itself
    monkeypatch.setattr(stopping, "_MOMENT_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        stop.check()


def test_worker_that_never_came_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes, stop = Fakes(monkeypatch), stopping.StopSender()
    fakes.writer = None
    stop.check()
    stop.tell()
    with pytest.raises(KeyboardInterrupt):
        stop.check()
