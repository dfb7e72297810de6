"""What one update calls of ATen, and that it never waits."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from updates import FEATURES, allow_meta, make_batch

from scfegan_ray.benchmarks.calls import Calls, count_update, ordinary_update
from scfegan_ray.config import Config
from scfegan_ray.images import Batch
from scfegan_ray.models.features import vgg_random
from scfegan_ray.presets import preset
from scfegan_ray.training.hooks import Means
from scfegan_ray.training.sentinel import Sentinel
from scfegan_ray.training.state import TrainingState
from scfegan_ray.training.step import Pass

META = torch.device("meta")


def test_views_do_not_count() -> None:
    with Calls() as calls:
        x = torch.ones(4, 6)
        x[1:].detach().view(2, -1).expand(3, 2, 9).transpose(0, 1).unbind()
        x.split(2)[0].chunk(2)
        x.narrow(0, 1, 2).unsqueeze(1).squeeze().T.flatten()[None].permute(1, 0).diagonal().select(0, 0)
    assert calls.by_name == {"ones": 1, "clone": 1}, "a transposed matrix is flattened by a copy"


def test_what_computes_or_writes_counts() -> None:
    x, others = torch.ones(4), [torch.ones(4) for _ in range(3)]
    with Calls() as calls:
        x.add_(1.0)
        x[:2].copy_(x[2:])
        torch._foreach_add_(others, 1.0)
        torch.nn.functional.mse_loss(x * 2.0, x)
    assert calls.by_name == {"add_": 1, "copy_": 1, "_foreach_add_": 1, "mul": 1, "mse_loss": 1}
    assert calls.total == 5
    assert (calls.synchronizations, calls.copies) == (0, 0)


def test_backwards_and_casts_count() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    with Calls() as calls, torch.autocast("cpu", torch.bfloat16):
        y = x @ torch.ones(3, 4)
        y.backward(torch.ones_like(y))  # type: ignore[no-untyped-call]
    assert calls.by_name == {"ones": 1, "_to_copy": 3, "mm": 2, "ones_like": 1}


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(),
        lambda x: float(x[0]),
        lambda x: bool(x[0] > 0),
        lambda x: x.nonzero(),
        lambda x: torch.equal(x, x + 1),
        lambda x: x[x > 0],
    ],
    ids=["item", "float", "bool", "nonzero", "equal", "mask"],
)
def test_what_waits_is_noticed(waits) -> None:  # type: ignore[no-untyped-def]
    with Calls() as calls:
        waits(torch.arange(3.0))
    assert calls.synchronizations > 0
    assert calls.copies == 0


def test_copies_between_devices_are_noticed() -> None:
    x = torch.ones(3)
    with Calls() as calls:
        there = x.to(META)
        there.copy_(x)
        torch.tensor([1.0, 2.0])
        x.double()
        x.clone()
        torch.full((2,), 0.5)
    assert calls.copies == 3


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_tensors_without_memory_make_the_same_calls(tiny: Config, precision: torch.dtype) -> None:
    state, means, passes = TrainingState.build(tiny), Means(), [Pass(*make_batch())]
    ordinary_update(state, passes, FEATURES, tiny, means, precision)
    with Calls() as calls:
        ordinary_update(state, passes, FEATURES, tiny, means, precision)
    assert calls.by_name == count_update(tiny, precision).by_name


def test_ten_updates_never_wait(tiny: Config) -> None:
    state, means = TrainingState.build(tiny), Means()
    batches = [[Pass(*make_batch(seed))] for seed in range(11)]
    ordinary_update(state, batches.pop(), FEATURES, tiny, means, torch.float32)
    before = copy.deepcopy(state.generator)
    with Calls() as calls:
        for passes in batches:
            ordinary_update(state, passes, FEATURES, tiny, means, torch.float32)
    assert calls.synchronizations == 0
    assert calls.by_name["_fused_adam_"] == 20
    assert not torch.equal(before.encoder[0].weight, state.generator.encoder[0].weight)


def test_ten_updates_copy_nothing_between_devices(tiny: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """On torch's meta device, which stands for any that is not the host's."""
    allow_meta(monkeypatch)
    # Fused Adam does not know how to run there, but need not run.
    monkeypatch.setattr(sys.modules["torch.optim.adam"], "_device_dtype_check_for_fused", lambda *_: None)
    with META:
        state, features = TrainingState.build(tiny, META), vgg_random()
    state.sentinel = Sentinel(tiny.sentinel, META)
    batch, interpolation = make_batch()
    maps = {name: getattr(batch, name).to(META) for name in Batch.__slots__}
    means, passes = Means(), [Pass(Batch(**maps), interpolation.to(META))]
    ordinary_update(state, passes, features, tiny, means, torch.float32)
    with Calls() as calls:
        for _ in range(10):
            ordinary_update(state, passes, features, tiny, means, torch.float32)
    assert (calls.copies, calls.synchronizations) == (0, 0)
    assert calls.by_name["_fused_adam_"] == 20


@pytest.mark.parametrize(("precision", "ceiling"), [(torch.bfloat16, 1100), (torch.float32, 995)])
def test_launches_of_the_published_network(precision: torch.dtype, ceiling: int) -> None:
    calls = count_update(preset("paper_512"), precision)
    assert calls.total <= ceiling, calls.by_name.most_common(12)
    assert calls.total > ceiling - 20, "lower the ceiling"
    assert calls.synchronizations == 0
