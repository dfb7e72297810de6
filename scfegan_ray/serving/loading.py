"""From the URI of a model to its weights: a registered version, a checkpoint, a run; nothing of it is executed."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scfegan_ray import registry, storage
from scfegan_ray.config import Config
from scfegan_ray.errors import CheckpointError
from scfegan_ray.models import editing
from scfegan_ray.models.generator import Generator
from scfegan_ray.training import checkpoint
from scfegan_ray.training.store import PREFIX, CheckpointStore

_IN_REGISTRY = ("models:", "runs:", "mlflow-artifacts:")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A generator and where it came from.

    Attributes:
        uri: `models:/NAME/VERSION` of a version, also where it was asked for by an alias; else of MLflow as it was
            given, else an absolute one of the folder.
        name: short, for tables: `NAME-VERSION`; `RUN-IMAGES` of a run's checkpoint; else the folder's last parts.
        generator: ready to use, on the CPU.
        config: of its training.
    """

    uri: str
    name: str
    generator: Generator
    config: Config


def load_generator(uri: str | os.PathLike[str], *, tracking_uri: str | None = None) -> LoadedModel:
    """Load a model; only its weights and its config are read.

    Args:
        uri: `models:/scfegan-generator/1` or another MLflow URI; or a folder, local or `s3://`: a checkpoint, a run
            or its `checkpoints` (the newest one is taken), or a model that was downloaded from MLflow.
        tracking_uri: registry to ask; default `MLFLOW_TRACKING_URI`.

    Raises:
        ModelError: there is no such model, or it does not fit.
        CheckpointError: the folder is none of these.
        StorageError: the storage cannot be read.
    """
    text = os.fspath(uri)
    if isinstance(uri, os.PathLike) and text.startswith("s3:/"):
        text = "s3://" + text.removeprefix("s3:").lstrip("/")  # a Path leaves one slash of two
    if text.startswith(_IN_REGISTRY):
        text = registry.without_alias(text, tracking_uri)
        with tempfile.TemporaryDirectory(prefix="scfegan-") as scratch:
            generator, config = editing.read(registry.download_weights(text, tracking_uri, Path(scratch)))
        return LoadedModel(text, name_of(text), generator, config)
    place, read = _find(text)
    with storage.local_copy(place) as folder:
        generator, config = read(folder)
    return LoadedModel(place, name_of(place), generator, config)


def license_of(loaded: LoadedModel, config: Config) -> str:
    """Return the license of what a model learnt from; empty where nobody said.

    Args:
        loaded: the model.
        config: names the registry, whose tag of a version comes before what its training's config says.

    Raises:
        StorageError: the registry cannot be used.
    """
    tags = registry.tags_of(config, loaded.uri) if loaded.uri.startswith("models:") else {}
    return tags.get("data_license") or loaded.config.data.license or ""


def name_of(uri: str) -> str:
    """Return the name in tables of a model: of MLflow, or of the absolute URI of a folder; see `LoadedModel`."""
    if uri.startswith(_IN_REGISTRY):
        return "-".join(uri.partition(":")[2].strip("/").split("/"))
    parts = [re.sub(rf"^{PREFIX}0*(?=\d)", "", part) for part in uri.split("/")[-3:] if part != "checkpoints"]
    return "-".join(parts[-2:])


def _find(uri: str) -> tuple[str, Callable[[Path], tuple[Generator, Config]]]:
    """Return what a folder means: the folder to read, and how."""
    place = storage.absolute(uri)
    if not uri or storage.is_file(place):
        raise CheckpointError(f"{uri!r} is no folder; give that of a checkpoint, of a run or of a downloaded model")
    if storage.is_file(storage.join(place, checkpoint.META)):
        return place, checkpoint.load_generator
    if storage.is_file(storage.join(place, "MLmodel")):
        return place, _read_model
    for store in (CheckpointStore(storage.join(place, "checkpoints")), CheckpointStore(place)):
        newest = store.latest()
        if newest is not None:
            return store.uri(newest), checkpoint.load_generator
    if storage.is_file(storage.join(place, "run.json")):
        raise CheckpointError(f"the run at {place} has no checkpoint yet; wait for its first one")
    raise CheckpointError(
        f"{place} is no checkpoint (meta.json), no run (run.json, checkpoints) and no model from MLflow (MLmodel)"
        f"{'' if storage.exists(place) else ': nothing is there'}; give the folder of one, or models:/NAME/VERSION"
    )


def _read_model(folder: Path) -> tuple[Generator, Config]:
    return editing.read(folder / "artifacts")
