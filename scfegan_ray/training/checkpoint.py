"""A checkpoint is a folder: four safetensors files and one readable `meta.json`; no pickle anywhere.

| file | holds |
| --- | --- |
| `generator.safetensors`, `ema.safetensors` | state dicts |
| `discriminator.safetensors` | state dict, with the vectors of its spectral normalization |
| `optimizers.safetensors` | Adam's moments and step per parameter: `generator/<parameter>/exp_avg` and so on |
| `meta.json` | format, position, seed, config, the sentinel's memory, metrics, digest of the weights; written last |

Randomness needs no more than seed and position, see `data.examples`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor, nn

from scfegan_ray import storage
from scfegan_ray.config import Config
from scfegan_ray.errors import CheckpointError, StorageError
from scfegan_ray.models.generator import Generator
from scfegan_ray.training.copies import HostCopy
from scfegan_ray.training.state import TrainingState, digest_of

FORMAT_VERSION = 2

META = "meta.json"
"""The file whose presence makes a folder a checkpoint."""

_OPTIMIZERS = "optimizers"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state as it was at one moment, for a thread to write while training goes on.

    Attributes:
        copies: tensors by the name of their file, on their way to the host.
        meta: what `meta.json` will hold, but for the digest.
        seconds: for which making it held up the caller.
    """

    copies: dict[str, HostCopy]
    meta: dict[str, Any]
    seconds: float = 0.0

    @property
    def files(self) -> dict[str, dict[str, Tensor]]:
        """Tensors by the name of their file; waits until they are on the host."""
        return {name: copy.wait() for name, copy in self.copies.items()}

    @property
    def images_seen(self) -> int:
        """The state's position."""
        seen: int = self.meta["images_seen"]
        return seen


def capture(state: TrainingState, config: Config, metrics: Mapping[str, float] | None = None) -> Snapshot:
    """Copy a state; on a GPU the copies are made in the order of its work, and the host waits for the sentinel alone.

    Args:
        state: it may change as soon as this has returned.
        config: of the run.
        metrics: of held-back images in this state, where they were measured.
    """
    began = time.perf_counter()
    moments = _moments("generator", state.generator, state.generator_optimizer)
    moments |= _moments("discriminator", state.discriminator, state.discriminator_optimizer)
    files = {name: network.state_dict() for name, network in state.networks().items()} | {_OPTIMIZERS: moments}
    copies = {name: HostCopy(tensors) for name, tensors in files.items()}
    meta = {
        "format_version": FORMAT_VERSION,
        "images_seen": state.images_seen,
        "random": {"seed": config.seed, "position": state.images_seen},
        "sentinel": state.sentinel.state(),
        "metrics": None if metrics is None else dict(metrics),
        "config": config.to_dict(),
    }
    return Snapshot(copies, meta, time.perf_counter() - began)


def write(snapshot: Snapshot, directory: Path) -> dict[str, Any]:
    """Write a checkpoint into an existing folder, `meta.json` last.

    Returns:
        What `meta.json` holds.

    Raises:
        StorageError: it cannot be written; the folder is then no checkpoint.
    """
    files = snapshot.files
    networks = {name: tensors for name, tensors in files.items() if name != _OPTIMIZERS}
    meta = snapshot.meta | {"weights_sha256": digest_of(networks)}
    for name, tensors in files.items():
        storage.write_bytes(str(directory / f"{name}.safetensors"), serialize(tensors))
    storage.write_bytes(str(directory / META), json.dumps(meta, indent=2).encode())
    return meta


def load(state: TrainingState, directory: Path) -> None:
    """Bring a state to where a checkpoint left it.

    Raises:
        CheckpointError: the folder is no checkpoint, is damaged, or is of other networks.
    """
    meta = read_meta(directory)
    for name, network in state.networks().items():
        _load_network(network, directory / f"{name}.safetensors")
    moments = _read(directory / f"{_OPTIMIZERS}.safetensors")
    _load_moments("generator", state.generator, state.generator_optimizer, moments)
    _load_moments("discriminator", state.discriminator, state.discriminator_optimizer, moments)
    state.images_seen = meta["images_seen"]
    state.sentinel.load(meta["sentinel"])
    if state.weights_sha256() != meta["weights_sha256"]:
        raise CheckpointError(f"{directory} is damaged: its weights differ from their digest; use an older checkpoint")


def load_generator(directory: Path) -> tuple[Generator, Config]:
    """Return the moving average of the generator, ready to use, and the config it was trained with.

    Raises:
        CheckpointError: as `load`.
    """
    config = Config.from_dict(read_meta(directory)["config"])
    generator = Generator(config.model)
    _load_network(generator, directory / "ema.safetensors")
    return generator.requires_grad_(False).eval(), config


def read_meta(directory: Path | str) -> dict[str, Any]:
    """Read `meta.json`.

    Args:
        directory: folder, or URI of one.

    Raises:
        CheckpointError: there is none, or it is of another format.
    """
    try:
        meta: dict[str, Any] = json.loads(storage.read_bytes(storage.join(str(directory), META)))
    except (StorageError, ValueError) as error:
        raise CheckpointError(
            f"{directory} is no checkpoint ({error}); give the folder that holds meta.json"
        ) from error
    if meta.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{directory} has checkpoint format {meta.get('format_version')}, this package reads {FORMAT_VERSION}"
        )
    return meta


def _read(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {error}; use an older checkpoint") from error
    return tensors


def _load_network(network: nn.Module, path: Path) -> None:
    try:
        network.load_state_dict(_read(path))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path} does not fit the configured network: {reason}") from error


def _moments(prefix: str, network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{prefix}/{name}/{key}": value
        for name, parameter in network.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _load_moments(
    prefix: str, network: nn.Module, optimizer: torch.optim.Optimizer, moments: dict[str, Tensor]
) -> None:
    stored: dict[str, dict[str, Tensor]] = {}
    for key, value in moments.items():
        side, name, moment = key.split("/")
        if side == prefix:
            stored.setdefault(name, {})[moment] = value
    names = [name for name, _ in network.named_parameters()]
    unknown = sorted(set(stored) - set(names))
    if unknown or (stored and len(stored) != len(names)):
        raise CheckpointError(
            f"the checkpoint's optimizer state does not fit the {prefix}: {unknown or 'parts are missing'}"
        )
    state = optimizer.state_dict()
    state["state"] = {
        at: {moment: _laid_out_as(parameter, value) for moment, value in stored[name].items()}
        for at, (name, parameter) in enumerate(network.named_parameters())
        if name in stored
    }
    optimizer.load_state_dict(state)


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """Give a moment the strides of its parameter, beside which a fused Adam walks through memory."""
    return value if value.shape != parameter.shape else torch.empty_like(parameter, device="cpu").copy_(value)
