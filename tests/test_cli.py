"""Arguments: the preset may stand anywhere, overrides are dotted, mistakes end with one line and a code."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from scfegan_ray import cli
from scfegan_ray.errors import DataError
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


def test_job_may_add_flags() -> None:
    found = cli.parse("", Extended, ["--shout", "small_256", "--say", "hello", "--seed", "2"])
    assert (found.shout, found.say, found.preset, found.config.seed) == (True, "hello", "small_256", 2)


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


def test_help_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_job("What it does.", cli.Arguments, _never, ["--help"]) == 0
    assert "--losses.style" in capsys.readouterr().out


def test_dry_run_prints_the_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_job("", cli.Arguments, _never, ["small_256", "--dry-run", "--seed", "5"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["seed"], values["data"]["size_px"]) == (5, 256)


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
