"""How the user's request to end training reaches the worker that writes checkpoints.

Ctrl-C and SIGTERM come to the driver (`interruptible`), which sets a flag (`StopSender`) in an actor beside it; rank 0
asks for it between updates (`StopReceiver`), and all ranks stop after the same one.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import ray
from ray import ObjectRef
from ray.actor import ActorHandle

from scfegan_ray import nodes

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

_ASK_EVERY_SECONDS = 1.0
_MOMENT_SECONDS = 10.0


def interruptible(work: Callable[[], ResultT], stop: Callable[[], object], check: Callable[[], object]) -> ResultT:
    """Do long work; the first Ctrl-C or SIGTERM asks it to stop, the second one is a KeyboardInterrupt within it.

    What this process was started to ignore it goes on to ignore.

    Args:
        work: is done on this thread, as Ray does not survive the end of a process in which another one waits for it.
        stop: asks it to come to an end.
        check: is called about twice a second, on another thread; what it raises is raised within the work.
    """
    here = threading.get_ident()
    if here != threading.main_thread().ident:
        return work()  # a trial of a search, which Tune ends in its own way
    over, failures, asked = threading.Event(), list[BaseException](), False
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_signal(number: int, frame: object) -> None:
        nonlocal asked
        if over.is_set():
            return
        if not failures and before[number] is signal.SIG_IGN:
            return
        if asked or failures:
            raise KeyboardInterrupt  # nothing else ends a wait for Ray
        asked = True
        logger.warning("stopping after a last checkpoint; interrupt once more to stop without one")
        stop()

    def watch() -> None:
        while not over.wait(0.5):
            try:
                check()
            except BaseException as error:
                failures.append(error)
                signal.pthread_kill(here, signal.SIGTERM)
                return

    watcher = threading.Thread(target=watch, name="check", daemon=True)
    watcher.start()
    try:
        for number in before:
            signal.signal(number, on_signal)
        return work()
    except KeyboardInterrupt:
        if failures:
            raise failures[0] from None
        raise
    finally:
        over.set()
        watcher.join()
        for number, handler in before.items():
            signal.signal(number, handler)


class StopSender:
    """The user's request to end training, which workers ask for; without any that heeds it, training ends at once."""

    def __init__(self) -> None:
        # Beside the driver: a node that is lost takes neither it nor the request along.
        self.flag = ray.remote(num_cpus=0)(_StopFlag).options(scheduling_strategy=nodes.this_node()).remote()
        self._told: ObjectRef | None = None
        self._lost_at: float | None = None

    def tell(self) -> None:
        """Ask the workers to write a last checkpoint and to end."""
        self._told = self.flag.set.remote()

    def check(self) -> None:
        """Look whether a worker is there that will do so; once told, this may take seconds.

        Raises:
            KeyboardInterrupt: none is: it has not started, or is lost.
        """
        if self._told is None:
            return
        try:
            writer = ray.get(self._told, timeout=_ASK_EVERY_SECONDS)
            if writer is not None:
                ray.get(writer.__ray_ready__.remote(), timeout=_ASK_EVERY_SECONDS)
                return
        except ray.exceptions.GetTimeoutError:
            return  # it is busy, or Ray has not noticed yet that it is lost
        except ray.exceptions.RayError:
            # One that has done so ends, too, and a moment later training does.
            self._lost_at = self._lost_at or time.monotonic()
            if time.monotonic() - self._lost_at < _MOMENT_SECONDS:
                return
        logger.warning("no worker is at work that could write one")
        raise KeyboardInterrupt


class _StopFlag:
    """Carries the user's request to end from the driver to the worker that writes checkpoints."""

    def __init__(self) -> None:
        self._is_set = False
        self._writer: ActorHandle | None = None

    def join(self, writer: ActorHandle) -> None:
        """Note the worker that will ask from now on."""
        self._writer = writer

    def set(self) -> ActorHandle | None:
        """Set it; return the worker that joined last."""
        self._is_set = True
        return self._writer

    def is_set(self) -> bool:
        """Tell whether training is to end."""
        return self._is_set


class StopReceiver:
    """Knows whether the driver wants training to end, without ever waiting for it."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        if actor is not None:
            actor.join.remote(ray.get_runtime_context().current_actor)
        self._answer: Any = None
        self._asked_at = time.monotonic()
        self._is_set = False

    def is_set(self) -> bool:
        """Tell what is known by now."""
        now = time.monotonic()
        try:
            if self._actor is not None and self._answer is None and now - self._asked_at > _ASK_EVERY_SECONDS:
                self._answer, self._asked_at = self._actor.is_set.remote(), now
            if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
                self._is_set, self._answer = self._is_set or ray.get(self._answer), None
        except ray.exceptions.RayError as error:
            # Its process is gone; training can do without.
            logger.warning("an interrupt will no longer wait for a last checkpoint: %s", error)
            self._actor = self._answer = None
        return self._is_set
