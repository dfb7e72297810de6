"""ONNX files: what they take and give, what they say of themselves, and that none is written that is wrong."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from running import ROOT
from tiny import TINY, maps_of

from scfegan_ray import tracking
from scfegan_ray.config import Config
from scfegan_ray.errors import ConfigError, ModelError
from scfegan_ray.models.editing import EditingModel
from scfegan_ray.registry import register
from scfegan_ray.serving import export
from scfegan_ray.serving.editor import FaceEditor
from scfegan_ray.training.state import TrainingState

ON_WEBGPU = {
    "Add", "Atanh", "AveragePool", "Clip", "Concat", "Conv", "ConvTranspose", "Div", "Equal", "Greater", "LeakyRelu",
    "Less", "Mul", "Not", "Pad", "Pow", "Reciprocal", "ReduceMax", "ReduceSum", "Resize", "Sigmoid", "Slice", "Split",
    "Sqrt", "Sub", "Tanh", "Transpose", "Where",
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> EditingModel:
    return EditingModel(TrainingState.build(TINY).ema).eval()


@pytest.fixture(scope="module")
def exported(model: EditingModel) -> bytes:
    return export.to_onnx(model, 32, {"size_px": "32"})


def test_file_takes_and_gives_bytes_and_holds_its_weights(exported: bytes) -> None:
    proto = onnx.load_from_string(exported)
    shapes = [
        (one.name, [dim.dim_value for dim in one.type.tensor_type.shape.dim], one.type.tensor_type.elem_type)
        for one in (*proto.graph.input, *proto.graph.output)
    ]
    channels = {"image": 3, "mask": 1, "sketch": 1, "color": 3, "noise": 1, "picture": 3}
    assert shapes == [(name, [1, 32, 32, number], onnx.TensorProto.UINT8) for name, number in channels.items()]
    assert [(one.domain, one.version) for one in proto.opset_import] == [("", 18)]
    assert {one.key: one.value for one in proto.metadata_props}["size_px"] == "32"
    assert not [one for one in proto.graph.initializer if one.external_data]
    assert str(ROOT).encode() not in exported and b"stack_trace" not in exported, "it names no file of this machine"


@pytest.mark.parametrize("network", [{"output": "direct"}, {"output": "residual", "stages": 2}], ids=["small", "all"])
def test_runtime_gives_what_torch_gives_with_operators_that_browsers_have(network: dict[str, Any]) -> None:
    config = replace(TINY, model=replace(TINY.model, **network))
    model = EditingModel(TrainingState.build(config).ema).eval()
    data = export.to_onnx(model, 64, {})
    found = export.check(data, model, 64)
    assert found["max_difference"] <= 1 and found["num_values"] == 32 * 32 * 3
    assert found["num_different"] <= found["num_values"] // 100
    kinds = {node.op_type for node in onnx.load_from_string(data).graph.node}
    assert kinds - ON_WEBGPU <= {"Cast", "Round"}, "of bytes, at either end"


def test_weights_of_16_bits_halve_the_file_and_leave_the_model(model: EditingModel, exported: bytes) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    half = export.to_onnx(model, 32, {}, float16_weights=True)
    number = sum(one.numel() for one in model.parameters() if one.numel() >= 1024)
    assert len(exported) - len(half) > 1.2 * number, "casts have names, and this network is small"
    assert export.check(half, model, 32, most=4)["num_values"] == 16 * 16 * 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_differs_is_refused(exported: bytes) -> None:
    other = EditingModel(TrainingState.build(replace(TINY, seed=1)).ema).eval()
    with pytest.raises(ModelError, match=r"differs from torch by \d+ of 255, and 1 is rounding; nothing was written"):
        export.check(exported, other, 32)


@pytest.fixture
def version(tracked: Config) -> str:
    """Register a model."""
    run_id = tracking.start_run(tracked, "tiny", tags={})
    generator, example, tags = TrainingState.build(tracked).ema, maps_of(tracked), {"data_license": "CC0-1.0"}
    return register(generator, tracked, run_id, weights_sha256="a", tags=tags, example=example)


def test_version_becomes_a_file_that_edits_as_the_editor_does(version: str, tracked: Config, tmp_path: Path) -> None:
    out = tmp_path / "new" / "model.onnx"
    found = export.export(tracked, version, str(out))
    assert found["onnx"] == str(out) and found["model_uri"] == version and found["bytes"] == out.stat().st_size
    assert [path.name for path in out.parent.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(out)
    noise_probability = tracked.masks.noise_probability
    assert session.get_modelmeta().custom_metadata_map == {
        "model_uri": version,
        "size_px": "32",
        "noise_probability": str(noise_probability),
        "license": "CC0-1.0",
        "format_version": "1",
    }
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 256, (32, 32, 3), np.uint8), np.zeros((32, 32, 1), np.uint8)
    mask[8:20, 8:20] = 255
    editor = FaceEditor.from_uri(version, tracking_uri=tracking.tracking_uri(tracked))
    editor.set_image(image)
    expected = editor.edit(mask, mask, image, seed=3)
    noise = (np.random.default_rng(3).random((32, 32, 1)) < noise_probability).astype(np.uint8)
    feed = {"image": image, "mask": mask, "sketch": mask, "color": image, "noise": noise}
    [picture] = session.run(None, {name: one[None] for name, one in feed.items()})
    assert np.abs(picture[0].astype(int) - expected.astype(int)).max() <= 1


def test_what_cannot_be_exported_is_refused_first(
    version: str, tracked: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model.onnx"
    for uri, place in (("", str(out)), (version, "")):
        with pytest.raises(ConfigError, match=r"give the model, --model .* and the file to write, --out"):
            export.export(tracked, uri, place)
    with pytest.raises(ConfigError, match="--size-px is 30; this model needs sides divisible by 4"):
        export.export(tracked, version, str(out), size_px=30)
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"onnxscript is not installed; pip install 'scfegan-ray\[onnx\]'"):
        export.export(tracked, version, str(out))
    assert not out.exists()


def test_the_job_says_where_the_file_is(
    version: str, tracked: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "jobs"))
    job = importlib.import_module("export")
    out = tmp_path / "model.onnx"
    arguments = ["--model", version, "--out", str(out), "--size-px", "64", "--float16-weights"]
    assert job.main([*arguments, "--tracking.uri", tracking.tracking_uri(tracked)]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["onnx"] == str(out) and said["size_px"] == 64 and said["max_difference"] <= 4 and out.is_file()
    assert job.main(["--model", version]) == 1
