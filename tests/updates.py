"""One update on a batch of noise, for tests."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scfegan_ray.config import Config
from scfegan_ray.images import Batch
from scfegan_ray.models.features import Features, vgg_random
from scfegan_ray.training import checkpoint
from scfegan_ray.training.sentinel import NETWORKS
from scfegan_ray.training.state import TrainingState
from scfegan_ray.training.step import Pass, train_step

CPU = torch.device("cpu")
FEATURES = vgg_random()


@functools.cache
def features_on(device: torch.device) -> Features:
    return FEATURES if device.type == "cpu" else vgg_random().to(device)


def allow_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let updates run on torch's meta device, which autocast does not know."""
    known = torch.autocast

    def autocast(device_type: str, *arguments: Any, **options: Any) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if device_type == "meta" else known(device_type, *arguments, **options)

    monkeypatch.setattr(torch, "autocast", autocast)


def make_batch(seed: int = 0, number: int = 2, device: torch.device = CPU) -> tuple[Batch, torch.Tensor]:
    rng = np.random.default_rng(seed)
    arrays = {name: rng.integers(0, 256, (number, 32, 32, 3), np.uint8) for name in ("image", "color")}
    arrays |= {name: rng.integers(0, 2, (number, 32, 32, 1), np.uint8) for name in ("sketch", "noise")}
    mask = np.zeros((number, 32, 32, 1), np.uint8)
    mask[:, 8:20, 8:24] = 1
    mask[1:, 20:24, 4:30] = 1
    interpolation = torch.from_numpy(rng.random(number, np.float32)).to(device)
    return Batch.from_arrays(arrays | {"mask": mask}, device), interpolation


def cut(batch: Batch, interpolation: torch.Tensor, *sizes: int) -> list[Pass]:
    maps = {field.name: getattr(batch, field.name).split(sizes) for field in fields(Batch)}
    return [
        Pass(Batch(**{name: pieces[at] for name, pieces in maps.items()}), position)
        for at, position in enumerate(interpolation.split(sizes))
    ]


def update(state: TrainingState, config: Config, parts: Sequence[Pass], **options: Any) -> dict[str, torch.Tensor]:
    return train_step(
        state,
        parts,
        features_on(parts[0].interpolation.device),
        config.losses,
        generator=state.generator,
        discriminator=state.discriminator,
        **options,
    )


def step(state: TrainingState, config: Config, seed: int = 0, **options: Any) -> dict[str, torch.Tensor]:
    device = next(state.generator.parameters()).device
    return update(state, config, [Pass(*make_batch(seed, device=device))], **options)


def watched_step(state: TrainingState, config: Config, seed: int) -> None:
    """Take a step as a run does: watched by the sentinel, and averaged."""
    step(state, config, seed, refuses=state.sentinel.refuses)
    accepted, _ = state.sentinel.conclude()
    state.images_seen += 4
    state.update_ema(100.0, 4, accepted)


def refuse_a_batch(state: TrainingState) -> None:
    """Tell a state's sentinel of a batch that ruins both updates."""
    for name in NETWORKS:
        state.sentinel.refuses(name, torch.tensor(float("nan")), torch.tensor(1.0))
    state.sentinel.conclude()


def saved_and_gone_on(
    config: Config, folder: Path, *, device: str = "cpu", channels_last: bool | None = None, returns: bool = False
) -> tuple[TrainingState, TrainingState]:
    """Return a state after five steps, and one that was loaded after two of them and took the other three, too.

    Args:
        config: of the run.
        folder: an existing one, for the checkpoint in between.
        device: where both are.
        channels_last: as of `TrainingState.build`.
        returns: load as a rollback does: into a state that was trained.
    """

    def train_on(state: TrainingState, *seeds: int) -> None:
        for seed in seeds:
            watched_step(state, config, seed)

    state = TrainingState.build(config, device, channels_last=channels_last)
    train_on(state, 0, 1)
    checkpoint.write(checkpoint.capture(state, config), folder)
    loaded = TrainingState.build(replace(config, seed=99), device, channels_last=channels_last)
    if returns:
        train_on(loaded, 9, 10)
    checkpoint.load(loaded, folder)
    train_on(state, 2, 3, 4)
    train_on(loaded, 2, 3, 4)
    return state, loaded


def moments(state: TrainingState) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Give each parameter with each of its two moments."""
    for optimizer in (state.generator_optimizer, state.discriminator_optimizer):
        for parameter, values in optimizer.state.items():
            yield from ((parameter, values[name]) for name in ("exp_avg", "exp_avg_sq"))


def without_norms(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Leave out the norms of gradients, which are no parts of a loss."""
    return {name: value for name, value in values.items() if not name.endswith("/gradient_norm")}
