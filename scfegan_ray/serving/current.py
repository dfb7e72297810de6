"""The model that is served: a new champion takes over without a restart, and one that fails never does."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, replace

import numpy as np
import torch

from scfegan_ray import registry, tracking
from scfegan_ray.config import Config
from scfegan_ray.errors import ModelError, ScFeganError
from scfegan_ray.serving import conversion, loading, runtimes
from scfegan_ray.serving.editor import FaceEditor
from scfegan_ray.serving.options import ServingConfig
from scfegan_ray.serving.threads import LastingThread

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that edits.

    Attributes:
        loaded: its weights, and where they came from.
        license: of what it learnt from; empty where nobody said.
        exact: edits in torch and float32, for what is kept: a replay elsewhere gives the same.
        editor: edits as fast as it gets here, once that is ready; until then it is `exact`. Each of both is at work one
            request at a time.
    """

    loaded: loading.LoadedModel
    license: str
    exact: FaceEditor
    editor: FaceEditor

    @property
    def uri(self) -> str:
        """Where it came from."""
        return self.loaded.uri

    @property
    def size_px(self) -> int:
        """Side of the square that it was made for."""
        return self.loaded.config.data.size_px


def choose(config: Config, asked: str) -> str:
    """Return the URI of the model to edit with.

    Args:
        config: names the registry.
        asked: a version, an alias, a folder; empty for the champion, else the newest version.

    Returns:
        A URI without an alias.

    Raises:
        ModelError: there is no such model.
        StorageError: the registry cannot be used.
    """
    if asked:
        return registry.version_uri(config, asked) if asked.startswith("models:") else asked
    name = config.tracking.model_name
    found = None
    if registry.exists(config):
        found = registry.version_of_alias(config, name, registry.CHAMPION) or registry.find_version(config, {})
    if found is None:
        raise ModelError(f"no version of {name} is registered; make one with python jobs/train.py, or give --model")
    return found


def load(config: Config, uri: str, device: str = "cpu") -> ServedModel:
    """Load a model and try it.

    Args:
        config: names the registry.
        uri: as `choose` gives it.
        device: where to compute.

    Raises:
        ModelError: it cannot be read, or does not fill a hole.
        ScFeganError: another reason why it cannot be used.
    """
    loaded = loading.load_generator(uri, tracking_uri=tracking.tracking_uri(config))
    if not all(bool(torch.isfinite(weights).all()) for weights in loaded.generator.state_dict().values()):
        raise ModelError(f"the weights of {loaded.uri} are not finite")
    exact = FaceEditor(loaded.generator, loaded.config, device)
    _try(exact, 2**loaded.config.model.num_downsamples)  # the smallest there is, as people wait
    return ServedModel(loaded, loading.license_of(loaded, config), exact, exact)


def quickened(served: ServedModel, choice: runtimes.Choice, device: str = "cpu") -> ServedModel:
    """Return a model that edits as its server was told to; that may take seconds to make.

    Args:
        served: the model.
        choice: what is to compute.
        device: where.
    """
    if choice == served.exact.choice:
        return served
    try:
        editor = FaceEditor(
            served.loaded.generator,
            served.loaded.config,
            device,
            runtime=choice.runtime,
            precision=choice.precision,
        )
        _try(editor, editor.config.data.size_px)
    except conversion.StoppedError:
        return served
    except Exception as error:  # whatever a compiler makes of a model, torch edits with it
        logger.error("edits go on in torch, float32, as %s cannot be made faster: %s", served.uri, error)
        return served
    return replace(served, editor=editor)


def _try(editor: FaceEditor, size_px: int) -> None:
    gray = np.full((size_px, size_px, 3), 128, np.uint8)
    hole = np.zeros((size_px, size_px), np.uint8)
    hole[size_px // 4 : size_px // 2, size_px // 4 : size_px // 2] = 1
    editor.set_image(gray)
    editor.edit(hole, np.zeros_like(hole), np.zeros_like(gray))


class CurrentModel:
    """Holds the model that is served now.

    Args:
        config: names the registry.
        asked: as in `choose`. Where it is an alias, or empty, the registry is asked again and again.
        options: how often, and how edits are computed.
        device: where.

    Raises:
        ScFeganError: there is none to begin with.
    """

    def __init__(self, config: Config, asked: str, options: ServingConfig, device: str = "cpu") -> None:
        self._config, self._asked, self._device, self._poll_seconds = config, asked, device, options.poll_seconds
        self._refused = ""
        self._stopped = threading.Event()
        self._thread = LastingThread(self._work, "scfegan-model")
        self._choice = runtimes.choose(torch.device(device), options.runtime, options.precision)
        self.model = load(config, choose(config, asked), device)

    def follow(self) -> None:
        """Begin to make edits faster, and to look for a new champion where one may come."""
        self._thread.start()

    def stop(self) -> None:
        """Look no longer. A compiler that is at work in this process is waited for, which must not end amid that."""
        self._stopped.set()
        self._thread.outlast()

    def refresh(self) -> None:
        """Ask the registry once, and take a new champion over if it works."""
        try:
            uri = choose(self._config, self._asked)
        except ScFeganError as error:
            logger.warning("the registry does not answer; %s stays: %s", self.model.uri, error)
            return
        if uri in (self.model.uri, self._refused):
            return
        try:
            self.model = quickened(load(self._config, uri, self._device), self._choice, self._device)
        except Exception as error:  # whatever is wrong with it, the one that works stays
            self._refused = uri
            logger.error("%s cannot be served, so %s stays: %s", uri, self.model.uri, error)
        else:
            logger.info("%s is served from now on", uri)

    def _work(self) -> None:
        with conversion.given_up_when(self._stopped):
            self.model = quickened(self.model, self._choice, self._device)
            if not self._asked or "@" in self._asked:
                while not self._stopped.wait(self._poll_seconds):
                    self.refresh()
