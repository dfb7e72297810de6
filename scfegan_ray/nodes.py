"""What every node of a cluster is asked before work starts, above all whether it sees the places on a file system.

Of those, the driver leaves a marker file in each folder that is written to; where files are only read, their names
tell. Shared file systems and several nodes on one machine pass. Nodes that come late look when they start.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from scfegan_ray import storage
from scfegan_ray.errors import ConfigError

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

_NAMES = 8
_PATIENCE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Landmarks:
    """Files by which a node tells that it sees the driver's places; small enough to be sent to every worker.

    Attributes:
        files: (path, setting that names its place) each.
    """

    files: tuple[tuple[str, str], ...] = ()

    def check(self) -> None:
        """Look for them from this process.

        Raises:
            ConfigError: one is not there.
        """
        for path, setting in self.files:
            if not os.path.lexists(path):
                raise ConfigError(
                    f"{setting} is on one node's own disk: node {socket.gethostname()} does not see {path}; give a "
                    "place that all nodes reach: a shared file system, s3://…, or for MLflow a server"
                )


@contextlib.contextmanager
def seen_by_all(written: Mapping[str, str | None], read: Mapping[str, str | None]) -> Iterator[Landmarks]:
    """Make sure that every node sees some places; on a cluster of one node nothing is done.

    Args:
        written: setting -> URI of a folder that is written to, or None; only local ones are looked at.
        read: setting -> URI of a file or folder that is only read, or None.

    Yields:
        What a worker that starts later, perhaps on a new node, is to check.

    Raises:
        ConfigError: a node does not see one of them.
        StorageError: a folder cannot be written.
    """
    everyone = able({})
    if len(everyone) < 2:
        yield Landmarks()
        return
    folders = {storage.absolute(uri): setting for setting, uri in written.items() if uri and storage.is_local(uri)}
    files = [(name, setting) for setting, uri in read.items() if uri and storage.is_local(uri) for name in _names(uri)]
    markers = []
    try:
        for folder, setting in folders.items():
            marker = storage.join(folder, f".node-{uuid.uuid4().hex}")
            storage.write_bytes(marker, b"")
            markers.append((marker, setting))
        landmarks = Landmarks((*markers, *files))
        ask(landmarks.check, everyone)
        yield landmarks
    finally:
        for marker, _ in markers:
            storage.delete(marker)


def _names(uri: str) -> list[str]:
    """Return some paths that tell a file, or a folder by what lies in it."""
    place = Path(storage.absolute(uri))
    names = sorted(name for name in os.listdir(place) if not name.startswith(".")) if place.is_dir() else []
    return [str(place), *(str(place / name) for name in names[:: -(-len(names) // _NAMES) or 1])]


@contextlib.contextmanager
def lasting(
    session: Callable[[], contextlib.AbstractContextManager[ResultT]],
) -> Iterator[Callable[[], contextlib.AbstractContextManager[ResultT]]]:
    """Give a session that begins where it is first entered, may be entered again, and ends with this context."""
    with contextlib.ExitStack() as stack:
        begun: list[ResultT] = []

        @contextlib.contextmanager
        def enter() -> Iterator[ResultT]:
            if not begun:
                begun.append(stack.enter_context(session()))
            yield begun[0]

        yield enter


def able(resources: Mapping[str, float]) -> list[str]:
    """Return the ids of the living nodes that have these resources, whether or not something else uses them."""
    return [
        node["NodeID"]
        for node in ray.nodes()
        if node["Alive"] and all(node["Resources"].get(name, 0.0) >= number for name, number in resources.items())
    ]


def require(needs: Mapping[str, float], who: str, cure: str, *, may_wait: bool) -> None:
    """Refuse what Ray would let wait for ever.

    Args:
        needs: resources by name, all at once.
        who: needs them; and the verb.
        cure: what to do about it.
        may_wait: the cluster is said to grow, so that it is only told.

    Raises:
        ConfigError: the cluster lacks some of it.
    """
    there = ray.cluster_resources()
    for name, needed in needs.items():
        if needed <= there.get(name, 0.0):
            continue
        lack = f"{who} {needed:g} {name}, the cluster has {there.get(name, 0.0):g}"
        if not may_wait:
            raise ConfigError(f"{lack}; {cure}, or give --train.wait-for-nodes where the cluster grows by itself")
        logger.info("%s; they will wait for more nodes", lack)


def this_node() -> NodeAffinitySchedulingStrategy:
    """Return how to schedule what is to live and die with the driver, and with no other node."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def ask(question: Callable[[], ResultT], nodes: list[str]) -> list[ResultT]:
    """Ask each of some nodes, in a task that takes no resources: it sees its node's GPUs without waiting for them.

    Returns:
        The answers; a node that went away, or is too busy to say, gives none.

    Raises:
        ConfigError: what one of the nodes raised.
    """
    task = ray.remote(num_cpus=0, max_retries=0)(_answer)
    asked = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(question)
        for node in nodes
    ]
    answers = []
    for one in asked:
        try:
            answer = ray.get(one, timeout=_PATIENCE_SECONDS)
        except (RayError, GetTimeoutError):
            continue
        if isinstance(answer, ConfigError):
            raise answer
        answers.append(answer)
    return answers


def _answer(question: Callable[[], ResultT]) -> ResultT | ConfigError:
    # What a task raises prints the whole traceback of its node.
    try:
        return question()
    except ConfigError as error:
        return error
