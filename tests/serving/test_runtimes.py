"""What computes an edit: each runtime gives the same picture, and touches nothing outside the hole."""

from __future__ import annotations

import logging
import signal
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from running import run_code

from scfegan_ray.config import Config
from scfegan_ray.errors import ConfigError, ModelError
from scfegan_ray.models import layers
from scfegan_ray.models.editing import EditingModel
from scfegan_ray.precision import has_bfloat16
from scfegan_ray.serving import conversion, runtimes
from scfegan_ray.serving.editor import FaceEditor
from scfegan_ray.training.state import TrainingState

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (32, 48, 3), np.uint8)
MASK = np.zeros((32, 48), np.uint8)
MASK[8:20, 10:30] = 255
LINES = (MASK > 0) & (RNG.random(MASK.shape) < 0.1)
PAINT = IMAGE * (RNG.random((*MASK.shape, 1)) < 0.5)

NETWORKS = {"residual": {"output": "residual"}, "two stages": {"stages": 2}}


def editors(config: Config, **kwargs: Any) -> tuple[FaceEditor, FaceEditor]:
    """Return one as it is by default, and one with other arguments."""
    generator = TrainingState.build(config).ema
    return FaceEditor(generator, config), FaceEditor(generator, config, **kwargs)


def edit(editor: FaceEditor, image: np.ndarray = IMAGE) -> np.ndarray:
    editor.set_image(image)
    return editor.edit(MASK.reshape(image.shape[:2]), LINES.reshape(image.shape[:2]), PAINT.reshape(image.shape))


def differences(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.abs(first.astype(int) - second.astype(int))


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())
def test_openvino_gives_the_picture_that_torch_gives(tiny: Config, network: dict[str, Any]) -> None:
    config = replace(tiny, model=replace(tiny.model, **network))
    expected, other = editors(config, runtime="openvino")
    result = edit(other)
    assert differences(result, edit(expected)).max() <= 1
    assert np.array_equal(result[MASK == 0], IMAGE[MASK == 0])
    assert not np.array_equal(result[MASK != 0], IMAGE[MASK != 0])


def test_int8_is_close_and_leaves_what_is_outside_the_hole(tiny: Config) -> None:
    config = replace(tiny, model=replace(tiny.model, num_downsamples=4))
    expected, other = editors(config, runtime="auto", precision="int8")
    image = RNG.integers(0, 256, (64, 96, 3), np.uint8)
    hole = np.zeros((64, 96), np.uint8)
    hole[10:50, 20:60] = 1
    pictures = []
    for editor in (expected, other):
        editor.set_image(image)
        pictures.append(editor.edit(hole, hole, image))
    found = differences(*pictures)
    assert 0 < found.max() <= 8 and found[hole != 0].mean() < 1
    assert np.array_equal(pictures[1][hole == 0], image[hole == 0])


def test_holes_of_any_size_and_place_are_filled_alike(tiny: Config) -> None:
    config = replace(tiny, model=replace(tiny.model, num_downsamples=4))
    expected, other = editors(config, runtime="openvino")
    image = RNG.integers(0, 256, (192, 256, 3), np.uint8)
    holes = [np.zeros((192, 256), np.uint8) for _ in range(5)]
    holes[0][90:100, 100:130] = 1
    holes[1][:10, 250:] = 1
    holes[2][185:, 3:20] = 1
    holes[3][50:150, 60:200] = 1
    holes[4][[0, 191], [0, 255]] = 1
    for hole in holes:
        pictures = []
        for editor in (expected, other):
            editor.set_image(image)
            pictures.append(editor.edit(hole, hole * (RNG.random(hole.shape) < 0), image))
        assert differences(*pictures).max() <= 1
        assert np.array_equal(pictures[1][hole == 0], image[hole == 0])
        assert not np.array_equal(pictures[1], image)
    assert np.array_equal(other.edit(holes[0] * 0, holes[0] * 0, image), image), "no hole at all"


