"""A checkpoint is a folder: four safetensors files and one readable `meta.json`; no pickle anywhere.

| file | holds |
| --- | --- |
| `generator.safetensors`, `ema.safetensors` | state dicts |
| `discriminator.safetensors` | state dict, with the vectors of its spectral normalization |
| `optimizers.safetensors` | Adam's moments and step per parameter: `generator/<parameter>/exp_avg` and so on |
| `meta.json` | format, position, seed, config, digest of the weights; written last |

Randomness needs no more than seed and position, see `data.examples`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scfegan_ray.config import Config
from scfegan_ray.errors import CheckpointError
from scfegan_ray.models.generator import Generator
from scfegan_ray.training.state import TrainingState

FORMAT_VERSION = 1


def save(state: TrainingState, config: Config, directory: Path) -> dict[str, Any]:
    """Write a checkpoint into an existing folder.

    Returns:
        What `meta.json` holds.

    Raises:
        CheckpointError: it cannot be written; the folder is then no checkpoint.
    """
    meta = {
        "format_version": FORMAT_VERSION,
        "images_seen": state.images_seen,
        "random": {"seed": config.seed, "position": state.images_seen},
        "weights_sha256": state.weights_sha256(),
        "config": config.to_dict(),
    }
    try:
        for name, network in state.networks().items():
            save_file(_plain(network.state_dict()), directory / f"{name}.safetensors")
        moments = _moments("generator", state.generator, state.generator_optimizer)
        moments |= _moments("discriminator", state.discriminator, state.discriminator_optimizer)
        save_file(_plain(moments), directory / "optimizers.safetensors")
        (directory / "meta.json").write_text(json.dumps(meta, indent=2))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write a checkpoint to {directory}: {error}; free space and run again") from error
    return meta


def load(state: TrainingState, directory: Path) -> None:
    """Bring a state to where a checkpoint left it.

    Raises:
        CheckpointError: the folder is no checkpoint, is damaged, or is of other networks.
    """
    meta = read_meta(directory)
    for name, network in state.networks().items():
        _load_network(network, directory / f"{name}.safetensors")
    moments = _read(directory / "optimizers.safetensors")
    _load_moments("generator", state.generator, state.generator_optimizer, moments)
    _load_moments("discriminator", state.discriminator, state.discriminator_optimizer, moments)
    state.images_seen = meta["images_seen"]
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


def read_meta(directory: Path) -> dict[str, Any]:
    """Read `meta.json`.

    Raises:
        CheckpointError: there is none, or it is of another format.
    """
    path = directory / "meta.json"
    try:
        meta: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{directory} is no checkpoint ({error}); give the folder that holds meta.json"
        ) from error
    if meta.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{directory} has checkpoint format {meta.get('format_version')}, this package reads {FORMAT_VERSION}"
        )
    return meta


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


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
    state["state"] = {at: stored[name] for at, name in enumerate(names) if name in stored}
    optimizer.load_state_dict(state)
