"""What a run needs at its end is looked for before its beginning: names, places, rights, room, weights.

Cheap things first, and all of it without Ray, so that what fails does so within seconds.
"""

from __future__ import annotations

import torch

from scfegan_ray import registry, room, storage, tracking
from scfegan_ray.config import Config
from scfegan_ray.errors import ConfigError
from scfegan_ray.models.discriminator import Discriminator
from scfegan_ray.models.features import load_features
from scfegan_ray.models.generator import Generator
from scfegan_ray.training.store import CheckpointStore

_LONGEST_RUN_NAME = 200
"""Characters: with what is put around it while a folder is written, it must be a file's name, of at most 255."""
_CHECKPOINTS_BESIDES = 2
"""Those beside the newest ones: the best one, and the one that is being written."""
_BYTES_PER_VALUE = 4


def before_training(config: Config, place: str, *, num_runs: int = 1, registers: bool = True) -> None:
    """Refuse a run that could not keep what it makes.

    Args:
        config: of the run, or of a search.
        place: URI of the run's folder.
        num_runs: trials of a search, all of which keep checkpoints.
        registers: whether a version of the registered model is made at the end.

    Raises:
        ConfigError: a name is refused.
        ModelError: a file of VGG weights cannot be used.
        StorageError: storage or tracking cannot be written or has not enough room.
    """
    assert config.run_name, "the caller names the run"
    if len(config.run_name) > _LONGEST_RUN_NAME:
        raise ConfigError(
            f"run_name has {len(config.run_name)} characters; folders are named after it: give at most "
            f"{_LONGEST_RUN_NAME}"
        )
    tracking.check_names(config)
    registry.check_names(config)
    root = storage.absolute(config.storage.path)
    storage.check_writable(root)
    check_room(config, place, num_runs)
    if config.losses.features not in ("auto", "hed", "random"):
        load_features(config.losses.features)
    tracking.check_usable(config)
    if registers:
        registry.check_usable(config)


def check_room(config: Config, place: str, num_runs: int = 1) -> None:
    """Refuse a run whose checkpoints surely do not fit.

    Raises:
        StorageError: they do not.
    """
    each = checkpoint_bytes(config)
    most = config.train.checkpoints_to_keep + _CHECKPOINTS_BESIDES
    there = len(CheckpointStore(storage.join(place, "checkpoints")).names())
    number = max(1, most * num_runs - there)
    room.require(
        place,
        number * each,
        f"{number} checkpoints of {room.readable(each)}",
        "give another --storage.path or fewer --train.checkpoints-to-keep",
    )


def checkpoint_bytes(config: Config) -> int:
    """Return how large a checkpoint is, but for the names in it: weights, their average, and Adam's two moments."""
    with torch.device("meta"):
        networks = Generator(config.model), Discriminator(config.model)
    numbers: list[int] = [sum(tensor.numel() for tensor in network.state_dict().values()) for network in networks]
    return _BYTES_PER_VALUE * (4 * numbers[0] + 3 * numbers[1])
