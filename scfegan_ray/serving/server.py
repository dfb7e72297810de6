"""The app under uvicorn, in this process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import time
from dataclasses import dataclass
from urllib.parse import quote

import uvicorn
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scfegan_ray.config import Config
from scfegan_ray.errors import ConfigError, StorageError
from scfegan_ray.serving import api
from scfegan_ray.serving.current import CurrentModel
from scfegan_ray.serving.options import ServingConfig
from scfegan_ray.serving.threads import LastingThread

logger = logging.getLogger(__name__)

TOKEN_VARIABLE = "SCFEGAN_TOKEN"
"""Environment variable with what every request must bring; without it each start makes another one."""

_MOST_CONNECTIONS = 512
_GOODBYE_SECONDS = 5
_EVERYWHERE = ("0.0.0.0", "::", "")


@dataclass(frozen=True, slots=True)
class Server:
    """An editor that serves.

    Attributes:
        url: to be opened in a browser; it holds the token where one is wanted.
        model_uri: which model edits.
    """

    url: str
    model_uri: str
    _server: uvicorn.Server
    _thread: LastingThread
    _current: CurrentModel

    @property
    def result(self) -> dict[str, str]:
        """What the job prints."""
        return {"url": self.url, "model_uri": self.model_uri}

    def wait(self) -> None:
        """Serve until Ctrl-C or SIGTERM."""
        with contextlib.suppress(KeyboardInterrupt):
            self._thread.wait()
        self.close()

    def close(self) -> None:
        """Answer what was asked, and end; one more Ctrl-C leaves the answers out."""
        self._server.should_exit = True
        self._thread.outlast(self._give_up)
        self._current.stop()

    def _give_up(self) -> None:
        self._server.force_exit = True


def start(config: Config, options: ServingConfig, *, model: str = "", device: str = "cpu") -> Server:
    """Serve the editor.

    Args:
        config: names the registry.
        options: where to listen, and limits.
        model: as in `current.choose`.
        device: where to compute.

    Raises:
        ModelError: there is no such model.
        ConfigError: the address cannot be listened at, or the device is not there.
        StorageError: the registry cannot be used.
    """
    listening = _listen(options)
    try:
        current = CurrentModel(config, model, options, device)
        token = token_of(options) if TOKEN_VARIABLE in os.environ or options.is_local else secrets.token_urlsafe(24)
        server = uvicorn.Server(
            uvicorn.Config(
                _ending(api.create_app(current, options, token=token)),
                log_level="warning",
                access_log=False,
                server_header=False,
                lifespan="off",
                ws="none",
                limit_concurrency=_MOST_CONNECTIONS,
                timeout_graceful_shutdown=_GOODBYE_SECONDS,
            )
        )
        thread = LastingThread(lambda: server.run([listening]), "scfegan-server")
        if not options.is_local:
            logger.warning("pictures and the token go over the network as they are; put TLS in front of it")
        url = url_of(options, listening.getsockname()[1], token)
        running = Server(url, current.model.uri, server, thread, current)
    except BaseException:
        listening.close()
        raise
    try:
        thread.start()
        while not server.started:
            if not thread.is_alive():
                raise StorageError("the server ended as it began; its log says why")
            time.sleep(0.01)
        current.follow()
    except BaseException:
        running.close()
        listening.close()
        raise
    return running


def token_of(options: ServingConfig) -> str:
    """Return what every request must bring, from the environment; empty on this machine alone.

    Raises:
        ConfigError: others can reach it, and there is none.
    """
    token = os.environ.get(TOKEN_VARIABLE, "")
    if not token and not options.is_local:
        raise ConfigError(
            f"others can reach {options.host}; set {TOKEN_VARIABLE} on all nodes to what every request shall bring, "
            'such as python -c "import secrets; print(secrets.token_urlsafe())" prints'
        )
    return token


def url_of(options: ServingConfig, port: int, token: str = "", *, here: bool = False) -> str:
    """Return what is to be opened in a browser.

    Args:
        options: where it listens.
        port: that it was given.
        token: that is wanted.
        here: by this machine itself.
    """
    everywhere = "127.0.0.1" if here else socket.gethostname()
    name = everywhere if options.host in _EVERYWHERE else options.host
    host = f"[{name}]" if ":" in name else name
    return f"http://{host}:{port}/" + (f"?token={quote(token, safe='')}" if token else "")


def _ending(app: ASGIApp) -> ASGIApp:
    """Let a request that the end of the server breaks off be answered as others are, instead of by a traceback."""

    async def ending(scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def sent(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await app(scope, receive, sent)
        except asyncio.CancelledError:
            if not has_begun:
                await JSONResponse({"error": "the editor has ended; start it again"}, 503)(scope, receive, send)

    return ending


def _listen(options: ServingConfig) -> socket.socket:
    """Take the port before anything is loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            options.host or None, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
        except OSError:
            listening.close()
            raise
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"cannot listen at {options.host} port {options.port} ({error}); give another --port (0 takes any), or "
            "the address of this machine as --host"
        ) from error
    return listening
