"""Arguments: the preset may stand anywhere, overrides are dotted, mistakes end with one line and a code."""

from __future__ import annotations

import gc
import http.server
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from running import ROOT
from servers import free_port

from scfegan_ray import cli
from scfegan_ray.config import flatten
from scfegan_ray.errors import ConfigError, DataError
from scfegan_ray.presets import preset


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        ([], "quickstart"),
        (["small_256"], "small_256"),
        (["--model.num-downsamples", "7", "paper_512"], "paper_512"),
        (["--data.eyes", "0.3", "0.5", ".7", "5e-1", "small_256"], "small_256"),
        (["--model.dilations", "2", "4", "--run-name", "quickstart", "small_256"], "small_256"),
        (["paper_512", "--seed=3"], "paper_512"),
        (["--train.wait-for-nodes", "--run-name", "x", "small_256"], "small_256"),
        (["--train.no-use-gpu", "small_256"], "small_256"),
        (["--train.no_use_gpu", "--seed", "1", "small_256"], "small_256"),
        (["--seed", "3", "paper_512", "--losses.style", "60"], "paper_512"),
        (["--data.parser.mean", "0", ".1", "-1", "paper_512"], "paper_512"),
        (["--run-name", "paper_512"], "quickstart"),
    ],
)
def test_preset_is_found(argv: list[str], name: str) -> None:
    found = cli.parse("", cli.Arguments, argv)
    assert (found.preset, found.dry_run) == (name, False)
    assert found.config.data.size_px == preset(name).data.size_px


@dataclass(frozen=True)
class Extended(cli.Arguments):
    shout: bool = False
    say: str | None = None


@pytest.mark.parametrize(
    "name", [name for name, value in flatten(preset("paper_512").to_dict()).items() if isinstance(value, bool)]
)
def test_every_switch_may_stand_before_another_flag(name: str) -> None:
    block, _, last = name.replace("_", "-").rpartition(".")
    for switch, value in ((f"--{block}.{last}", True), (f"--{block}.no-{last}", False)):
        config = cli.parse("", cli.Arguments, [switch, "--run-name", "x", "--seed", "3"]).config
        assert flatten(config.to_dict())[name] is value
        assert (config.run_name, config.seed) == ("x", 3)


def test_job_may_add_flags() -> None:
    found = cli.parse("", Extended, ["--shout", "small_256", "--say", "hello", "--seed", "2"])
    assert (found.shout, found.say, found.preset, found.config.seed) == (True, "hello", "small_256", 2)


@pytest.mark.parametrize("flag", ["--help", "--dry-run"])
def test_reader_may_go_before_the_end(flag: str) -> None:
    command = [sys.executable, str(ROOT / "jobs" / "train.py"), flag]
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (0, "")


def test_override_changes_only_what_it_names() -> None:
    config = cli.parse("", cli.Arguments, ["--losses.style", "60", "--train.num-workers", "1"]).config
    expected = preset("quickstart").to_dict()
    expected["losses"]["style"] = 60.0
    expected["train"]["num_workers"] = 1
    assert config.to_dict() == expected


def _never(arguments: cli.Arguments) -> dict[str, Any]:
    raise AssertionError("the job must not start")


