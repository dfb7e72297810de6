"""Several ranks of one training, each in a process of its own that is kept for the next test; no Ray."""

from __future__ import annotations

import datetime
import gc
import json
import logging
import multiprocessing
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from scfegan_ray.config import Config
from scfegan_ray.evaluation import held_back
from scfegan_ray.models.features import vgg_random
from scfegan_ray.tracking import NullTracker
from scfegan_ray.training import loop
from scfegan_ray.training.outcome import Outcome
from scfegan_ray.training.state import TrainingState
from scfegan_ray.training.step import Pass
from scfegan_ray.training.store import CheckpointStore

MOST = 3
_PATIENCE_SECONDS = 240  # two cores may take 90 s to compile two ranks' networks


class Ranks:
    """Runs functions on several ranks at once."""

    def __init__(self, pool: ProcessPoolExecutor, folder: Path) -> None:
        self._pool, self._folder = pool, folder

    def run(self, number: int, work: Callable[..., Any], *arguments: Any, backend: str = "gloo") -> list[Any]:
        """Return what each rank returned, or the exception that it raised."""
        meeting = str(self._folder / uuid.uuid4().hex)
        # Each waits for the others, so no process gets two.
        futures = [
            self._pool.submit(_be_rank, rank, number, meeting, backend, work, arguments) for rank in range(number)
        ]
        return [future.exception(_PATIENCE_SECONDS) or future.result() for future in futures]

    def train(
        self,
        number: int,
        config: Config,
        dataset: str,
        checkpoints: str,
        *,
        device: str = "cpu",
        backend: str = "gloo",
        **spoils: Any,
    ) -> list[Trained]:
        """Train on several ranks, all of which must come to an end of their own.

        Args:
            number: of ranks.
            config: of the run.
            dataset: URI of the prepared data.
            checkpoints: URI of the run's checkpoints.
            device: its kind. All ranks share the first GPU, but over NCCL, which wants one for each rank.
            backend: of torch.distributed.
            spoils: as of `Spoils`.
        """
        found = self.run(number, train, config, dataset, checkpoints, Spoils(**spoils), device, backend=backend)
        for one in found:
            if isinstance(one, BaseException):
                raise one
        return found


@contextmanager
def running(folder: Path) -> Iterator[Ranks]:
    with ProcessPoolExecutor(MOST, multiprocessing.get_context("spawn"), _settle_down) as pool:
        yield Ranks(pool, folder)


def _settle_down() -> None:
    torch.set_num_threads(1)


def _be_rank(
    rank: int, number: int, meeting: str, backend: str, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> Any:
    patience = datetime.timedelta(seconds=_PATIENCE_SECONDS)
    dist.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=number, timeout=patience)
    try:
        return work(*arguments)
    except BaseException as error:
        # A process that ends closes its connections; this one goes on, so nothing may hold them.
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        gc.collect()
        dist.destroy_process_group()


@dataclass(frozen=True, kw_only=True)
class Spoils:
    """What goes wrong, on which rank, at which positions.

    Attributes:
        on: the rank.
        damaged: positions of batches that hold a NaN there.
        once: whether they hold none when training comes to a position again.
        raises: position at which it raises.
        stops: position from which on it is told to stop.
        moves: of a weight there, at `moves_at`, by this share of the largest.
        moves_at: position.
        measures: whether it can measure held-back images.
        slow: seconds by which each of its updates is slower.
        fed_late: seconds for which it waits for each batch.
    """

    on: int = 0
    damaged: tuple[int, ...] = ()
    once: bool = False
    raises: int = -1
    stops: int = -1
    moves: float = 0.0
    moves_at: int = -1
    measures: bool = True
    slow: float = 0.0
    fed_late: float = 0.0


@dataclass(kw_only=True)
class Trained:
    """What one rank saw."""

    outcome: Outcome
    digest: str
    sentinel: dict[str, Any]
    records: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    observed: list[Mapping[str, float]] = field(default_factory=list)
    log: list[str] = field(default_factory=list)


