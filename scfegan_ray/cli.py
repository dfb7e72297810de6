"""What all jobs share: arguments, log, a Ray session, and how a job ends."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import re
import secrets
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from types import FrameType
from typing import Annotated, Any, Protocol, TypeVar

import tyro

from scfegan_ray.config import Config, flatten
from scfegan_ray.errors import ConfigError, ScFeganError
from scfegan_ray.evaluation.options import MeasuringConfig
from scfegan_ray.presets import PRESETS, preset

logger = logging.getLogger(__name__)

DEFAULT_PRESET = "quickstart"

_INTERRUPTED = "error: interrupted; run the same command again to go on"
_INTERRUPTED_CODE = 130

_POSTPONED_SECONDS = 0.1
_ANSWER_SECONDS = 10.0
_REASON_CHARACTERS = 400

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # MLflow's own patience of minutes per record would hold up training when its server is away.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    # Tune would take Ctrl-C for a request to go on with the trials that there are.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # What is still under way after an interruption must not start another Ray.
    "RAY_ENABLE_AUTO_CONNECT": "0",
}
"""Set for this process and what it starts, unless the user has set them."""


@dataclass(frozen=True)
class Arguments:
    """What every job takes; a job with flags of its own adds fields with defaults."""

    preset: Annotated[str, tyro.conf.Positional] = DEFAULT_PRESET
    """Starting point that the other arguments override."""
    file: Annotated[str | None, tyro.conf.arg(name="config")] = None
    """Instead of a preset: a config as `--dry-run` prints it and jobs/tune.py writes it; a JSON file, local or s3://."""
    dry_run: bool = False
    """Print the resolved config and stop."""
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


@dataclass(frozen=True)
class MeasuringArguments(Arguments):
    """What jobs take that measure models."""

    measuring: Annotated[MeasuringConfig, tyro.conf.arg(name="")] = field(default_factory=MeasuringConfig)


ArgumentsT = TypeVar("ArgumentsT", bound=Arguments)


class Service(Protocol):
    """What a job gives that goes on: its result is printed at once, then it is waited for."""

    @property
    def result(self) -> dict[str, Any]:
        """What to print."""

    def wait(self) -> None:
        """Go on until Ctrl-C or SIGTERM."""


Job = Callable[[ArgumentsT], "dict[str, Any] | Service"]


def run_job(description: str, kind: type[ArgumentsT], job: Job[ArgumentsT], argv: Sequence[str] | None) -> int:
    """Parse arguments, do the job, and print its result as one line of JSON.

    The result is the last line of stdout; everything else goes to stderr. SIGTERM acts as Ctrl-C does, from here to
    the end; training answers both with a last checkpoint.

    Args:
        description: first lines of `--help`.
        kind: of arguments.
        job: does the work; returns what to print.
        argv: arguments; default the process's.

    Returns:
        Exit code: 0 done, 1 a deliberate error printed as one line, 2 usage, 130 interrupted.
    """
    interruptions = _Interruptions()
    try:
        with interruptions:
            code = _run(description, kind, job, argv)
    except BaseException:
        if not interruptions.came:
            raise
        print(_INTERRUPTED, file=sys.stderr)
        code = _INTERRUPTED_CODE
    # What an interruption passes through may make another error of it.
    return _INTERRUPTED_CODE if code and interruptions.came else code