def test_windows_are_of_few_sizes_and_hold_the_hole_and_its_margin() -> None:
    shapes, size = set(), (512, 384)
    for _ in range(300):
        corners = [np.sort(RNG.choice(one, 2, replace=False)) for one in size]
        rows, columns = (slice(int(begin), int(end)) for begin, end in corners)
        hole = np.zeros(size, bool)
        hole[rows, columns] = True
        window = runtimes._window(hole, 8, 21)
        for inner, outer, most in zip((rows, columns), window, size, strict=True):
            assert outer.start % 8 == outer.stop % 8 == 0 and outer.start >= 0 and outer.stop <= most
            assert outer.start <= max(inner.start - 21, 0) and min(inner.stop + 21, most) <= outer.stop
        shapes.add(tuple(one.stop - one.start for one in window))
    assert shapes == {(128, 96), (256, 192), (320, 240), (384, 288), (512, 384)}


def test_images_of_other_sizes_may_follow(tiny: Config) -> None:
    expected, other = editors(tiny, runtime="openvino")
    for size in ((32, 48, 3), (48, 32, 3), (32, 48, 3)):
        image = IMAGE.reshape(size)
        assert differences(edit(other, image), edit(expected, image)).max() <= 1


def test_float32_torch_is_the_model_itself(tiny: Config) -> None:
    expected, other = editors(tiny, runtime="torch", precision="float32")
    assert np.array_equal(edit(expected), edit(other))
    model = EditingModel(TrainingState.build(tiny).ema)
    maps = [torch.from_numpy(one[None]) for one in (IMAGE, MASK[..., None], MASK[..., None], IMAGE, MASK[..., None])]
    ready = runtimes.compiled(model, (32, 48), CPU, runtimes.Choice("torch", torch.float32))
    with torch.no_grad():
        assert torch.equal(ready(*maps), model(*maps))


def test_bfloat16_in_torch_is_close_and_leaves_the_model_as_it_was(tiny: Config) -> None:
    model = EditingModel(TrainingState.build(tiny).ema)
    plane = MASK[..., None]
    maps = [torch.from_numpy(one[None]) for one in (IMAGE, plane, plane * 0, IMAGE * 0, plane * 0)]
    before = {name: (tensor.clone(), tensor.stride()) for name, tensor in model.state_dict().items()}
    result = runtimes.compiled(model, (32, 48), CPU, runtimes.Choice("torch", torch.bfloat16))(*maps)
    with torch.no_grad():
        expected = model(*maps)
    found = differences(result.numpy(), expected.numpy())
    assert 0 < found.max() <= 4, "rounded, and no more than that"
    assert np.array_equal(result.numpy()[0][MASK == 0], IMAGE[MASK == 0])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name][0]) and tensor.stride() == before[name][1], name


@pytest.mark.skipif(not has_bfloat16(CPU), reason="this processor does not compute bfloat16")
@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_bfloat16_is_close(tiny: Config, runtime: runtimes.RuntimeName) -> None:
    expected, other = editors(tiny, runtime=runtime, precision="bfloat16")
    result = edit(other)
    assert differences(result, edit(expected)).max() <= 4
    assert np.array_equal(result[MASK == 0], IMAGE[MASK == 0])


