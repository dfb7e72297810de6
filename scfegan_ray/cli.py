"""What all jobs share: arguments, log, a Ray session, and how a job ends."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from scfegan_ray.config import Config
from scfegan_ray.errors import ConfigError, ScFeganError
from scfegan_ray.presets import PRESETS, preset

logger = logging.getLogger(__name__)

DEFAULT_PRESET = "quickstart"

_NUMBER = re.compile(r"[\d.]+(e[+-]?\d+)?")

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # MLflow's own patience of minutes per record would hold up training when its server is away.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
"""Set for this process and what it starts, unless the user has set them."""


@dataclass(frozen=True)
class Arguments:
    """What every job takes; a job with flags of its own adds fields with defaults."""

    preset: Annotated[str, tyro.conf.Positional] = DEFAULT_PRESET
    """Starting point that the other arguments override."""
    dry_run: bool = False
    """Print the resolved config and stop."""
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


ArgumentsT = TypeVar("ArgumentsT", bound=Arguments)


def run_job(
    description: str, kind: type[ArgumentsT], job: Callable[[ArgumentsT], dict[str, Any]], argv: Sequence[str] | None
) -> int:
    """Parse arguments, do the job, and print its result as one line of JSON.

    The result is the last line of stdout; everything else goes to stderr.

    Args:
        description: first lines of `--help`.
        kind: of arguments.
        job: does the work; returns what to print.
        argv: arguments; default the process's.

    Returns:
        Exit code: 0 done, 1 a deliberate error printed as one line, 2 usage.
    """
    try:
        arguments = _settle(parse(description, kind, sys.argv[1:] if argv is None else argv), is_own=argv is None)
        if arguments.dry_run:
            print(json.dumps(arguments.config.to_dict(), indent=2))
            return 0
        with contextlib.redirect_stdout(sys.stderr):
            _set_up_log()
            _set_up_environment()
            result = job(arguments)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    except ScFeganError as error:
        from scfegan_ray import storage

        print(f"error: {storage.without_secrets(' '.join(str(error).split()))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    print(json.dumps(result), flush=True)
    return 0


def parse(description: str, kind: type[ArgumentsT], argv: Sequence[str]) -> ArgumentsT:
    """Parse a command line.

    Raises:
        ConfigError: the preset is unknown or a value is refused.
        SystemExit: usage error (2) or `--help` (0).
    """
    description = f"{description}\n\nPresets: {', '.join(PRESETS)}."

    switches = [f.name.replace("_", "-") for f in fields(kind) if f.default is False]
    name = _find_preset(argv, switches)
    arguments = tyro.cli(kind, default=kind(config=preset(name)), args=list(argv), description=description)
    if arguments.preset != name:
        raise ConfigError(f"cannot tell which argument is the preset; put {arguments.preset} first")
    return arguments


def _find_preset(argv: Sequence[str], switches: Sequence[str]) -> str:
    """Return the positional argument, which may stand anywhere among the flags and decides the flags' defaults."""
    without_value = {"-h", "--help"} | {f"--{start}{name}" for name in switches for start in ("", "no-")}
    is_value = False
    for token in argv:
        if is_value:
            is_value = False
        elif token.startswith("-"):
            is_value = "=" not in token and token not in without_value
        elif not _NUMBER.fullmatch(token):  # a number is a further value of a flag that takes several
            return token
    return DEFAULT_PRESET


@contextlib.contextmanager
def ray_session(*, dashboard: bool = True) -> Iterator[None]:
    """Join the cluster that `RAY_ADDRESS` names (a submitted job has it set), else start one on this machine.

    Args:
        dashboard: start one, too. Ray Train needs it; without it a twentieth of 2 cores is free for work.
    """
    import ray
    import ray.data

    joins = _joins_cluster()
    logger.info("joining the Ray cluster" if joins else "starting Ray on this machine")
    own = {} if joins else {"address": "local", "include_dashboard": dashboard}
    ray.init(log_to_driver=True, logging_level=logging.WARNING, **own)
    # Importing Ray Data sets its own level; what it says of its plans is for its log files.
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()


def _settle(arguments: ArgumentsT, *, is_own: bool) -> ArgumentsT:
    """Settle places, see `places.settle`.

    Args:
        arguments: of the job.
        is_own: they are this process's; a password among them is taken out of its command line, too.
    """
    from scfegan_ray import places

    config = places.settle(arguments.config)
    if is_own:
        places.hide_argument(arguments.config.tracking.uri, config.tracking.uri)
    return replace(arguments, config=config)


def named(config: Config, run_name: str) -> Config:
    """Give a config a run name where it has none."""
    return config if config.run_name else replace(config, run_name=run_name)


def _joins_cluster() -> bool:
    return bool(os.environ.get("RAY_ADDRESS"))


def _set_up_environment() -> None:
    """Set what Ray and MLflow read when they are imported.

    A cluster of our own gets a token of its own through the environment: Ray would otherwise write one to the home
    folder, after which `ray start` and `ray job submit` disagree about it. It also gets a temporary folder of its own:
    in Ray's usual one a `ray start` that was killed may have left an address where nobody answers any more, which
    parts of Ray Train would ask. No cloud takes this machine away at short notice, so nobody needs to watch for it.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("RAY_COLOR_PREFIX", "1" if sys.stderr.isatty() else "0")
    if not _joins_cluster():
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        os.environ.setdefault("RAY_TMPDIR", str(Path(tempfile.gettempdir(), f"scfegan-{os.getuid()}")))
        if "RAY_AUTH_MODE" not in os.environ:
            os.environ["RAY_AUTH_MODE"] = "token"
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _set_up_log() -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("scfegan_ray").setLevel(logging.INFO)
