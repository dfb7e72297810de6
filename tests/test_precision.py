from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from scfegan_ray.benchmarks import step
from scfegan_ray.config import Config
from scfegan_ray.errors import ConfigError
from scfegan_ray.precision import autocast, check_native, lowered, resolve_precision, set_tf32, tf32
from scfegan_ray.serving.editor import FaceEditor
from scfegan_ray.training.state import TrainingState


@pytest.mark.parametrize(("setting", "expected"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_named_precision_is_taken_anywhere(setting: str, expected: torch.dtype, device: str) -> None:
    assert resolve_precision(setting, torch.device(device)) is expected


@pytest.mark.parametrize(
    ("avx512", "amx", "expected"),
    [(False, False, torch.float32), (True, False, torch.bfloat16), (False, True, torch.bfloat16)],
)
def test_auto_follows_the_processor(
    monkeypatch: pytest.MonkeyPatch, avx512: bool, amx: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert resolve_precision("auto", torch.device("cpu")) is expected


@pytest.mark.parametrize(("native", "expected"), [(False, torch.float32), (True, torch.bfloat16)])
def test_auto_follows_the_gpu(monkeypatch: pytest.MonkeyPatch, native: bool, expected: torch.dtype) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    assert resolve_precision("auto", torch.device("cuda")) is expected


def test_a_worker_that_lacks_bfloat16_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    for device, what in (("cpu", "processor"), ("cuda", "GPU")):
        check_native(torch.float32, torch.device(device))
        with pytest.raises(ConfigError, match=f"the {what} of the worker on .* lacks; .*--train.precision float32"):
            check_native(torch.bfloat16, torch.device(device))


def test_a_gpu_that_torch_does_not_see_is_refused(tiny: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match='sees no GPU on .*, or give device="cpu"'):
        FaceEditor(TrainingState.build(tiny).ema, tiny, "cuda")
    with pytest.raises(ConfigError, match=r"sees no GPU on .*, or give --train\.no-use-gpu"):
        step.run(replace(tiny, train=replace(tiny.train, use_gpu=True)))


def test_tf32_is_said_both_ways_and_put_back() -> None:
    def said() -> tuple[object, ...]:
        backends = torch.backends
        new = backends.cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision  # type: ignore[attr-defined]
        # What torch.compile reads; a mixture of torch's two ways would raise.
        return *new, backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision()

    try:
        set_tf32(convolutions=False, products=False)
        off = ("ieee", "ieee", False, False, "highest")
        assert said() == off
        with pytest.raises(KeyError), tf32(convolutions=True, products=True):
            assert said() == ("tf32", "tf32", True, True, "high")
            with tf32(convolutions=True, products=False):
                assert said() == ("tf32", "ieee", True, False, "highest")
            raise KeyError
        assert said() == off
    finally:
        set_tf32(convolutions=True, products=False)  # torch's default


def test_lowered_weights_are_what_autocast_makes_of_them() -> None:
    weights = [torch.randn(6, 3, 3, 3).contiguous(memory_format=torch.channels_last), torch.randn(5), torch.randn(2, 7)]
    weights = [weight.requires_grad_() for weight in weights]
    with autocast(torch.float32, torch.device("cpu")):
        assert lowered(weights) is weights
    with autocast(torch.bfloat16, torch.device("cpu")):
        copies = lowered(weights)
    for weight, one in zip(weights, copies, strict=True):
        assert torch.equal(one, weight.bfloat16())
        assert one.stride() == weight.stride()
    gradients = torch.autograd.grad([one.float().square().sum() for one in copies], weights)
    for gradient, one in zip(gradients, copies, strict=True):
        assert torch.equal(gradient, (2 * one.float()).bfloat16().float())
        assert gradient.stride() == one.stride()


def test_weights_on_a_device_without_autocast_are_not_lowered() -> None:
    weights = [torch.zeros(3, device="meta")]
    with torch.autocast("cpu", torch.bfloat16):
        assert lowered(weights) is weights