def test_auto_takes_what_is_fastest_here_and_says_what(
    tiny: Config, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    caplog.set_level(logging.INFO)
    editors(tiny, runtime="auto")
    assert caplog.messages == ["edits run in torch, float32, on cpu", "edits run in openvino, float32, on cpu"]
    caplog.clear()
    for native, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        monkeypatch.setattr("scfegan_ray.precision.has_bfloat16", lambda device, native=native: native)
        assert runtimes.choose(CPU) == runtimes.Choice("openvino", dtype)
        assert runtimes.choose(torch.device("cuda")) == runtimes.Choice("torch", dtype)
    assert not caplog.messages


def test_without_openvino_auto_means_torch_and_says_so(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("scfegan_ray.serving.runtimes.util.find_spec", lambda name: None)
    assert runtimes.choose(CPU, "auto", "float32") == runtimes.Choice("torch", torch.float32)
    assert caplog.messages == ["OpenVINO would edit faster on this CPU: pip install 'scfegan-ray[openvino]'"]
    with pytest.raises(ConfigError, match=r"OpenVINO is not installed; pip install 'scfegan-ray\[openvino\]'"):
        runtimes.choose(CPU, "openvino")


def test_what_cannot_be_had_is_refused_at_once(tiny: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = TrainingState.build(tiny).ema
    with pytest.raises(ConfigError, match="runtime is 'tensorrt'; give one of auto, torch, openvino"):
        FaceEditor(generator, tiny, runtime="tensorrt")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="precision is 'int4'; give one of auto, float32, bfloat16, int8"):
        FaceEditor(generator, tiny, precision="int4")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"int8 wants a CPU, and runtime=.*pip install 'scfegan-ray\[int8\]'"):
        FaceEditor(generator, tiny, precision="int8")
    with pytest.raises(ConfigError, match="OpenVINO edits on CPUs, not on cuda"):
        runtimes.choose(torch.device("cuda"), "openvino")
    monkeypatch.setattr("scfegan_ray.serving.runtimes.has_bfloat16", lambda device: False)
    with pytest.raises(ConfigError, match='this processor does not compute bfloat16; give precision="float32"'):
        FaceEditor(generator, tiny, precision="bfloat16")


def test_shifted_sums_are_sums_of_windows() -> None:
    values = torch.rand(2, 7, 3, 3), torch.rand(1, 40, 2, 2)
    for one in values:
        usual = layers.local_response_norm(one)
        with layers.shifted_sums():
            assert torch.allclose(layers.local_response_norm(one), usual, rtol=1e-6)
        assert torch.equal(layers.local_response_norm(one), usual), "within the context alone"


def test_openvino_is_imported_where_it_edits_and_tells_nobody(tmp_path: Path) -> None:
    code = f"""
import sys, torch
from scfegan_ray.models import editing, generator
from scfegan_ray.serving import editor, runtimes
sys.path.append({str(Path(__file__).parents[1])!r})
from tiny import TINY
assert "openvino" not in sys.modules
model = editing.EditingModel(generator.Generator(TINY.model)).eval()
runtimes.compiled(model, (32, 32), torch.device("cpu"), runtimes.Choice("openvino", torch.float32))
assert "openvino" in sys.modules
print([name for name in sys.modules if "telemetry" in name and name.startswith("openvino_")])
"""
    assert run_code(code, tmp_path, {"HOME": str(tmp_path)}) == "[]"
    assert list(tmp_path.iterdir()) == []


def test_signals_are_caught_after_models_of_openvino_have_gone(tmp_path: Path) -> None:
    code = f"""
import gc, signal, sys, torch
from scfegan_ray.models import editing, generator
from scfegan_ray.serving import runtimes
sys.path.append({str(Path(__file__).parents[1])!r})
from tiny import TINY
model = editing.EditingModel(generator.Generator(TINY.model)).eval()
maps = [torch.from_numpy(one) for one in runtimes.sample(32)]
for _ in range(2):
    edit = runtimes.compiled(model, (32, 32), torch.device("cpu"), runtimes.Choice("openvino", torch.float32))
    edit(*maps)
    del edit
    gc.collect()
caught = []
signal.signal(signal.SIGTERM, lambda number, frame: caught.append(number))
signal.raise_signal(signal.SIGTERM)
print(len(caught))
"""
    assert run_code(code, tmp_path) == "1"


def test_a_conversion_is_given_up_and_leaves_nothing(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    children: list[Any] = []
    start = subprocess.Popen

    def noted(*given: Any, **more: Any) -> Any:
        children.append(start(*given, **more))
        return children[-1]

    monkeypatch.setattr(subprocess, "Popen", noted)
    model = EditingModel(TrainingState.build(tiny).ema)
    ending = threading.Event()
    threading.Timer(1.0, ending.set).start()
    began = time.monotonic()
    with conversion.given_up_when(ending), pytest.raises(conversion.StoppedError):
        runtimes.compiled(model, (32, 48), CPU, runtimes.Choice("openvino", torch.float32))
    assert time.monotonic() - began < 8
    assert [child.returncode for child in children] == [-signal.SIGKILL]
    assert not list(tmp_path.glob("scfegan-*"))


def test_what_openvino_cannot_take_is_one_line(tiny: Config) -> None:
    model = EditingModel(TrainingState.build(tiny).ema)
    del model.generator._modules["decoder"]
    with pytest.raises(
        ModelError, match='OpenVINO cannot take the model: .*decoder.*; give runtime="torch"$'
    ) as caught:
        runtimes.compiled(model, (32, 48), CPU, runtimes.Choice("openvino", torch.float32))
    assert "\n" not in str(caught.value)
