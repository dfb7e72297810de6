"""MLflow's registry of models: versions, each with an exported program and with weights that nothing executes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import mlflow
import mlflow.pyfunc
import numpy as np
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository
from mlflow.store.artifact.utils.models import _parse_model_uri as parse_model_uri
from mlflow.types import DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.utils import validation
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.search_utils import SearchModelVersionUtils
from numpy.typing import NDArray
from sqlalchemy.engine import make_url

from scfegan_ray import places, tracking
from scfegan_ray.config import Config
from scfegan_ray.errors import ConfigError, ModelError
from scfegan_ray.models import editing
from scfegan_ray.models.generator import Generator

CHAMPION = "champion"
"""Alias of the version that is measurably the best."""


def check_names(config: Config) -> None:
    """Refuse a name of the registered model that MLflow would refuse, or not find again when a run is at its end.

    Raises:
        ConfigError: it would.
    """
    model = config.tracking.model_name
    try:
        validation._validate_model_name(model)
        tracking.check_length(model)
        # Both are how the version will be asked for: with a quote, a space at an end or a question mark in its name it
        # would not be found again.
        if parse_model_uri(f"models:/{model}/1").name != model or model.strip() != model:
            raise MlflowException("it would be read as another name")
        SearchModelVersionUtils.parse_search_filter(f"name='{model}'")
    except MlflowException as error:
        raise ConfigError(
            f"tracking.model_name is {model!r}: {tracking.one_line(error)}; use letters, digits, dots, dashes and "
            "underscores"
        ) from error


def check_usable(config: Config) -> None:
    """Make sure that the registry answers.

    Raises:
        StorageError: it does not.
    """
    with tracking.errors_of_mlflow(config):
        _versions(tracking.open_client(config), config.tracking.model_name)


def register(
    generator: Generator,
    config: Config,
    run_id: str,
    *,
    weights_sha256: str,
    tags: Mapping[str, str],
    example: Mapping[str, NDArray[Any]],
) -> str:
    """Register a generator as a new version, unless the same run registered the same weights before.

    The version holds an exported program, so it loads where this package is not installed, and the weights once more
    for readers who do not trust it.

    Args:
        generator: the moving average, on the CPU.
        config: of its training; goes into the model as `config.json`.
        run_id: run that made it.
        weights_sha256: digest of the checkpoint it comes from.
        tags: facts for people to find it by.
        example: image, mask, sketch, color: stacked uint8 maps of one example.

    Returns:
        `models:/NAME/VERSION`.

    Raises:
        StorageError: the registry cannot be used.
    """
    config = places.settle(config)
    name = config.tracking.model_name
    facts = dict(tags) | tracking.code_tags() | {"format_version": str(editing.FORMAT_VERSION)}
    # What tells a version that is there already goes last: without it one counts as not finished.
    facts["weights_sha256"] = weights_sha256
    with (
        tracking.errors_of_mlflow(config),
        _fluent(tracking.tracking_uri(config)),
        tempfile.TemporaryDirectory() as scratch,
    ):
        client = MlflowClient()
        for version in _versions(client, name):
            # One of an older format is no reason not to make one that can be read.
            same = all(version.tags.get(key) == facts[key] for key in ("weights_sha256", "format_version"))
            if version.run_id == run_id and same:
                return f"models:/{name}/{version.version}"
        editing.write(generator, config, Path(scratch))
        with mlflow.start_run(run_id=run_id):
            info = mlflow.pyfunc.log_model(
                name="generator",
                python_model=str(Path(__file__).with_name("served.py")),
                artifacts={
                    key: str(Path(scratch, file))
                    for key, file in (
                        ("program", editing.PROGRAM),
                        ("weights", editing.WEIGHTS),
                        ("config", editing.CONFIG),
                    )
                },
                signature=_signature(config.data.size_px),
                input_example={key: example[key] for key in ("image", "mask", "sketch", "color")},
                pip_requirements=[f"mlflow=={mlflow.__version__}", f"numpy=={np.__version__}", _torch_requirement()],
                registered_model_name=name,
                model_config={"noise_probability": config.masks.noise_probability},
                metadata=facts,
            )
        version_number = str(info.registered_model_version)
        for key, value in facts.items():
            client.set_model_version_tag(name, version_number, key, value)
    return f"models:/{name}/{version_number}"


def find_version(config: Config, tags: Mapping[str, str]) -> str | None:
    """Return the newest version that has some tags, `models:/NAME/VERSION`, if any.

    Raises:
        StorageError: the registry cannot be used.
    """
    name = config.tracking.model_name
    with tracking.errors_of_mlflow(config):
        found = [
            int(version.version)
            for version in _versions(tracking.open_client(config), name)
            if tags.items() <= version.tags.items()
        ]
    return f"models:/{name}/{max(found)}" if found else None


def tag_version(config: Config, uri: str, tags: Mapping[str, str]) -> None:
    """Note facts about a version.

    Args:
        config: names the registry.
        uri: `models:/NAME/VERSION`.
        tags: by name; one that is there is replaced.

    Raises:
        StorageError: the registry cannot be used.
    """
    name, version = parts(uri)
    with tracking.errors_of_mlflow(config):
        client = tracking.open_client(config)
        for key, value in tags.items():
            client.set_model_version_tag(name, version, key, value)


def tags_of(config: Config, uri: str) -> dict[str, str]:
    """Return the tags of a version.

    Raises:
        StorageError: the registry cannot be used, or has no such version.
    """
    with tracking.errors_of_mlflow(config):
        return dict(tracking.open_client(config).get_model_version(*parts(uri)).tags)


def describe_version(config: Config, uri: str, description: str) -> None:
    """Set the description of a version, in Markdown.

    Raises:
        StorageError: the registry cannot be used.
    """
    with tracking.errors_of_mlflow(config):
        tracking.open_client(config).update_model_version(*parts(uri), description=description)


def version_uri(config: Config, uri: str) -> str:
    """Return the URI of a version by its number, also where it was asked for by an alias.

    Raises:
        ModelError: there is no such version.
    """
    settled = without_alias(uri, tracking.tracking_uri(config))
    with _asking(uri, tracking.tracking_uri(config)):
        found = MlflowClient().get_model_version(*parts(settled))
    return f"models:/{found.name}/{found.version}"


def version_of_alias(config: Config, name: str, alias: str) -> str | None:
    """Return the version that an alias of a model names now; None where it names none.

    Args:
        config: names the registry.
        name: of the model.
        alias: without @.

    Raises:
        StorageError: the registry cannot be used.
    """
    with tracking.errors_of_mlflow(config):
        try:
            return f"models:/{name}/{tracking.open_client(config).get_model_version_by_alias(name, alias).version}"
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            return None


def set_alias(config: Config, uri: str, alias: str) -> None:
    """Let an alias name a version.

    Raises:
        StorageError: the registry cannot be used.
    """
    name, version = parts(uri)
    with tracking.errors_of_mlflow(config):
        tracking.open_client(config).set_registered_model_alias(name, alias, version)


def parts(uri: str) -> tuple[str, str]:
    """Return name and version of `models:/NAME/VERSION`."""
    name, _, version = uri.removeprefix("models:").strip("/").rpartition("/")
    return name, version


def download_weights(uri: str, tracking_uri: str | None, into: Path) -> Path:
    """Bring the files of a registered model that `editing.read` reads to this machine; nothing in them is executed.

    The exported program, as large as the weights, stays where it is, unless there is nothing else.

    Args:
        uri: `models:/NAME/VERSION`, `models:/NAME@ALIAS` or `runs:/ID/PATH`.
        tracking_uri: registry to ask; default `MLFLOW_TRACKING_URI`.
        into: existing folder.

    Returns:
        The folder that holds them.

    Raises:
        ModelError: there is no such model, or its files or the registry's are not where they were.
    """
    with _asking(uri, tracking_uri) as registry:
        if uri.startswith("models:"):
            _check_files_exist(uri, registry, ModelsArtifactRepository.get_underlying_uri(uri))
        stored = f"{uri}/artifacts"
        names = {Path(one.path).name for one in mlflow.artifacts.list_artifacts(artifact_uri=stored)}
        folder = into
        for name in names & {editing.CONFIG, editing.WEIGHTS if editing.WEIGHTS in names else editing.PROGRAM}:
            file = mlflow.artifacts.download_artifacts(artifact_uri=f"{stored}/{name}", dst_path=str(into))
            folder = Path(file).parent
        return folder


def without_alias(uri: str, tracking_uri: str | None = None) -> str:
    """Return the URI of the version that an alias stands for now; any other URI as it is.

    Raises:
        ModelError: there is no such alias, or the registry cannot be asked.
    """
    if not uri.startswith("models:") or "@" not in uri:
        return uri
    name, _, alias = uri.removeprefix("models:").strip("/").rpartition("@")
    with _asking(uri, tracking_uri):
        return f"models:/{name}/{MlflowClient().get_model_version_by_alias(name, alias).version}"


@contextmanager
def _asking(uri: str, tracking_uri: str | None) -> Iterator[str]:
    """Ask a registry about a model, give the registry's URI, and say clearly where it does not answer."""
    given = tracking_uri or (mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None)
    with places.logged_in(given) if given else nullcontext() as where, _fluent(where) if where else nullcontext():
        registry = mlflow.get_tracking_uri()
        _check_database_exists(uri, registry)
        try:
            yield registry
        except Exception as error:
            # A registry says in many ways that it cannot answer.
            if not tracking.is_of_mlflow(error):
                raise
            raise ModelError(
                f"no model {uri} at {registry}: {tracking.one_line(error)}; check the name and MLFLOW_TRACKING_URI"
            ) from error


