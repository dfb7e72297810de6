"""Feeds one rank by Ray Data: examples are made on whatever CPUs the cluster has, and come in order.

What Ray Data carries are positions of the global order: a block for each batch, holding where this rank's share of it
begins. One stage makes the share's bytes, and since those follow from the positions alone, it does not matter where, or
how often, as after the loss of a node. Ray Data keeps the blocks' order, and makes as many ahead as the memory allows
that it is given for them. It runs in an actor beside the rank, whose own threads it would hold up.

| stage | reads columns | gives columns |
| --- | --- | --- |
| `_make` | first: int64 | first: int64; content: large_binary; error, message: string |

`content` is a batch as `feed_process.Layout` has it. `error` and `message` are empty, or class and text of what went
wrong: Ray would pass it on as the text of a traceback.

Why not one dataset for all ranks, by `streaming_split`: it gives no order that can be relied on (ray#58658, ray#52005).
Why not one pipeline for a whole run: Ray Data holds the inputs of all that it will ever do, 3 ms and 2 kB each, and a
read task for each hangs beside a limit of memory (both tried with 2.60). So a run is cut into terms, of which the next
one begins before the last one ends.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import queue
import threading
import traceback
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
from ray.data import DataContext, ExecutionResources, TaskPoolStrategy
from ray.exceptions import RayError
from torch import Tensor

from scfegan_ray import errors, nodes
from scfegan_ray.data.examples import TrainingExamples
from scfegan_ray.data.feed_pool import NUM_SLOTS
from scfegan_ray.data.feed_process import Layout
from scfegan_ray.errors import FeedError, ScFeganError

_TERM_BATCHES = 256
_BROUGHT = 2
"""Batches that are brought to the rank's machine before it asks for them."""
_SPARE = 4
"""Batches for which Ray Data is given memory, besides three for each that is made at once."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What the feed of one rank may take of the cluster.

    Attributes:
        at_once: batches that are made at the same time.
        cpus: that Ray reserves for each.
    """

    at_once: int
    cpus: float


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
        self._source: Any = None
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
                .remote(self._work, first, reseeded_at, self._batch_size, self._budget, self.slots[slot].nbytes)
            )
        self._asked[slot] = self._bringing.submit(self._bring, self._source.next.remote(), slot, first)

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

    def close(self) -> None:
        """End the feed."""
        self.settle()
        self._bringing.shutdown()

    def _bring(self, given: Any, slot: int, first: int) -> None:
        try:
            [block] = ray.get(given)
            [row] = ray.get(block).to_batches()
        except RayError as error:
            raise FeedError(f"Ray Data makes no more training images: {error}") from error
        kind, message = row.column("error")[0].as_py(), row.column("message")[0].as_py()
        if message:
            raise getattr(errors, kind)(message) if kind else RuntimeError(f"a task of the feed failed: {message}")
        assert row.column("first")[0].as_py() == first, "blocks keep their order"
        self.slots[slot].numpy()[:] = np.frombuffer(row.column("content")[0].as_buffer(), np.uint8)


class _Source:
    """Actor beside a rank that runs Ray Data, and gives blocks in order."""

    def __init__(
        self,
        work: tuple[str, int],
        first: int,
        reseeded_at: tuple[int, ...],
        batch_size: int,
        budget: Budget,
        num_bytes: int,
    ) -> None:
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # that there is no bar
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        context.execution_options.resource_limits = ExecutionResources.for_limits(
            cpu=budget.at_once * budget.cpus, object_store_memory=(3 * budget.at_once + _SPARE) * num_bytes
        )
        # By which Ray Data estimates what it does not know yet.
        context.target_max_block_size = max(num_bytes, 1)
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
            term = self._begin()
            while True:
                following: Future[Iterator[Any]] | None = None
                for number, block in enumerate(term):
                    if number == _TERM_BATCHES // 2:
                        following = beside.submit(self._begin)
                    yield block
                assert following is not None, "a term has all its batches"
                term = following.result()

    def _begin(self) -> Iterator[Any]:
        """Begin to make a term's batches; return references to their blocks."""
        positions = [pa.table({"first": [next(self._positions)]}) for _ in range(_TERM_BATCHES)]
        made = ray.data.from_arrow(positions).map_batches(
            _make,
            fn_args=[*self._work, self._reseeded_at],
            batch_size=None,
            batch_format="pyarrow",
            compute=TaskPoolStrategy(self._budget.at_once),
            num_cpus=self._budget.cpus,
        )
        bundles = made.iter_internal_ref_bundles()
        first = next(bundles)  # which makes it begin
        return (block for bundle in itertools.chain([first], bundles) for block in bundle.block_refs)


def _make(block: pa.Table, said: str, share: int, reseeded_at: tuple[int, ...]) -> pa.Table:
    """Make one share; see the module's docstring."""
    [first] = block.column("first").to_pylist()
    error, message, content = "", "", np.empty(0, np.uint8)
    try:
        examples = _opened(said)
        layout = Layout(share, examples.dataset.info.size_px)
        content = np.zeros(layout.num_bytes, np.uint8)
        arrays = layout.arrays(content)
        for at in range(share):
            for name, array in examples.at(first + at, reseeded_at).items():
                arrays[name][at] = array
    except ScFeganError as raised:
        error, message = type(raised).__name__, str(raised)
    except Exception:  # the rank is to say it
        message = traceback.format_exc()
    ends = pa.py_buffer(np.array([0, len(content)], np.int64))
    bytes_ = pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, pa.py_buffer(content)])
    return pa.table({"first": [first], "content": bytes_, "error": [error], "message": [message]})


@lru_cache(maxsize=1)
def _opened(said: str) -> TrainingExamples:
    """Open what a worker process of Ray makes examples of, once."""
    cv2.setNumThreads(1)
    return TrainingExamples.open(json.loads(said))
