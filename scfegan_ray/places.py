"""Places that people name, settled before anything is started, stored, logged or sent.

A place crosses process borders only as an absolute one, because workers have another working directory, and without
user, password or token: those stand in the environment, from where the processes of an own Ray inherit them.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from urllib.parse import parse_qsl, quote, unquote, urlencode

from scfegan_ray import storage
from scfegan_ray.config import Config
from scfegan_ray.errors import ConfigError, ScFeganError, StorageError

logger = logging.getLogger(__name__)

_PATH_VARIABLES = (
    "SCFEGAN_CACHE",
    "XDG_CACHE_HOME",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CONFIG_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "MLFLOW_TRACKING_CLIENT_CERT_PATH",
    "MLFLOW_TRACKING_SERVER_CERT_PATH",
    "NETRC",
    "PGPASSFILE",
)
"""Variables that hold one path, which this program and what it is built on read in any process."""

_MLFLOW_LOGIN = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
_POSTGRESQL_LOGIN = ("PGUSER", "PGPASSWORD")
_LIBPQ = ("postgresql", "postgres", "postgresql+psycopg2", "postgresql+psycopg")
"""Schemes whose driver reads the PG* variables."""
_NO_PATHS = ("databricks", "databricks-uc", "uc")
"""Words that MLflow takes for a server, not for a folder."""
_NO_FILES = ("auto", "hed", "random")
"""Words that `losses.features` takes besides a file."""
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):", re.IGNORECASE)


def settle(config: Config) -> Config:
    """Return a config whose places mean the same in every process and hold no secret; settle the environment, too.

    User and password of the tracking server are moved to the environment (see `settle_tracking`). Settling twice
    changes nothing.

    Raises:
        ConfigError: a user or password stands where no driver would find it again outside its URI.
        StorageError: a path begins with the home folder of nobody.
    """
    for name in _PATH_VARIABLES:
        if os.environ.get(name):
            os.environ[name] = _checked(name, storage.absolute, os.environ[name])
    tracking = config.tracking.uri
    if tracking:
        tracking = _checked("tracking.uri", settle_tracking, tracking)
    # Another server's password must not be sent to the one that the config names.
    kinds = {"MLFLOW_TRACKING_URI": _without_login if tracking else settle_tracking, "MLFLOW_REGISTRY_URI": _registry}
    for name, work in kinds.items():
        if os.environ.get(name):
            os.environ[name] = _checked(name, work, os.environ[name])
    data = config.data
    return replace(
        config,
        data=replace(
            data,
            source=_settled("data.source", data.source, "embedded") or "",
            prepared=_settled("data.prepared", data.prepared),
            parser=replace(data.parser, model=_settled("data.parser.model", data.parser.model)),
        ),
        losses=replace(config.losses, features=settle_features(config.losses.features)),
        storage=replace(config.storage, path=_settled("storage.path", config.storage.path) or ""),
        tracking=replace(config.tracking, uri=tracking),
    )


def settle_features(features: str) -> str:
    """Return what `losses.features` says, made absolute where it is a file."""
    return _settled("losses.features", features, *_NO_FILES) or ""


def settle_tracking(uri: str) -> str:
    """Return an MLflow URI that is absolute and has no user and password, which then stand in the environment.

    MLflow reads them from `MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`, PostgreSQL's client library from
    `PGUSER` and `PGPASSWORD`.

    Args:
        uri: `sqlite:///` and a path, a `file:` URI, a path, an `http(s)://` or a database's URI.

    Raises:
        ConfigError: it holds a secret that cannot be moved.
    """
    settled, login = _parse(uri)
    if login:
        os.environ.update(login)
        if os.environ.get("RAY_ADDRESS"):
            logger.warning(
                "user and password of the MLflow server stay on this machine; on the nodes of the cluster that is "
                "joined they must be in %s and %s",
                *login,
            )
    return settled


@contextmanager
def logged_in(uri: str) -> Iterator[str]:
    """Give an MLflow URI as `settle_tracking` does, with user and password in the environment for the context only."""
    settled, login = _parse(uri)
    with variables(login):
        yield settled


@contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment for the context only."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def hide_argument(given: str | None, settled: str | None) -> None:
    """Begin this program anew without the password on its command line, which `ps` shows and Ray writes down.

    Args:
        given: MLflow's URI as it may stand on the command line.
        settled: the same by `settle_tracking`. Where that took nothing out, nothing is done.
    """
    if not given or not settled or not _parse(given)[1]:
        return
    command = [argument.replace(given, settled) for argument in sys.orig_argv]
    if command != sys.orig_argv:
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, *command[1:]])


def logins(uri: str) -> list[str]:
    """Return the variables of this process with which it logs in to an MLflow server or database."""
    scheme = uri.partition("://")[0].lower()
    names = _MLFLOW_LOGIN if scheme in ("http", "https") else _POSTGRESQL_LOGIN if scheme in _LIBPQ else ()
    return present(names)


def present(names: Sequence[str]) -> list[str]:
    """Return those of some variables that are set in this process."""
    return [name for name in names if os.environ.get(name)]


def sqlite_uri(path: str) -> str:
    """Return the URI of a SQLite file at an absolute path, of whatever characters."""
    # Where the URI begins with sqlite:/// MLflow makes the file's folder, but one named as the URI spells it.
    return f"{'sqlite' if quote(path) == path else 'sqlite+pysqlite'}:///{quote(path)}"


def sqlite_path(uri: str) -> str | None:
    """Return the path of the file that such a URI names, None for another URI."""
    start, _, rest = uri.partition(":///")
    return unquote(rest.partition("?")[0]).removeprefix("file:") if start.partition("+")[0] == "sqlite" else None


def _parse(uri: str) -> tuple[str, dict[str, str]]:
    """Return an MLflow URI without its user and password, and the variables that hold them."""
    found = _SCHEME.match(uri)
    scheme = found[1].lower() if found else ""
    if scheme.partition("+")[0] == "sqlite":
        return _absolute_sqlite(uri), {}
    if scheme in ("", "file"):
        return (uri if uri in _NO_PATHS else f"file://{quote(storage.absolute(uri))}"), {}
    if "://" not in uri:
        return uri, {}  # such as an arn:
    start, _, rest = uri.partition("://")
    rest, _, query = rest.partition("?")
    authority, slash, path = rest.partition("/")
    userinfo, at, host = authority.rpartition("@")
    if "@" in path + query:
        raise ConfigError(
            f"the {scheme}:// URI has an @ behind its host; write / ? # @ of a password as %2F %3F %23 %40"
        )
    user, colon, password = userinfo.partition(":")
    login = {"user": unquote(user), "password": unquote(password)}
    if scheme in _LIBPQ:
        pairs = parse_qsl(query, keep_blank_values=True)
        login |= {name: value for name, value in pairs if name in login}
        query = urlencode([(name, value) for name, value in pairs if name not in login])
    if storage.without_secrets(f"?{query}") != f"?{query}":
        raise ConfigError(
            f"the URI of MLflow at {host} has a secret behind its ?; give it without, and set "
            f"{'MLFLOW_TRACKING_TOKEN' if scheme in ('http', 'https') else 'it where the driver of the database looks'}"
        )
    if scheme in _LIBPQ and not login["password"]:
        return uri, {}  # a database's user alone is no secret, and its password in PGPASSWORD or a file
    if not at and not login["password"]:
        return uri, {}
    rest = f"{start}://{host}{slash}{path}" + (f"?{query}" if query else "")
    if scheme in ("http", "https"):
        if not (login["user"] and login["password"]):
            raise ConfigError(
                f"the URI of MLflow at {host} has a user or a password alone; give both, or set MLFLOW_TRACKING_TOKEN"
            )
        return rest, dict(zip(_MLFLOW_LOGIN, login.values(), strict=True))
    if scheme in _LIBPQ:
        return rest, {name: value for name, value in zip(_POSTGRESQL_LOGIN, login.values(), strict=True) if value}
    raise ConfigError(
        f"the {scheme}:// URI at {host} holds a user, which would be stored with every run; run an MLflow server "
        "before that database and give its address"
    )


def _without_login(uri: str) -> str:
    return _parse(uri)[0]


def _registry(uri: str) -> str:
    settled, login = _parse(uri)
    if any(os.environ.get(name) != value for name, value in login.items()):
        raise ConfigError(f"MLflow logs in to server and registry alike; set {' and '.join(login)} instead")
    return settled


def _absolute_sqlite(uri: str) -> str:
    start, slashes, rest = uri.partition(":///")
    name, mark, query = rest.partition("?")
    path = unquote(name)
    if not slashes or path in ("", ":memory:", "file::memory:"):
        raise ConfigError("a SQLite database in memory is lost with its process; give sqlite:/// and a path")
    place = storage.absolute(path)
    if path.startswith("file:"):
        return f"{start}:///file:{quote(place)}{mark}{query}"
    return f"{sqlite_uri(place) if start == 'sqlite' else f'{start}:///{quote(place)}'}{mark}{query}"


def _settled(name: str, place: str | None, *words: str) -> str | None:
    """Make a place absolute unless it is one of some words, or empty, which is for others to refuse."""
    return _checked(name, storage.absolute, place) if place and place not in words else place


def _checked(name: str, work: Callable[[str], str], place: str) -> str:
    try:
        return work(place)
    except ScFeganError as error:
        kind = StorageError if isinstance(error, StorageError) else ConfigError
        raise kind(f"{name}: {error}") from None