def exists(config: Config) -> bool:
    """Tell whether there is a registry to ask; MLflow would make a SQLite file that is not there."""
    return _missing_database(tracking.tracking_uri(config)) is None


def _missing_database(registry: str) -> Path | None:
    database = make_url(registry).database if registry.startswith("sqlite:") else None
    if not database or database == ":memory:" or Path(database).is_file():
        return None
    return Path(database).absolute()


def _check_database_exists(uri: str, registry: str) -> None:
    """Refuse to ask a SQLite file that is not there."""
    missing = _missing_database(registry)
    if missing is not None:
        raise ModelError(
            f"cannot look up {uri}: there is no MLflow database at {missing}; set "
            "MLFLOW_TRACKING_URI to the registry that training told of, as in "
            "sqlite:////path/to/runs/mlflow.db (mlflow.db under its --storage.path)"
        )


def _check_files_exist(uri: str, registry: str, source: str) -> None:
    """Refuse a version whose files were recorded at a local path where they are no longer."""
    if not tracking.is_on_this_machine(source):
        return
    recorded = Path(local_file_uri_to_path(source))
    if recorded.is_dir():
        return
    cure = "bring them back there, or give from_uri the folder that holds the version's MLmodel file"
    database = make_url(registry).database if registry.startswith("sqlite:") else None
    if database and "mlartifacts" in recorded.parts:
        # Beside the database, as `tracking` has it.
        inner = recorded.parts[recorded.parts.index("mlartifacts") :]
        moved = Path(database).absolute().parent.joinpath(*inner)
        if moved.is_dir():
            old, new = (str(path)[: -len(str(Path(*inner))) - 1] for path in (recorded, moved))
            cure = f"move {new} back to {old}, link it there (ln -s {new} {old}), or give from_uri the folder {moved}"
    raise ModelError(
        f"the files of {uri} are not at {recorded}, where {registry} recorded them: the folder was moved, deleted, or "
        f"is of another machine; {cure}"
    )


def _signature(size_px: int) -> ModelSignature:
    def spec(name: str, channels: int) -> TensorSpec:
        return TensorSpec(np.dtype(np.uint8), (-1, size_px, size_px, channels), name)

    return ModelSignature(
        inputs=Schema([spec("image", 3), spec("mask", 1), spec("sketch", 1), spec("color", 3)]),
        outputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, size_px, size_px, 3))]),
        params=ParamSchema([ParamSpec("seed", DataType.long, 0)]),
    )


def _torch_requirement() -> str:
    return f"torch=={torch.__version__.partition('+')[0]}"


def _versions(client: MlflowClient, name: str) -> list[Any]:
    return list(client.search_model_versions(f"name='{name}'"))


@contextmanager
def _fluent(uri: str) -> Iterator[None]:
    # Setting a URI also sets MLFLOW_TRACKING_URI; what only stood there must not become the process's own choice.
    variable = os.environ.get("MLFLOW_TRACKING_URI")
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None if before == variable else before)
        if variable is not None:
            os.environ["MLFLOW_TRACKING_URI"] = variable
