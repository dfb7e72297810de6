"""The weights that the authors published, as a version of the registry."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from published import CHECKPOINT, SMALL, draw_variables
from running import ROOT

from scfegan_ray import faces, importing, registry, tracking
from scfegan_ray.config import Config
from scfegan_ray.errors import ConfigError, ModelError, StorageError
from scfegan_ray.models.generator import Generator
from scfegan_ray.models.released import load_variables
from scfegan_ray.serving import loading
from scfegan_ray.serving.editor import FaceEditor

VERSION_1 = "models:/scfegan-generator/1"


def test_released_weights_become_a_version_once(tracked: Config, tmp_path: Path) -> None:
    assert importing.import_released(tracked, str(CHECKPOINT)) == VERSION_1
    np.savez(tmp_path / "same.npz", **draw_variables(SMALL))
    for again in (f"{CHECKPOINT}.index", str(tmp_path / "same.npz")):
        assert importing.import_released(tracked, again) == VERSION_1
    uri = tracking.tracking_uri(tracked)
    tags = registry.tags_of(tracked, VERSION_1)
    assert tags["kind"] == "released" and "CC BY-NC" in tags["data_license"] and tags["checkpoint"] == str(CHECKPOINT)
    [run] = MlflowClient(uri).search_runs([experiment.experiment_id for experiment in experiments(uri)])
    assert run.info.status == "FINISHED" and run.data.tags["data_license"] == tags["data_license"]

    found = loading.load_generator(VERSION_1, tracking_uri=uri)
    assert found.config.model == SMALL and found.config.data.size_px == 512
    expected = load_variables(draw_variables(SMALL)).state_dict()
    assert all(torch.equal(values, expected[name]) for name, values in found.generator.state_dict().items())
    editor = FaceEditor.from_uri(VERSION_1, tracking_uri=uri)
    face = faces.draw_face(0, 1, 64).image
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, 20:40] = 1
    editor.set_image(face)
    edited = editor.edit(mask, np.zeros_like(mask), np.zeros_like(face))
    assert np.array_equal(edited[mask == 0], face[mask == 0]) and not np.array_equal(edited, face)


def experiments(uri: str) -> list[object]:
    return list(MlflowClient(uri).search_experiments())


def test_taps_that_saw_nothing_at_512_px_stay_silent(
    tracked: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered: list[tuple[Generator, Config]] = []

    def register(generator: Generator, config: Config, run_id: str, **_: object) -> str:
        registered.append((generator, config))
        return VERSION_1

    monkeypatch.setattr(registry, "register", register)
    np.savez(tmp_path / "deep.npz", **draw_variables(replace(SMALL, base_channels=2, num_downsamples=7)))
    importing.import_released(tracked, str(tmp_path / "deep.npz"))
    [(generator, config)] = registered
    FaceEditor(generator, config)
    near, far = (layer.weight for layer in generator.bottleneck)
    assert near.abs().amin() > 0, "two pixels away there still is one, of four"
    assert far[..., 1, 1].abs().amin() > 0 and far[..., 0, :].abs().amax() == far[..., :, 2].abs().amax() == 0


def test_what_cannot_be_imported_leaves_nothing(
    tracked: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = tracking.tracking_uri(tracked)
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    with pytest.raises(ModelError, match="generator/gconv1_ds/kernel:0 is missing"):
        importing.import_released(tracked, str(tmp_path / "other.npz"))
    with pytest.raises(StorageError, match=r"cannot read .*none.npz"):
        importing.import_released(tracked, str(tmp_path / "none.npz"))
    with pytest.raises(ConfigError, match="give --checkpoint"):
        importing.import_released(tracked, "")
    assert [experiment.name for experiment in experiments(uri)] == ["Default"]

    def fail(*_: object, **__: object) -> str:
        raise StorageError("no room")

    monkeypatch.setattr(registry, "register", fail)
    with pytest.raises(StorageError, match="no room"):
        importing.import_released(tracked, str(CHECKPOINT))
    assert not MlflowClient(uri).search_model_versions()
    ids = [experiment.experiment_id for experiment in experiments(uri)]
    assert [run.info.status for run in MlflowClient(uri).search_runs(ids)] == ["FAILED"]


def test_the_job_says_in_one_line_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "jobs"))
    job = importlib.import_module("import_released")
    (tmp_path / "SC-FEGAN.ckpt.index").write_bytes(b"<html>404</html>")
    assert job.main(["--checkpoint", str(tmp_path / "SC-FEGAN.ckpt")]) == 1
    said = capsys.readouterr()
    assert not said.out and len(said.err.splitlines()) == 1
    assert (
        said.err.startswith("error: ") and "SC-FEGAN.ckpt.index is damaged or of no TensorFlow checkpoint" in said.err
    )
    assert not (tmp_path / "runs").exists()
