"""An editor that serves, with a network that has learnt nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from servers import Editing
from tiny import TINY
from untrained import write_model

from scfegan_ray.config import Config, StorageConfig
from scfegan_ray.serving import server
from scfegan_ray.serving.options import ServingConfig


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model of 32 px."""
    return write_model(TINY, tmp_path_factory.mktemp("modèle 模型"))


@pytest.fixture(scope="session")
def serving(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Editing]:
    """Serve it, to this machine alone."""
    place = tmp_path_factory.mktemp("serving")
    config = dataclasses.replace(Config(), storage=StorageConfig(path=str(place)))
    options = ServingConfig(
        port=0, max_upload_mb=2, max_megapixels=1.0, upload_seconds=2.0, runtime="torch", precision="float32"
    )
    running = server.start(config, options, model=str(model_folder))
    with requests.Session() as session:
        yield Editing(running.url, session)
    running.close()
