"""Threads that are waited for to their end, however often Ctrl-C comes."""

from __future__ import annotations

import threading
from collections.abc import Callable


class LastingThread(threading.Thread):
    """A daemon thread that is known to have ended only when it has.

    Joining does not tell: in Python 3.11 a thread counts as ended once Ctrl-C breaks a join off (cpython bpo-45274),
    and whoever believes that ends Python under an event loop, or a compiler, that still runs.

    Args:
        work: to be done.
        name: of the thread.
    """

    def __init__(self, work: Callable[[], None], name: str) -> None:
        super().__init__(target=work, name=name, daemon=True)
        self._ended = threading.Event()

    def run(self) -> None:
        """Do the work."""
        try:
            super().run()
        finally:
            self._ended.set()

    def wait(self) -> None:
        """Wait until it has ended.

        Raises:
            KeyboardInterrupt: Ctrl-C came meanwhile; the thread goes on.
        """
        self._ended.wait()

    def outlast(self, on_interrupt: Callable[[], None] = lambda: None) -> None:
        """Wait until it has ended, whatever comes; at once where it was never started.

        Args:
            on_interrupt: called each time that Ctrl-C comes meanwhile.
        """
        while self.ident is not None and not self._ended.is_set():
            try:
                self._ended.wait()
            except KeyboardInterrupt:
                on_interrupt()