class Recorder(NullTracker):
    """Keeps what training says."""

    def __init__(self) -> None:
        self.said: list[tuple[int, dict[str, float]]] = []
        self.facts: dict[str, str] = {}

    def metrics(self, values: Mapping[str, float], images_seen: int) -> None:
        self.said.append((images_seen, dict(values)))

    def tags(self, values: Mapping[str, str]) -> None:
        self.facts |= values


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _device_of(kind: str) -> torch.device:
    if kind == "cpu":
        return torch.device(kind)
    return torch.device(kind, dist.get_rank() if dist.get_backend() == "nccl" else 0)


def train(config: Config, dataset: str, checkpoints: str, spoils: Spoils, device: str = "cpu") -> Trained:
    """Train as one rank."""
    states: list[TrainingState] = []
    been: set[int] = set()
    step, cut, build = loop.train_step, loop.cut_into_passes, TrainingState.build
    is_it = dist.get_rank() == spoils.on

    def spoiled_step(state: TrainingState, passes: list[Pass], *arguments: Any, **options: Any) -> Any:
        is_again = state.images_seen in been
        been.add(state.images_seen)
        if is_it and state.images_seen in spoils.damaged and not (spoils.once and is_again):
            passes[0].batch.ground_truth[0, 0, 0, 0] = float("nan")
        if is_it and state.images_seen == spoils.raises:
            raise RuntimeError("out of memory")
        if is_it:
            time.sleep(spoils.slow)
        values = step(state, passes, *arguments, **options)
        if is_it and state.images_seen == spoils.moves_at:
            with torch.no_grad():
                weight = state.generator.encoder[0].weight
                weight[0, 0, 0, 0] += spoils.moves * weight.abs().max()
        return values

    def late_passes(*arguments: Any) -> list[Pass]:
        if is_it:
            time.sleep(spoils.fed_late)
        return cut(*arguments)

    def kept(*arguments: Any, **options: Any) -> TrainingState:
        states.append(build(*arguments, **options))
        return states[-1]

    tracker, lines, observed = Recorder(), _Lines(), list[Mapping[str, float]]()
    logger = logging.getLogger("scfegan_ray")
    logger.setLevel(logging.INFO)
    logger.addHandler(lines)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "train_step", spoiled_step)
            patch.setattr(loop, "cut_into_passes", late_passes)
            patch.setattr(TrainingState, "build", kept)
            if is_it and not spoils.measures:
                patch.setattr(held_back.quality, "hole_psnr", lambda *arguments: 1 / 0)
            patch.setenv("SCFEGAN_CACHE", f"{checkpoints}-cache")
            outcome = loop.train(
                config,
                dataset,
                CheckpointStore(checkpoints),
                vgg_random(),
                tracker,
                device=_device_of(device),
                must_stop=lambda: 0 <= spoils.stops <= states[0].images_seen,
                observe=observed.append,
            )
    finally:
        logger.removeHandler(lines)
    return Trained(
        outcome=outcome,
        digest=states[0].weights_sha256(),
        sentinel=states[0].sentinel.state(),
        records=tracker.said,
        observed=observed,
        log=lines.lines,
    )


def tensors_of(checkpoint: str) -> dict[str, torch.Tensor]:
    """Return all tensors in the files of a checkpoint's folder."""
    files = Path(checkpoint).glob("*.safetensors")
    return {f"{file.stem}.{key}": value for file in files for key, value in load_file(file).items()}


def networks_of(checkpoints: Path, name: str = "") -> dict[str, torch.Tensor]:
    """Return the networks' tensors of a run's checkpoint, the newest unless it is named."""
    store = CheckpointStore(str(checkpoints))
    found = tensors_of(store.uri(name or store.names()[-1]))
    return {name: value for name, value in found.items() if not name.startswith("optimizers.")}


def assert_same_on_all(found: list[Trained]) -> None:
    assert len({one.digest for one in found}) == 1, "weights and spectral norm's vectors"
    assert len({json.dumps(one.sentinel) for one in found}) == 1
    assert len({one.outcome.images_seen for one in found}) == 1
    assert len({one.outcome.failure for one in found}) == 1
