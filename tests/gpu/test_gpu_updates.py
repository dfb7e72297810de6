"""Updates, checkpoints and networks on a GPU give what they give on a CPU, rounded as the settings say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hed import random_arrays
from torch import Tensor
from updates import features_on, moments, saved_and_gone_on, step, watched_step, without_norms

from scfegan_ray.config import Config, ModelConfig
from scfegan_ray.data.sketches import HedDetector
from scfegan_ray.precision import set_tf32, tf32
from scfegan_ray.serving.editor import FaceEditor
from scfegan_ray.training import checkpoint
from scfegan_ray.training.state import TrainingState

pytestmark = pytest.mark.gpu

RecordProperty = Callable[[str, object], None]


@pytest.fixture
def wide(tiny: Config) -> Config:
    """Return a config whose layers are wide enough for a GPU's tensor cores."""
    model = ModelConfig(base_channels=32, num_downsamples=4, discriminator_base_channels=32, discriminator_num_layers=4)
    return replace(tiny, model=model)


@pytest.fixture(autouse=True)
def _full_float32() -> Iterator[None]:
    with tf32(convolutions=False, products=False):  # as a worker begins
        yield


@pytest.fixture
def _repeatable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def updated(config: Config, device: torch.device | str, **options: Any) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return the parts of the loss, and each network's gradient as one vector, of a first update."""
    state = TrainingState.build(config, device)
    values = without_norms(step(state, config, **options))
    gradients = {
        name: torch.cat([one.grad.flatten() for one in network.parameters() if one.grad is not None]).double().cpu()
        for name, network in (("generator", state.generator), ("discriminator", state.discriminator))
    }
    return {name: float(value) for name, value in values.items()}, gradients