@pytest.mark.parametrize(
    ("argv", "code", "named"),
    [
        (["--no-such-flag", "1"], 2, "no-such-flag"),
        (["gigantic"], 1, "unknown preset 'gigantic'"),
        (["--data.size-px", "100"], 1, "data.size_px 100"),
        (["--losses.style", "-1"], 2, "losses.style is -1.0"),
        (["--train.images", "many"], 2, "many"),
    ],
)
def test_usage_mistakes(argv: list[str], code: int, named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_job("", cli.Arguments, _never, argv) == code
    captured = capsys.readouterr()
    assert named in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("argv", "images"),
    [(["--help"], "3200"), (["-h", "paper_512"], "3000000"), (["--dry-run", "small_256", "--help"], "500000")],
)
def test_help_shows_the_defaults_of_the_preset(
    argv: list[str], images: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.parse("", cli.Arguments, argv)
    shown = re.search(r"--train\.images .*?default: (\d+)\)", capsys.readouterr().out, re.DOTALL)
    assert shown is not None and shown[1] == images


def test_help_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_job("What it does.", cli.Arguments, _never, ["--help"]) == 0
    assert "--losses.style" in capsys.readouterr().out


def test_dry_run_prints_the_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_job("", cli.Arguments, _never, ["small_256", "--dry-run", "--seed", "5"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["seed"], values["data"]["size_px"]) == (5, 256)


def test_garbage_is_collected_again_after_a_start() -> None:
    with pytest.raises(ConfigError), cli.uncollected():
        assert not gc.isenabled()
        raise ConfigError("the port is taken")
    assert gc.isenabled()


def test_result_is_the_last_line_and_the_only_one(capsys: pytest.CaptureFixture[str]) -> None:
    def job(arguments: cli.Arguments) -> dict[str, Any]:
        print("chatter")
        return {"preset": arguments.preset}

    assert cli.run_job("", cli.Arguments, job, []) == 0
    captured = capsys.readouterr()
    assert captured.out == '{"preset": "quickstart"}\n'
    assert "chatter" in captured.err


def test_deliberate_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def job(arguments: cli.Arguments) -> dict[str, Any]:
        raise DataError("no folder\nat x; check y")

    assert cli.run_job("", cli.Arguments, job, []) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: no folder at x; check y"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_acts_like_ctrl_c(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    def job(arguments: cli.Arguments) -> dict[str, Any]:
        try:
            signal.raise_signal(number)
        finally:
            cleaned.append(True)
        raise AssertionError("it went on")

    cleaned: list[bool] = []
    before = signal.getsignal(signal.SIGTERM)
    assert cli.run_job("", cli.Arguments, job, []) == 130
    captured = capsys.readouterr()
    assert (captured.out, captured.err.splitlines()[-1]) == (
        "",
        "error: interrupted; run the same command again to go on",
    )
    assert cleaned == [True]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("goes_on", [True, False])
def test_an_interruption_waits_for_an_import(goes_on: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is forgotten where the job ends with it."""
    (tmp_path / "half_a_module.py").write_text("import signal\nsignal.raise_signal(signal.SIGTERM)\nwhole = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    imported: list[bool] = []

    def job(arguments: cli.Arguments) -> dict[str, Any]:
        try:
            imported.append(importlib.import_module("half_a_module").whole)
        finally:
            sys.modules.pop("half_a_module", None)
        if goes_on:
            time.sleep(60)
        return {}

    assert cli.run_job("", cli.Arguments, job, []) == (130 if goes_on else 0)
    assert imported == [True]
    time.sleep(0.3)


def test_a_signal_that_was_ignored_stays_so() -> None:
    def job(arguments: cli.Arguments) -> dict[str, Any]:
        signal.raise_signal(signal.SIGINT)
        return {}

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as for the background of a shell, or by nohup
    try:
        assert cli.run_job("", cli.Arguments, job, []) == 0
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("error", [ImportError("cannot import half a module"), DataError("no such thing")])
def test_an_interruption_that_became_another_error_is_one(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def job(arguments: cli.Arguments) -> dict[str, Any]:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise error from None
        raise AssertionError("it went on")

    assert cli.run_job("", cli.Arguments, job, []) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_an_error_without_an_interruption_stays_one() -> None:
    def job(arguments: cli.Arguments) -> dict[str, Any]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cli.run_job("", cli.Arguments, job, [])


def _ask(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with cli.ray_session():
        raise AssertionError("nobody is there")


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://127.0.0.1:8265", "is no cluster's; start the job with `ray job submit`"),
        ("ray://127.0.0.1:10001", "is of a Ray Client"),
        ("head", "is not HOST:PORT"),
        ("head:99999", "is not HOST:PORT"),
    ],
)
def test_ray_address_of_another_kind(address: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=f"RAY_ADDRESS {re.escape(address)} {re.escape(reason)}"):
        _ask(address, monkeypatch)


def test_dead_ray_address_is_told_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"127.0.0.1:{free_port()}"
    start = time.monotonic()
    with pytest.raises(ConfigError, match=f"no Ray answers at RAY_ADDRESS {address} .*refused.*unset RAY_ADDRESS"):
        _ask(address, monkeypatch)
    assert time.monotonic() - start < 60, "most of it for imports"


def test_another_program_at_the_ray_address(monkeypatch: pytest.MonkeyPatch) -> None:
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ConfigError, match="no Ray answers at RAY_ADDRESS"):
            _ask(f"127.0.0.1:{server.server_port}", monkeypatch)
        server.shutdown()


class _Refusing(grpc.GenericRpcHandler):  # type: ignore[misc]
    """A head that does not know the token."""

    def service(self, details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        )


def test_cluster_with_another_token(monkeypatch: pytest.MonkeyPatch) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((_Refusing(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with pytest.raises(ConfigError, match=f"at 127.0.0.1:{port} wants another token .*RAY_AUTH_TOKEN"):
            _ask(f"127.0.0.1:{port}", monkeypatch)
    finally:
        server.stop(None)


def test_what_ray_says_when_it_cannot_be_joined_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.40.0\n    Python: 3.10.1")
    assert "ValueError: what counts)" in str(cli._refusal(None, RuntimeError("log " * 500 + "ValueError: what counts")))
    said = str(cli._refusal("head:6379", error))
    assert "cluster was started with: Ray: 2.40.0 Python: 3.10.1)" in said
    assert "use its versions of Python and Ray" in said


def test_printed_config_is_a_starting_point(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["small_256", "--losses.style", "60", "--run-name", "mine", "--dry-run"]
    assert cli.run_job("", cli.Arguments, lambda _: {}, argv) == 0
    file = tmp_path / "my config.json"
    file.write_text(capsys.readouterr().out)
    for given in (["--config", str(file)], [f"--config={file}"]):
        found = cli.parse("", cli.Arguments, [*given, "--losses.hole", "3"]).config
        expected = preset("small_256")
        assert (found.losses.style, found.losses.hole, found.run_name) == (60.0, 3.0, "mine")
        assert found.train == expected.train


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot read"),
        ("{", "holds no config: Expecting property name"),
        ("[1]", "holds no config: "),
        ('{"data": {"size": 3}}', "holds no config: .*size"),
        ('{"train": {"batch_size": 0}}', "holds no config: train.batch_size is 0"),
    ],
)
def test_file_that_is_no_config(content: str | None, said: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=f"--config .*config.json .*{said}" if content else "config.json"):
        cli.parse("", cli.Arguments, ["--config", str(file)])


def test_two_starting_points_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="x.json and the preset paper_512 are two starting points"):
        cli.parse("", cli.Arguments, ["paper_512", "--config", "x.json"])


@pytest.mark.parametrize(
    ("arguments", "models", "chosen"),
    [
        (["--model", "a", "--model", "b"], ("a", "b"), "quickstart"),
        (["small_256", "--model", "a"], ("a",), "small_256"),
        (["--model=a", "--model", "b", "small_256"], ("a", "b"), "small_256"),
        ([], (), "quickstart"),
    ],
)
def test_every_model_that_is_given_is_evaluated(
    arguments: list[str], models: tuple[str, ...], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "jobs"))
    parsed = cli.parse("", importlib.import_module("evaluate").Arguments, arguments)
    assert (parsed.model, parsed.preset) == (models, chosen)
