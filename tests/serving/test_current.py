"""Which model edits, and that a new champion takes over only if it works."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file
from tiny import TINY
from untrained import write_model

from scfegan_ray import tracking
from scfegan_ray.config import Config, StorageConfig
from scfegan_ray.errors import ModelError, ScFeganError, StorageError
from scfegan_ray.models import editing
from scfegan_ray.serving import current, runtimes
from scfegan_ray.serving.options import ServingConfig


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return replace(TINY, storage=StorageConfig(path=str(tmp_path / "runs")))


def test_champion_comes_first_then_the_newest_then_a_cure(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no version of scfegan-generator is registered; make one with .*train\.py"):
        current.choose(config, "")
    assert not (tmp_path / "runs" / "mlflow.db").exists()  # to ask makes nothing
    tracking.open_client(config)
    client = MlflowClient(tracking.tracking_uri(config))
    name = config.tracking.model_name
    client.create_registered_model(name)
    for _ in range(3):
        client.create_model_version(name, str(tmp_path))
    assert current.choose(config, "") == f"models:/{name}/3"
    client.set_registered_model_alias(name, "champion", "2")
    assert current.choose(config, "") == f"models:/{name}/2"
    assert current.choose(config, f"models:/{name}@champion") == f"models:/{name}/2"
    assert current.choose(config, f"models:/{name}/1") == f"models:/{name}/1"
    assert current.choose(config, "/some/folder") == "/some/folder"
    with pytest.raises(ModelError, match="99"):
        current.choose(config, f"models:/{name}/99")


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | ScFeganError], None]:
    """Say which model the registry names."""
    at: list[str | ScFeganError] = [""]

    def choose(config: Config, asked: str) -> str:
        if isinstance(at[0], ScFeganError):
            raise at[0]
        return at[0]

    monkeypatch.setattr(current, "choose", choose)

    def name(uri: str | ScFeganError) -> None:
        at[0] = uri

    return name


def test_a_new_champion_takes_over_and_a_failing_one_never_does(
    config: Config, tmp_path: Path, named: Callable[[str | ScFeganError], None], caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (str(write_model(TINY, tmp_path / name, seed)) for seed, name in enumerate(("first", "second")))
    named(first)
    model = current.CurrentModel(config, "", ServingConfig(poll_seconds=0.05, runtime="torch", precision="float32"))
    assert model.model.uri == first

    broken = write_model(TINY, tmp_path / "broken")
    weights = load_file(broken / "artifacts" / editing.WEIGHTS)
    name = next(iter(weights))
    weights[name] = torch.full_like(weights[name], torch.nan)
    save_file(weights, broken / "artifacts" / editing.WEIGHTS)
    truncated = write_model(TINY, tmp_path / "truncated")
    (truncated / "artifacts" / editing.WEIGHTS).write_bytes(b"none")
    for bad in (broken, truncated, tmp_path / "nothing"):
        caplog.clear()
        named(str(bad))
        model.refresh()
        assert model.model.uri == first
        assert "cannot be served" in caplog.text
        caplog.clear()
        model.refresh()  # it is not tried again
        assert caplog.text == ""
    named(StorageError("no answer"))
    model.refresh()
    assert "does not answer" in caplog.text

    named(second)
    with caplog.at_level(logging.INFO, "scfegan_ray"):
        model.follow()
        until = time.monotonic() + 10
        while "is served from now on" not in caplog.text:
            assert time.monotonic() < until
            time.sleep(0.01)
        model.stop()
    assert model.model.uri == second


def test_a_certain_version_is_not_followed(config: Config, tmp_path: Path) -> None:
    folder = write_model(TINY, tmp_path / "model")
    model = current.CurrentModel(config, str(folder), ServingConfig(poll_seconds=0.01, runtime="torch"))
    model.follow()
    model._thread.join(60)
    assert not model._thread.is_alive()
    assert model.model.size_px == TINY.data.size_px


def test_ctrl_c_does_not_end_it_amid_the_work_of_a_compiler(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_ended = []

    def quickened(served: current.ServedModel, *_: object) -> current.ServedModel:
        time.sleep(0.6)
        has_ended.append(True)
        return served

    monkeypatch.setattr(current, "quickened", quickened)
    model = current.CurrentModel(config, str(write_model(TINY, tmp_path / "model")), ServingConfig())
    model.stop()  # there is nothing to wait for yet
    model.follow()
    for seconds in (0.1, 0.3):
        threading.Timer(seconds, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT]).start()
    model.stop()
    assert has_ended


def test_edits_become_faster_while_it_serves_already(config: Config, tmp_path: Path) -> None:
    folder = write_model(TINY, tmp_path / "model")
    model = current.CurrentModel(config, str(folder), ServingConfig(runtime="openvino", precision="float32"))
    exact = model.model.editor
    assert exact is model.model.exact
    model.follow()
    model._thread.join(120)
    assert model.model.editor is not exact
    assert model.model.exact is exact


def test_what_would_make_edits_faster_is_said_once(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("scfegan_ray.serving.runtimes.util.find_spec", lambda name: None)
    monkeypatch.setattr("scfegan_ray.precision.has_bfloat16", lambda device: True)
    monkeypatch.setattr("scfegan_ray.serving.runtimes.has_bfloat16", lambda device: True)
    folder = write_model(TINY, tmp_path / "model")
    model = current.CurrentModel(config, str(folder), ServingConfig(precision="bfloat16"))
    model.follow()
    model._thread.join(120)
    assert model.model.editor.choice == runtimes.Choice("torch", torch.bfloat16)
    assert caplog.text.count(runtimes.INSTALL) == 1


def test_what_cannot_be_made_faster_edits_on(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    served = current.load(config, str(write_model(TINY, tmp_path / "model")))

    def compiled(*_: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(runtimes, "compiled", compiled)
    assert current.quickened(served, runtimes.Choice("openvino", torch.float32)) is served
    assert "edits go on in torch, float32" in caplog.text
    assert "no such operator" in caplog.text
