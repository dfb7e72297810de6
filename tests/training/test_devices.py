"""Every tensor of an update is made on the device of its inputs: torch's meta device refuses to mix it with another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from updates import FEATURES, allow_meta, cut, make_batch, step, update

from scfegan_ray.benchmarks.plain import PlainStep
from scfegan_ray.config import Config, OptimizationConfig
from scfegan_ray.images import Batch
from scfegan_ray.models.features import vgg_random
from scfegan_ray.training.state import TrainingState
from scfegan_ray.training.step import Pass, train_step

META = torch.device("meta")


@pytest.fixture(autouse=True)
def _meta(monkeypatch: pytest.MonkeyPatch) -> None:
    allow_meta(monkeypatch)


def on_meta(config: Config) -> TrainingState:
    """Move a state's networks; its optimizers are made anew, because fused Adam knows no meta device."""
    state = TrainingState.build(config)
    for network in state.networks().values():
        network.to(META)
    state.generator_optimizer = torch.optim.Adam(state.generator.parameters())
    state.discriminator_optimizer = torch.optim.Adam(state.discriminator.parameters())
    return state


def meta_parts(*sizes: int) -> list[Pass]:
    batch, interpolation = make_batch(number=sum(sizes))
    maps = {name: getattr(batch, name).to(META) for name in Batch.__slots__}
    return cut(Batch(**maps), interpolation.to(META), *sizes)


@pytest.mark.parametrize("sizes", [(3,), (2, 1)])
@pytest.mark.parametrize("keep_graph", [True, False])
@pytest.mark.parametrize(
    "losses",
    [
        {},
        {"real_score_penalty_in": "generator"},
        {"total_variation_region": "image", "gradient_penalty_reduction": "sum"},
        {"total_variation_region": "hole", "feature_scale": "caffe"},
    ],
)
def test_a_whole_update_stays_on_its_device(
    tiny: Config, losses: dict[str, Any], keep_graph: bool, sizes: tuple[int, ...]
) -> None:
    config = replace(tiny, losses=replace(tiny.losses, **losses))
    state = on_meta(config)
    found = train_step(
        state,
        meta_parts(*sizes),
        vgg_random().to(META),
        config.losses,
        generator=state.generator,
        discriminator=state.discriminator,
        keep_graph=keep_graph,
        with_gradient_norms=True,
    )
    assert {name for name, value in found.items() if value.device != META} == set()
    torch.stack([value.float() for value in found.values()])  # as their means are taken
    state.images_seen = 100
    state.update_ema(1000.0, 3)


@pytest.mark.parametrize("region", ["dilated_hole", "hole", "image"])
def test_the_plain_update_stays_on_its_device(tiny: Config, region: str) -> None:
    config = replace(tiny, losses=replace(tiny.losses, total_variation_region=region))
    [part] = meta_parts(2)
    update_plainly = PlainStep(on_meta(config), vgg_random().to(META), config.losses, OptimizationConfig())
    assert {value.device for value in update_plainly(part.batch, part.interpolation).values()} == {META}


class Types(TorchDispatchMode):
    """Notes what convolutions and matrix products compute in, and which rounding they may take."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[int, ...], torch.dtype, bool, bool]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in ("convolution", "convolution_backward", "bmm"):
            weight = args[2] if name == "convolution_backward" else args[1]
            rounds = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
            self.seen.append((name, tuple(weight.shape), weight.dtype, *rounds))
        return function(*args, **kwargs or {})


def seen_in(config: Config, **options: Any) -> Types:
    with Types() as types:
        step(TrainingState.build(config), config, **options)
    assert {one[0] for one in types.seen} == {"convolution", "convolution_backward", "bmm"}
    return types


def test_bfloat16_covers_what_the_help_says(tiny: Config) -> None:
    state = TrainingState.build(tiny)
    first = {
        "generator": tuple(state.generator.encoder[0].weight.shape),
        "discriminator": tuple(state.discriminator.layers[0].original.shape),
        "features": tuple(FEATURES.get_buffer("conv1_1_weight").shape),
    }
    slope = (first["discriminator"][0], 3, 3, 3)
    kinds: dict[tuple[int, ...], set[torch.dtype]] = {}
    for _, shape, dtype, *_ in seen_in(tiny, precision=torch.bfloat16).seen:
        kinds.setdefault(shape, set()).add(dtype)
    assert kinds[first["generator"]] == kinds[first["features"]] == {torch.bfloat16}
    assert kinds[slope] == {torch.float32}, "the penalty's gradient"
    # Scores in bfloat16; where its leaky ReLUs bend is found for the penalty, in float32.
    assert kinds[first["discriminator"]] == {torch.bfloat16, torch.float32}
    assert {dtype for shape, kind in kinds.items() if len(shape) == 3 for dtype in kind} == {torch.float32}, "Gram"


@pytest.mark.parametrize("keep_graph", [True, False])
@pytest.mark.parametrize(
    ("allowed", "generator", "penalty", "gram"),
    [("off", False, False, False), ("networks", True, False, False), ("all", True, True, True)],
)
def test_tf32_goes_where_it_is_allowed_forward_and_backward(
    tiny: Config, allowed: str, generator: bool, penalty: bool, gram: bool, keep_graph: bool
) -> None:
    state = TrainingState.build(tiny)
    of_generator = tuple(state.generator.encoder[0].weight.shape)
    of_penalty = (state.discriminator.layers[0].original.shape[0], 3, 3, 3)
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    seen = seen_in(tiny, allow_tf32=allowed, keep_graph=keep_graph).seen
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before
    for kind in ("convolution", "convolution_backward"):
        assert {one[3] for one in seen if one[:2] == (kind, of_generator)} == {generator}
        assert {one[3] for one in seen if one[:2] == (kind, of_penalty)} == {penalty}
    assert {one[4] for one in seen if one[0] == "bmm"} == {gram}


def test_tf32_changes_nothing_on_a_processor(tiny: Config) -> None:
    off, on = TrainingState.build(tiny), TrainingState.build(tiny)
    parts = [Pass(*make_batch())]
    update(off, tiny, parts)
    update(on, tiny, parts, allow_tf32="all")
    assert off.weights_sha256() == on.weights_sha256()