def away(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(
    ("precision", "allow_tf32", "of_losses", "of_gradients"),
    [
        (torch.float32, "off", 1e-4, 1e-3),
        (torch.float32, "networks", 5e-3, 2e-2),
        (torch.float32, "all", 5e-3, 2e-2),
        (torch.bfloat16, "off", 3e-2, 0.15),
    ],
    ids=str,
)
@pytest.mark.parametrize("penalty_in", ["discriminator", "generator"])
def test_update_is_the_cpus(
    wide: Config,
    gpu: torch.device,
    record_property: RecordProperty,
    penalty_in: str,
    precision: torch.dtype,
    allow_tf32: str,
    of_losses: float,
    of_gradients: float,
) -> None:
    config = replace(wide, losses=replace(wide.losses, real_score_penalty_in=penalty_in))
    wanted, gradients = updated(config, "cpu")
    found, ours = updated(config, gpu, precision=precision, allow_tf32=allow_tf32)
    apart = {name: away(ours[name], gradient) for name, gradient in gradients.items()}
    record_property("losses", max(abs(found[name] - value) / max(abs(value), 1.0) for name, value in wanted.items()))
    record_property("gradients", max(apart.values()))
    assert found == {name: pytest.approx(value, rel=of_losses, abs=of_losses) for name, value in wanted.items()}
    assert {name: value for name, value in apart.items() if not value < of_gradients} == {}


def test_tf32_rounds_where_it_is_allowed_and_nowhere_else(wide: Config, gpu: torch.device) -> None:
    exact = updated(wide, "cpu")[1]
    found = {allowed: updated(wide, gpu, allow_tf32=allowed)[1] for allowed in ("off", "networks", "all")}
    rounded = {
        (allowed, name): away(gradients[name], exact[name]) > 3e-5
        for allowed, gradients in found.items()
        for name in exact
    }
    assert rounded["off", "generator"] is rounded["off", "discriminator"] is False
    assert rounded["networks", "generator"] is rounded["all", "generator"] is rounded["all", "discriminator"] is True


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("what", ["convolutions", "products"])
def test_backward_rounds_as_forward_does(gpu: torch.device, what: str, allowed: bool) -> None:
    """A backward runs in a thread of autograd's own, after whatever was set here before."""
    draw = torch.Generator().manual_seed(0)
    given = torch.randn(4, 64, 24, 24, generator=draw)
    weight = torch.randn(64, 64, 3, 3, generator=draw)
    if what == "products":
        given, weight = given.reshape(4, 64, -1), torch.randn(4, 96, 64, generator=draw)

    def gradients(device: torch.device | str, dtype: torch.dtype) -> list[Tensor]:
        x, w = (one.to(device, dtype).requires_grad_() for one in (given, weight))
        y = torch.nn.functional.conv2d(x, w) if what == "convolutions" else w @ x
        (y * y).sum().backward()
        assert x.grad is not None and w.grad is not None
        return [one.detach().double().cpu() for one in (y, x.grad, w.grad)]

    exact = gradients("cpu", torch.float64)
    set_tf32(convolutions=not allowed, products=not allowed)
    with tf32(convolutions=allowed, products=allowed):
        found = gradients(gpu, torch.float32)
    assert [away(one, wanted) > 2e-5 for one, wanted in zip(found, exact, strict=True)] == [allowed] * 3


@pytest.mark.usefixtures("_repeatable")
@pytest.mark.parametrize("returns", [False, True])
def test_resumed_training_is_bit_identical(wide: Config, gpu: torch.device, tmp_path: Path, returns: bool) -> None:
    state, loaded = saved_and_gone_on(wide, tmp_path, device=gpu.type, returns=returns)
    assert state.generator.bottleneck[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert loaded.weights_sha256() == state.weights_sha256()
    for (_, mine), (parameter, theirs) in zip(moments(state), moments(loaded), strict=True):
        assert torch.equal(mine, theirs)
        assert theirs.stride() == parameter.stride()


def test_checkpoint_of_a_gpu_goes_on_on_a_cpu_and_back(wide: Config, gpu: torch.device, tmp_path: Path) -> None:
    state = TrainingState.build(wide, gpu)
    watched_step(state, wide, 0)
    digest = state.weights_sha256()
    for at, device in enumerate(("cpu", gpu)):
        folder = tmp_path / str(at)
        folder.mkdir()
        checkpoint.write(checkpoint.capture(state, wide), folder)
        state = TrainingState.build(replace(wide, seed=99), device)
        checkpoint.load(state, folder)
        assert state.weights_sha256() == digest
    watched_step(state, wide, 1)
    assert state.weights_sha256() != digest


@pytest.fixture
def compiled(wide: Config, gpu: torch.device) -> Iterator[TrainingState]:
    """Return a state whose networks are compiled where `train.compile` has it so."""
    features_on.cache_clear()  # the features of other tests stay as they are
    state = TrainingState.build(wide, gpu)
    state.generator.compile()
    features_on(gpu).compile()
    yield state
    features_on.cache_clear()


@pytest.mark.filterwarnings("ignore")  # of the compiler, while it looks at its own parts
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_networks_give_the_same_and_their_checkpoint_needs_no_compiler(
    wide: Config,
    gpu: torch.device,
    compiled: TrainingState,
    tmp_path: Path,
    record_property: RecordProperty,
    precision: torch.dtype,
) -> None:
    plain, tolerance = TrainingState.build(wide, gpu), 1e-4 if precision == torch.float32 else 3e-2
    found = {name: float(value) for name, value in step(compiled, wide, precision=precision).items()}
    checkpoint.write(checkpoint.capture(compiled, wide), tmp_path)
    features_on.cache_clear()
    wanted = {name: float(value) for name, value in without_norms(step(plain, wide, precision=precision)).items()}
    apart = {name: abs(found[name] - value) / max(abs(value), 1.0) for name, value in wanted.items()}
    record_property("losses", max(apart.values()))
    assert {name: value for name, value in apart.items() if not value < tolerance} == {}
    checkpoint.load(plain, tmp_path)
    assert plain.weights_sha256() == compiled.weights_sha256()
    watched_step(plain, wide, 1)
    assert plain.weights_sha256() != compiled.weights_sha256()


def test_editor_gives_what_it_gives_on_a_cpu(wide: Config, gpu: torch.device) -> None:
    rng = np.random.default_rng(0)
    image, color = rng.integers(0, 256, (2, 64, 48, 3), np.uint8)
    mask, sketch = rng.integers(0, 2, (2, 64, 48), np.uint8)
    results = []
    for device in ("cpu", gpu.type):
        editor = FaceEditor(TrainingState.build(wide).ema, wide, device)
        editor.set_image(image)
        results.append(editor.edit(mask, sketch, color))
    assert np.abs(results[0].astype(int) - results[1]).max() <= 1
    assert (results[1][mask == 0] == image[mask == 0]).all()


@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)], ids=str)
def test_edges_are_the_cpus(
    gpu: torch.device, record_property: RecordProperty, precision: torch.dtype, tolerance: float
) -> None:
    arrays, images = random_arrays(), np.random.default_rng(0).integers(0, 256, (3, 96, 80, 3), np.uint8)
    wanted = HedDetector(arrays)(images)
    found = HedDetector(arrays, precision, gpu)(images)
    apart = float(np.abs(found - wanted).mean() / wanted.std())
    record_property("mean difference", apart)
    assert apart < tolerance