def _run(description: str, kind: type[ArgumentsT], job: Job[ArgumentsT], argv: Sequence[str] | None) -> int:
    try:
        arguments = _settle(parse(description, kind, sys.argv[1:] if argv is None else argv), is_own=argv is None)
        if arguments.dry_run:
            _write(json.dumps(arguments.config.to_dict(), indent=2) + "\n")
            return 0
        with contextlib.redirect_stdout(sys.stderr):
            _set_up_log()
            _set_up_environment()
            result = job(arguments)
        if not isinstance(result, dict):
            _write(json.dumps(result.result) + "\n")
            with contextlib.redirect_stdout(sys.stderr):
                result.wait()
            return 0
    except SystemExit as stop:
        _write("")
        return stop.code if isinstance(stop.code, int) else 2
    except ScFeganError as error:
        from scfegan_ray import storage

        print(f"error: {storage.without_secrets(' '.join(str(error).split()))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(_INTERRUPTED, file=sys.stderr)
        return _INTERRUPTED_CODE
    _write(json.dumps(result) + "\n")
    return 0


def _write(text: str) -> None:
    """Write to stdout at once; whoever reads it may have gone, as `head` goes when it has seen enough."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends


class _Interruptions:
    """Within the context Ctrl-C and SIGTERM raise a KeyboardInterrupt, unless this process was started to ignore them.

    While a module is imported it waits: raised amid torch's it ends the process in C++, `terminate called`.

    Attributes:
        came: there was one.
    """

    def __init__(self) -> None:
        self.came = False
        self._before: dict[int, Any] = {}
        self._again: threading.Timer | None = None

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._on_signal)

    def __exit__(self, *_: object) -> None:
        if self._again:
            self._again.cancel()
            self._again.join()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        if not _is_importing(frame):
            raise KeyboardInterrupt
        if self._again:
            self._again.cancel()
        main = threading.main_thread().ident
        self._again = threading.Timer(_POSTPONED_SECONDS, signal.pthread_kill, (main, number))
        self._again.start()


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def parse(description: str, kind: type[ArgumentsT], argv: Sequence[str]) -> ArgumentsT:
    """Parse a command line.

    Raises:
        ConfigError: the preset is unknown or a value is refused.
        SystemExit: usage error (2) or `--help` (0).
    """
    description = f"{description}\n\nPresets: {', '.join(PRESETS)}."

    defaults = flatten(asdict(kind()))
    switches = {name.removeprefix("config.") for name, value in defaults.items() if isinstance(value, bool)}
    name, file = _find_preset(argv, switches | {"help"}), _find_file(argv)
    if name is not None and file is not None:
        raise ConfigError(f"{file} and the preset {name} are two starting points; give one of them")
    start = preset(name or DEFAULT_PRESET) if file is None else _read_config(file)
    try:
        arguments = tyro.cli(kind, default=kind(config=start), args=list(argv), description=description)
    except BrokenPipeError:
        raise SystemExit(0) from None  # whoever reads the help has seen enough
    if arguments.preset != (name or DEFAULT_PRESET):
        preset(arguments.preset)
        raise ConfigError(f"cannot tell which argument is the preset; put {arguments.preset} first")
    return arguments


def _find_file(argv: Sequence[str]) -> str | None:
    """Return the value of `--config`, which decides the defaults of all other flags."""
    for before, token in zip(["", *argv], argv, strict=False):
        if before == "--config":
            return token
        if token.startswith("--config="):
            return token.partition("=")[2]
    return None


def _read_config(file: str) -> Config:
    """Read a config that was written as JSON.

    Raises:
        ConfigError: there is no such file, or it holds something else.
    """
    from scfegan_ray import storage

    try:
        return Config.from_dict(json.loads(storage.read_bytes(file)))
    except (ScFeganError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"--config {file} holds no config: {reason}; give what --dry-run printed") from error


def _find_preset(argv: Sequence[str], switches: Set[str]) -> str | None:
    """Return the positional argument, which may stand anywhere among the flags and decides the flags' defaults.

    To tyro, named configurations are subcommands: their flags must follow the name (`extras.overridable_config_cli`,
    even with `conf.CascadeSubcommandArgs`). A first parse by tyro, for the name alone, would check values against
    another preset and print its help.

    Args:
        argv: the command line.
        switches: dotted names of the flags that take no value.
    """
    for before, token in zip(["", *argv], argv, strict=False):
        flag = re.sub(r"(^|\.)no_", r"\1", before.lstrip("-").replace("-", "_"))
        is_value = before.startswith("--") and "=" not in before and flag not in switches
        # Any other word may be a further value of a flag that takes several.
        if token in PRESETS and not is_value:
            return token
    return None


@contextlib.contextmanager
def ray_session(*, dashboard: bool = True) -> Iterator[None]:
    """Join the cluster that `RAY_ADDRESS` names (a submitted job has it set), else start one on this machine.

    Args:
        dashboard: start one, too. Ray Train needs it; without it a twentieth of 2 cores is free for work.
    """
    import ray
    import ray.data

    from scfegan_ray import environment

    address = environment.cluster_address()
    if address is None:
        logger.info("starting Ray on this machine")
        own = {"address": "local", "include_dashboard": dashboard, "runtime_env": _interpreter()}
    else:
        own = dict[str, Any]()
        address = _find_cluster() if address == "auto" else address
        environment.check_address(address)
        _check_answer(address)
        logger.info("joining the Ray cluster at %s", address)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        try:
            with _own_process_groups():
                ray.init(log_to_driver=True, logging_level=logging.WARNING, **own)
        except SystemExit:
            raise KeyboardInterrupt from None  # what Ray's own handler makes of SIGTERM
        except Exception as error:
            raise _refusal(address, error) from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put its own in place
        # Importing Ray Data sets its own level; what it says of its plans is for its log files.
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        yield
    finally:
        ray.shutdown()


_leads_a_group = False
"""What is forked now makes a process group of its own."""


@contextlib.contextmanager
def _own_process_groups() -> Iterator[None]:
    """Let programs that Ray starts within the context not share the process group of this one.

    `timeout` and many a supervisor send SIGTERM to all of a group; Ray would end before its workers have written a
    last checkpoint. What happens to this process alone is enough: Ray ends with it.
    """
    global _leads_a_group
    _leads_a_group = True
    try:
        yield
    finally:
        _leads_a_group = False


def _on_fork() -> None:
    if _leads_a_group:
        os.setpgrp()


os.register_at_fork(after_in_child=_on_fork)


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


def _interpreter() -> dict[str, str]:
    """Return what makes Ray's workers start where the path of Python is more than one word to a shell.

    Ray passes it to one as it stands, for every worker with an environment of its own.
    """
    quoted = shlex.quote(sys.executable)
    return {} if quoted == sys.executable else {"py_executable": quoted}


def _find_cluster() -> str:
    """Return the address of the cluster on this machine that `RAY_ADDRESS=auto` means.

    Raises:
        ConfigError: none runs here.
    """
    from ray._private import services
    from ray._private.authentication import authentication_token_setup

    try:
        found = services.canonicalize_bootstrap_address("auto")
    except ConnectionError:
        found = None
    if not found:
        raise ConfigError(
            "RAY_ADDRESS is auto and no Ray runs on this machine; start one with `ray start --head`, or unset "
            "RAY_ADDRESS for a Ray of the job's own"
        )
    # As Ray does for `auto`, and only then.
    authentication_token_setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    return str(found)


def _check_answer(address: str) -> None:
    """Ask the head of a cluster for its id; Ray itself would ask in vain for minutes, and not say why.

    Raises:
        ConfigError: no Ray answers within seconds, or it wants another token.
    """
    import grpc
    import ray.exceptions
    from ray._private import grpc_utils

    from scfegan_ray import environment

    wrong_token = ConfigError(
        f"the Ray cluster at {address} wants another token than this job has; set RAY_AUTH_MODE=token and "
        "RAY_AUTH_TOKEN to the token of that cluster, or unset RAY_ADDRESS for a Ray of the job's own"
    )
    try:
        with grpc_utils.init_grpc_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")(b"", timeout=_ANSWER_SECONDS)
    except ray.exceptions.AuthenticationError as error:  # this side has none at all
        raise wrong_token from error
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            raise wrong_token from error
        reason = " ".join(f"{error.code().name}: {error.details()}".split())[:200]
        raise ConfigError(f"no Ray answers at RAY_ADDRESS {address} ({reason}); {environment.JOIN_CURES}") from error


def _refusal(address: str | None, error: Exception) -> ConfigError:
    """Say in one line why Ray could not be started or joined."""
    said = " ".join(str(error).split()).rstrip(".")
    if len(said) > _REASON_CHARACTERS:  # a traceback ends with its cause
        said = f"{said[: _REASON_CHARACTERS // 2]} … {said[-_REASON_CHARACTERS // 2 :]}"
    reason = f"{type(error).__name__}: {said}"
    if address is None:
        return ConfigError(
            f"cannot start Ray on this machine ({reason}); its logs are in {os.environ.get('RAY_TMPDIR')}/ray"
        )
    return ConfigError(
        f"cannot join the Ray cluster at {address} ({reason}); use its versions of Python and Ray on one of its nodes, "
        "or unset RAY_ADDRESS for a Ray of the job's own"
    )


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Look for no garbage within the context: in modules that are imported there is none, and it takes a second.

    What is there at the end is never looked at again.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def named(config: Config, run_name: str) -> Config:
    """Give a config a run name where it has none."""
    return config if config.run_name else replace(config, run_name=run_name)


def _set_up_environment() -> None:
    """Set what Ray and MLflow read when they are imported.

    A cluster of our own gets a token of its own through the environment: Ray would otherwise write one to the home
    folder, after which `ray start` and `ray job submit` disagree about it. It also gets a temporary folder of its own.
    No cloud takes this machine away at short notice, so nobody needs to watch for it.
    """
    from scfegan_ray import environment

    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("RAY_COLOR_PREFIX", "1" if sys.stderr.isatty() else "0")
    environment.settle()
    if environment.cluster_address() is None:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        environment.settle_ray_folder()
        if "RAY_AUTH_MODE" not in os.environ:
            os.environ["RAY_AUTH_MODE"] = "token"
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _set_up_log() -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("scfegan_ray").setLevel(logging.INFO)
