"""Tells Ray Train of metrics and checkpoints, so that its dashboard, `Result` and Tune know them; and Ray's gauges.

Ray keeps checkpoints of its own only, and a report is a barrier that takes a second. So what it is given is a folder of
one small file that says where ours is, once that is whole; and the reports wait for each other on a thread, never the
loop. What Ray knows is for those who look; the run's `CheckpointStore` stays the truth.
"""

from __future__ import annotations

import json
import logging
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import ray.train
from ray.util.metrics import Gauge

from scfegan_ray.training.timing import GAUGES

logger = logging.getLogger(__name__)

POINTER = "checkpoint.json"
"""The one file of a checkpoint that Ray keeps; its `uri` is ours."""
_PATIENCE_SECONDS = 60.0


class Gauges:
    """What operators see of one rank, see `timing.GAUGES`: Ray exports each as `ray_scfegan_<name>` to Prometheus.

    Args:
        run_name: tag `run` of each.
        rank: tag `rank` of each.
    """

    def __init__(self, run_name: str, rank: int) -> None:
        tags = {"run": run_name, "rank": str(rank)}
        self._gauges = {
            name: Gauge(f"scfegan_{name}", meaning, tag_keys=tuple(tags)).set_default_tags(tags)
            for name, meaning in GAUGES.items()
        }

    def set(self, values: Mapping[str, float]) -> None:
        """Show the values of an interval; Ray takes them along when it next exports."""
        for name, value in values.items():
            self._gauges[name].set(value)


class Reports:
    """Makes the reports of one worker; every worker makes the same number of them."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[dict[str, float], Callable[[], str | None] | None] | None]
        self._waiting = queue.SimpleQueue()
        self._seconds: list[float] = []
        # A daemon, so that a report for which others are missing does not keep the process.
        self._thread = threading.Thread(target=self._work, name="reports", daemon=True)
        self._thread.start()

    def add(self, metrics: dict[str, float], written: Callable[[], str | None] | None) -> None:
        """Report later.

        Args:
            metrics: of held-back images, and images_seen.
            written: waits for the checkpoint that goes with them, and returns its URI; None where there is none.
        """
        self._waiting.put((metrics, written))

    def close(self) -> None:
        """Wait until all is reported, for a while."""
        self._waiting.put(None)
        self._thread.join(_PATIENCE_SECONDS)
        if self._thread.is_alive():
            logger.warning("Ray Train did not take all reports; metrics at MLflow and checkpoints are whole")
        elif self._seconds:
            mean = sum(self._seconds) / len(self._seconds)
            logger.debug("%d reports to Ray Train took %.2f s each, beside training", len(self._seconds), mean)

    def _work(self) -> None:
        while (one := self._waiting.get()) is not None:
            metrics, written = one
            uri = None if written is None else written()
            began = time.monotonic()
            try:
                self._report(metrics, uri)
            except Exception as error:  # what it shows matters less than training
                logger.warning("Ray Train did not take a report (%r); there will be no others", error)
                return
            self._seconds.append(time.monotonic() - began)

    def _report(self, metrics: dict[str, float], uri: str | None) -> None:
        if uri is None:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory(prefix="scfegan-report-") as folder:
            Path(folder, POINTER).write_text(json.dumps({"uri": uri}))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
