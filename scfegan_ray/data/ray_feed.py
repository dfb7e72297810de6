"""Feeds one rank by Ray Data: examples are made on whatever CPUs the cluster has, and come in order.

What Ray Data carries are positions of the global order: a row for each batch, which says where this rank's share of it
begins. One stage makes the shares' bytes, in tasks that give several blocks each, and since those follow from the
positions alone, it does not matter where, or how often, as after the loss of a node. Ray Data keeps the blocks' order,
and makes as many ahead as the memory allows that it is given for them. It runs in an actor beside the rank, whose own
threads it would hold up.

| stage | reads columns | gives columns |
| --- | --- | --- |
| `_make` | first: int64 | first: int64; content: large_binary; error, message: string |

`content` is a share of a batch as `feed_process.Layout` has it. `error` and `message` are empty, or class and text of
what went wrong: Ray would pass it on as the text of a traceback.

Why not one dataset for all ranks, by `streaming_split`: it gives no order that can be relied on (ray#58658, ray#52005).
Why not one pipeline for a whole run: Ray Data holds the inputs of all that it will ever do, and a read task for each
hangs beside a limit of memory (tried with 2.60). So a run is cut into terms, of which the next one begins before the
last one ends. `from_blocks` and not `from_arrow`, which starts a task for each block, whose CPU there may not be.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import logging
import math
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from numpy.typing import NDArray
from ray.data import DataContext, ExecutionResources, TaskPoolStrategy
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data.read_api import from_blocks
from ray.exceptions import RayError
from torch import Tensor

from scfegan_ray import nodes
from scfegan_ray.allocation import KEEP_MEMORY
from scfegan_ray.data.examples import TrainingExamples
from scfegan_ray.data.feed_pool import NUM_SLOTS
from scfegan_ray.data.feed_process import Layout, Trouble, error_of, trouble_of
from scfegan_ray.errors import ConfigError, FeedError

FEWEST_CPUS = 0.1
"""For each rank, if no more are left."""

BLOCK_ROWS = 1 << 13
"""Rows of pixels in a block: 16 images of 512 px, 128 of 64, a tenth of a second's work."""
_TASK_BLOCKS = 4
"""Blocks that a task makes. After one ends, its core waits up to a fifth of a second for the next: Ray Data waits a
tenth for all tasks that are under way, and learns separately of the last block and of the end."""
_TERM_TASKS = 32
"""Of a term, or four times as many as run at once."""
_BROUGHT = 2
"""Blocks that are brought to the rank's machine before it asks for them."""
_SPARE = 4
"""Blocks for which Ray Data is given memory, besides twice those of the tasks that run at once: with less it begins
none while a slow trainer takes what the last ones made."""
_REST_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What the feed of one rank may take, so that ranks, feeds and trials fit the cluster that is there.

    Attributes:
        num_workers: ranks.
        cpus_per_worker: that Ray reserves for each.
        num_trials: trainings that share the cluster evenly.
        fewest: blocks that are made at the same time even where no CPU is left, for the cluster is said to grow.
    """

    num_workers: int
    cpus_per_worker: float
    num_trials: int = 1
    fewest: int = 0

    def now(self) -> tuple[int, float]:
        """Return how many blocks may be made at the same time by now, and the CPUs that Ray reserves for each.

        Raises:
            ConfigError: none.
        """
        there = ray.cluster_resources().get("CPU", 0.0)
        left = there / self.num_trials / self.num_workers - self.cpus_per_worker
        if left >= 1:
            return int(left), 1.0
        if left >= FEWEST_CPUS:
            return 1, math.floor(left * 100) / 100
        if self.fewest:
            return self.fewest, 1.0  # Ray Data asks the cluster to grow
        raise ConfigError(
            f"--data.feed ray finds no CPUs: the cluster has {there:g}, {self.num_workers} workers take "
            f"{self.num_workers * self.cpus_per_worker:g}; lower --train.cpus-per-worker or --train.num-workers, or "
            "give --data.feed local"
        )

    def waiting_bytes(self, at_once: int, block_bytes: int) -> float:
        """Return what blocks may take of the object stores while they wait.

        An even share of a quarter of them at most, for two terms may overlap; but always what one task needs.
        """
        stores: float = ray.cluster_resources().get("object_store_memory", 0.0)
        share = stores / 4 / self.num_trials / self.num_workers
        wanted, least = ((2 * _TASK_BLOCKS * tasks + _SPARE) * block_bytes for tasks in (at_once, 1))
        return max(least, min(wanted, share))


class RayPool:
    """Has the batches of one rank made by Ray Data; as `feed_pool.FeedPool`.

    Args:
        said: `TrainingExamples.said`.
        share: examples of a batch.
        layout: of a batch.
        batch_size: images of a global batch.
        budget: what it may take.

    Attributes:
        slots: (`NUM_SLOTS`, bytes of a batch) uint8.
    """

    def __init__(self, said: Mapping[str, Any], share: int, layout: Layout, *, batch_size: int, budget: Budget) -> None:
        self.slots = torch.zeros((NUM_SLOTS, layout.num_bytes), dtype=torch.uint8)
        self._work = json.dumps(said), share
        self._batch_size, self._budget = batch_size, budget
        self._batches = max(1, BLOCK_ROWS // said["info"]["size_px"] // share)
        self._source: Any = None
        self._rows: Iterator[dict[str, pa.Scalar]] = iter(())
        self._bringing = ThreadPoolExecutor(1, "feed")
        self._asked: dict[int, Future[None]] = {}

    @property
    def ids(self) -> list[int]:
        """Of processes of this machine: none that belong to this rank."""
        return []

    def ask(self, slot: int, first: int, reseeded_at: tuple[int, ...]) -> None:
        """Have the batch whose first example is at a position brought to a slot; after `settle`, from any position."""
        if self._source is None:
            self._source = (
                ray.remote(_Source)
                .options(num_cpus=0, scheduling_strategy=nodes.this_node())
                .remote(
                    self._work,
                    first,
                    reseeded_at,
                    self._batch_size,
                    self._budget,
                    self._batches,
                    self.slots[slot].nbytes,
                )
            )
        self._asked[slot] = self._bringing.submit(self._bring, self._source, slot, first)

    def is_made(self, slot: int) -> bool:
        """Tell whether `wait` would give a batch without waiting."""
        asked = self._asked[slot]
        return asked.done() and asked.exception() is None

    def wait(self, slot: int) -> Tensor:
        """Return the bytes of a batch once they are here.

        Raises:
            ScFeganError: what making an example raised, of the same class.
            FeedError: Ray Data ended.
        """
        self._asked[slot].result()
        return self.slots[slot]

    def settle(self) -> None:
        """Let go of all that is under way."""
        if self._source is not None:
            ray.kill(self._source)
            self._source = None
        for asked in self._asked.values():
            asked.cancel()
            with contextlib.suppress(Exception):
                asked.result()
        self._asked.clear()
        self._rows = iter(())

    def close(self) -> None:
        """End the feed."""
        self.settle()
        self._bringing.shutdown()

    def _bring(self, source: Any, slot: int, first: int) -> None:
        try:
            row = next(self._rows, None)
            if row is None:
                [block] = ray.get(source.next.remote())
                self._rows = _rows(ray.get(block))
                row = next(self._rows)
        except RayError as error:
            raise FeedError(f"Ray Data makes no more training images: {error}") from error
        if row["message"].as_py():
            raise error_of((row["error"].as_py(), row["message"].as_py()))
        assert row["first"].as_py() == first, "blocks keep their order"
        self.slots[slot].numpy()[:] = np.frombuffer(row["content"].as_buffer(), np.uint8)


def _rows(block: pa.Table) -> Iterator[dict[str, pa.Scalar]]:
    """Give the rows of a block without copying what they hold."""
    for at in range(block.num_rows):
        yield {name: block.column(name)[at] for name in block.column_names}


class _Loop(ExecutionCallback):  # type: ignore[misc]
    """Two changes to Ray Data's loop: it takes what a budget says, and rests where nothing happens.

    Ray Data shares a cluster's resources among all executions, in whole CPUs of each node: on nodes of one CPU two of
    them get none, and make one block at a time. And one whose actor was killed counts for three minutes more. Budgets
    share the cluster already; terms that overlap may both have all of theirs.

    While it may make no more, the loop would take a whole core.
    """

    def __init__(self) -> None:
        self._seen: list[tuple[Any, ...]] = []

    def before_execution_starts(self, executor: Any) -> None:
        """Leave `ExecutionOptions.resource_limits` as the only limit."""
        executor._resource_manager._get_total_resources = ExecutionResources.inf

    def on_execution_step(self, executor: Any) -> None:
        """Wait where this step began, ended and passed on nothing."""
        metrics = [operator.metrics for operator in executor._topology]
        now = [(one.num_tasks_submitted, one.num_tasks_finished, one.num_outputs_taken) for one in metrics]
        if now == self._seen:
            time.sleep(_REST_SECONDS)
        self._seen = now


class _Source:
    """Actor beside a rank that runs Ray Data, and gives blocks in order."""

    def __init__(
        self,
        work: tuple[str, int],
        first: int,
        reseeded_at: tuple[int, ...],
        batch_size: int,
        budget: Budget,
        block_batches: int,
        num_bytes: int,
    ) -> None:
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # that there is no bar
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        context.custom_execution_callback_classes.append(_Loop)
        self._block_batches, self._block_bytes = block_batches, num_bytes * block_batches
        # By which Ray Data estimates what it does not know yet; and a block is never cut.
        context.target_max_block_size = self._block_bytes
        self._work, self._reseeded_at, self._budget = work, reseeded_at, budget
        self._positions = itertools.count(first, batch_size)
        self._brought: queue.Queue[Any] = queue.Queue(_BROUGHT)
        threading.Thread(target=self._run, daemon=True).start()

    def next(self) -> list[Any]:
        """Return a reference to the next block, in a list, so that Ray does not replace it by the block."""
        found = self._brought.get()
        if isinstance(found, BaseException):
            raise found
        return [found]

    def _run(self) -> None:
        try:
            for block in self._blocks():
                ray.wait([block], timeout=0, fetch_local=True)  # begins to bring it here
                self._brought.put(block)
        except Exception as error:  # told to the rank, which ends
            self._brought.put(error)

    def _blocks(self) -> Iterator[Any]:
        with ThreadPoolExecutor(1) as beside:
            num_tasks, term = self._begin()
            while True:
                following: Future[tuple[int, Iterator[Any]]] | None = None
                for number, block in enumerate(term):
                    if number == num_tasks * _TASK_BLOCKS // 2:
                        following = beside.submit(self._begin)
                    yield block
                assert following is not None, "a term has all its blocks"
                num_tasks, term = following.result()

    def _begin(self) -> tuple[int, Iterator[Any]]:
        """Begin to make a term's blocks, with what the cluster has by now.

        Returns:
            How many tasks make them, references to them.
        """
        at_once, cpus = self._budget.now()
        num_tasks = max(_TERM_TASKS, 4 * at_once)
        DataContext.get_current().execution_options.resource_limits = ExecutionResources.for_limits(
            cpu=at_once * cpus,
            gpu=0,
            memory=0,
            object_store_memory=self._budget.waiting_bytes(at_once, self._block_bytes),
        )
        positions = [
            pa.table({"first": list(itertools.islice(self._positions, _TASK_BLOCKS * self._block_batches))})
            for _ in range(num_tasks)
        ]
        made = from_blocks(positions).map_batches(
            _make,
            fn_args=[*self._work, self._reseeded_at, self._block_batches],
            batch_size=None,
            batch_format="pyarrow",
            compute=TaskPoolStrategy(at_once),
            num_cpus=cpus,
            runtime_env={"env_vars": KEEP_MEMORY},
        )
        bundles = made.iter_internal_ref_bundles()
        first = next(bundles)  # which makes it begin
        return num_tasks, (block for bundle in itertools.chain([first], bundles) for block in bundle.block_refs)


def _make(
    task: pa.Table, said: str, share: int, reseeded_at: tuple[int, ...], block_batches: int
) -> Iterator[pa.Table]:
    """Make shares of a task's batches, a block after the other; see the module's docstring."""
    layout = Layout(share, json.loads(said)["info"]["size_px"])

    def fill(content: NDArray[np.uint8], first: int) -> None:
        _opened(said).fill(layout.arrays(content), range(share), first, reseeded_at)

    firsts = task.column("first").to_pylist()
    for at in range(0, len(firsts), block_batches):
        block = firsts[at : at + block_batches]
        contents = np.zeros((len(block), layout.num_bytes), np.uint8)
        troubles = [trouble_of(functools.partial(fill, *one)) or ("", "") for one in zip(contents, block, strict=True)]
        yield _table(block, contents, troubles)


def _table(firsts: list[int], contents: NDArray[np.uint8], troubles: list[Trouble]) -> pa.Table:
    num_rows, num_bytes = contents.shape
    ends = np.arange(num_rows + 1, dtype=np.int64) * num_bytes
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(contents.reshape(-1))]
    return pa.table(
        {
            "first": firsts,
            "content": pa.Array.from_buffers(pa.large_binary(), num_rows, buffers),
            "error": [error for error, _ in troubles],
            "message": [message for _, message in troubles],
        }
    )


@lru_cache(maxsize=1)
def _opened(said: str) -> TrainingExamples:
    """Open what a worker process of Ray makes examples of, once."""
    cv2.setNumThreads(1)
    return TrainingExamples.open(json.loads(said))
