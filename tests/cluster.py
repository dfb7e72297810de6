"""Stands for Ray in tests of what Ray does not matter to, where it would cost ten seconds each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from scfegan_ray.config import DataConfig
from scfegan_ray.data import prepare
from scfegan_ray.data.plan import Plan


class InThisProcess:
    """Does work in this process, and stops where it is told to."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.stop_after: int | None = None
        self.num_sessions = 0

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        self.num_sessions += 1
        yield


class Cluster(InThisProcess):
    """Makes shards."""

    def run(self, plan: Plan, config: DataConfig, missing: list[int]) -> tuple[float, int]:
        maker = prepare.ShardMaker(config, plan.source, plan.uri, plan.settings)
        for done, number in enumerate(missing):
            if done == self.stop_after:
                raise KeyboardInterrupt
            maker.make(number, plan.keys_of(number).to_pylist())
            self.made.append(number)
        return 1.0, plan.num_photographs(missing)
