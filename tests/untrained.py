"""A model's folder, as it is downloaded from MLflow, of a network that has learnt nothing."""

from __future__ import annotations

from pathlib import Path

import torch

from scfegan_ray.config import Config
from scfegan_ray.models import editing
from scfegan_ray.models.generator import Generator


def write_model(config: Config, folder: Path, seed: int = 0) -> Path:
    """Write what `FaceEditor` reads: weights and config, without the program."""
    artifacts = folder / "artifacts"
    artifacts.mkdir(parents=True)
    (folder / "MLmodel").write_text("")
    torch.manual_seed(seed)
    editing.write_weights(Generator(config.model), config, artifacts)
    return folder
