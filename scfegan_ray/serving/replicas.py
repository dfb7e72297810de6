"""The same app on a Ray cluster: Ray Serve runs copies of it, any of which answers any request.

`application` is what `cluster/serve.yaml` names, for `serve deploy` and KubeRay's RayService.
"""

from __future__ import annotations

import contextlib
import threading
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from fastapi import FastAPI
from ray import serve
from ray.serve.schema import ApplicationStatus

from scfegan_ray import places
from scfegan_ray.config import Config
from scfegan_ray.errors import ConfigError, ModelError
from scfegan_ray.serving import api, current, server
from scfegan_ray.serving.options import ServingConfig

NAME = "scfegan-editor"
_ANSWER_SECONDS = 30
_MOST_REQUESTS = 256
# Of one copy at a time; how many may wait for its model, its app says itself.
_FIELDS = ("model", "device", "storage", "tracking", "serving")


class EditorReplica:
    """One copy.

    Args:
        config: names the registry.
        options: limits.
        model: as in `current.choose`.
        device: where to compute: cpu, or the GPU that Ray gives this copy.
    """

    def __init__(self, config: Config, options: ServingConfig, model: str, device: str) -> None:
        if device == "cpu":
            torch.set_num_threads(max(1, int(options.cpus_per_replica)))
        self._options = options
        self._current = current.CurrentModel(config, model, options, device)
        self._current.follow()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Make the app, on the replica."""
        return api.create_app(self._current, self._options, token=server.token_of(self._options))


@dataclass(frozen=True, slots=True)
class Replicas:
    """An editor that a cluster serves.

    Attributes:
        url: to be opened in a browser.
        model_uri: which model edits.
    """

    url: str
    model_uri: str
    _stack: contextlib.ExitStack

    @property
    def result(self) -> dict[str, str]:
        """What the job prints."""
        return {"url": self.url, "model_uri": self.model_uri}

    def wait(self) -> None:
        """Serve until Ctrl-C or SIGTERM."""
        with self._stack, contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


def start(
    config: Config,
    options: ServingConfig,
    *,
    model: str,
    device: str,
    session: Callable[[], contextlib.AbstractContextManager[None]],
) -> Replicas:
    """Serve the editor by `options.replicas` copies.

    Args:
        config: names the registry, at a place that all nodes see.
        options: where each node listens, limits, and how many copies.
        model: as in `current.choose`.
        device: cpu, or cuda for a GPU each.
        session: joins or starts Ray.

    Raises:
        ModelError: there is no such model, or the copies do not start.
        ConfigError: the address needs a token and there is none.
    """
    if not options.port:
        raise ConfigError("all nodes listen at one port; give --port, from 1 to 65535")
    token = server.token_of(options)
    chosen = current.choose(config, model)
    with contextlib.ExitStack() as stack:
        stack.enter_context(session())
        serve.start(http_options={"host": options.host, "port": options.port})
        # Others may serve on the same cluster, so nothing else of Serve is touched.
        stack.callback(serve.delete, NAME)
        try:
            serve.run(bind(config, options, model=model, device=device), name=NAME, route_prefix="/")
        except RuntimeError as error:
            raise ModelError(f"{chosen} is not served: {_reason(error)}") from error
        _check_answer(options)
        return Replicas(server.url_of(options, options.port, token), chosen, stack.pop_all())


def bind(config: Config, options: ServingConfig, *, model: str, device: str) -> serve.Application:
    """Describe the copies to Ray Serve."""
    resources = {"num_cpus": options.cpus_per_replica, "num_gpus": 0 if device == "cpu" else 1}
    deployment = serve.deployment(
        serve.ingress()(EditorReplica),
        name="editor",
        num_replicas=max(1, options.replicas),
        max_ongoing_requests=_MOST_REQUESTS,
        ray_actor_options=resources,
    )
    return deployment.bind(config, options, model, device)


def application(args: Mapping[str, Any]) -> serve.Application:
    """Build the app from a Serve config file.

    Args:
        args: model, device; storage and tracking as in a config (`--dry-run` prints one); serving: fields of
            `ServingConfig`.

    Raises:
        ConfigError: there is another key, or a value is out of range.
    """
    unknown = sorted(set(args) - set(_FIELDS))
    if unknown:
        raise ConfigError(f"the application's args have an unknown {unknown[0]!r}; known are {', '.join(_FIELDS)}")
    given = Config().to_dict() | {name: dict(args[name]) for name in ("storage", "tracking") if name in args}
    try:
        options = ServingConfig(**args.get("serving", {}))
    except TypeError as error:
        raise ConfigError(f"serving: {error}") from error
    config = places.settle(Config.from_dict(given))
    return bind(config, options, model=args.get("model", ""), device=args.get("device", "cpu"))


def _check_answer(options: ServingConfig) -> None:
    """Make sure that Serve listens where it was told to: one that ran before keeps its own address.

    Raises:
        ConfigError: it does not.
    """
    url = f"{server.url_of(options, options.port, here=True)}api/health"
    try:
        urllib.request.urlopen(url, timeout=_ANSWER_SECONDS).close()
    except OSError as error:
        raise ConfigError(
            f"the editor does not answer at {options.host} port {options.port} ({error}): Ray Serve ran on this "
            "cluster before, at another address; give that one as --host and --port, or end it with `serve shutdown`"
        ) from error


def _reason(error: Exception) -> str:
    """Return why copies do not start, as Serve's status has it."""
    found = serve.status().applications.get(NAME)
    if found is None or found.status != ApplicationStatus.DEPLOY_FAILED:
        return " ".join(str(error).split())[:400]
    return " ".join(found.message.split())[-400:]
