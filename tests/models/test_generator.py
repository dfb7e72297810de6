from dataclasses import replace

import pytest
import torch
from running import run_code
from torch.export import Dim

from scfegan_ray import images
from scfegan_ray.config import ModelConfig
from scfegan_ray.errors import ConfigError
from scfegan_ray.models.generator import Generator, margin_px
from scfegan_ray.models.layers import GatedConv2d, GatedDeconv2d


def small(num_downsamples=3, base_channels=4, dilations=(2, 4)):
    torch.manual_seed(0)
    return Generator(ModelConfig(base_channels=base_channels, num_downsamples=num_downsamples, dilations=dilations))


@pytest.mark.parametrize(
    ("num_downsamples", "base_channels", "size"),
    [(1, 3, (2, 6)), (2, 4, (16, 16)), (3, 8, (32, 24)), (5, 4, (64, 64))],
)
def test_output_is_an_image_of_the_same_size(num_downsamples, base_channels, size):
    generator = small(num_downsamples, base_channels)
    generated = generator(torch.rand(2, 9, *size) * 2 - 1)
    assert generated.shape == (2, 3, *size)
    assert generated.dtype == torch.float32
    assert generated.abs().max() < 1
    assert generated.std() > 0.01


def test_a_network_without_memory_is_made_without_torchs_compiler(tmp_path):
    code = """
import sys, torch
from scfegan_ray.config import ModelConfig
from scfegan_ray.models.generator import Generator
with torch.device("meta"):
    Generator(ModelConfig())
print("torch._dynamo" in sys.modules)
"""
    assert run_code(code, tmp_path) == "False", "its import takes seconds"


def test_the_default_is_the_released_network():
    with torch.device("meta"):
        generator = Generator(ModelConfig())
    # The dead biases of the transpose convolutions' gates are all that the released 92.9 M have more.
    dead = 3 * 512 + 256 + 128 + 64 + 3
    count = sum(parameter.numel() for parameter in generator.parameters())
    assert count == 92_884_113
    assert round((count + dead) / 1e6, 1) == 92.9

    def table(layers):
        return [
            (m.in_channels, m.out_channels, m.weight.shape[-1], m.stride, m.dilation, m.normalize, m.activate)
            for m in layers
            if isinstance(m, GatedConv2d)
        ]

    assert table(generator.encoder) == [
        (9, 64, 7, 2, 1, False, True),
        (64, 128, 5, 2, 1, True, True),
        (128, 256, 5, 2, 1, True, True),
        (256, 512, 3, 2, 1, True, True),
        (512, 512, 3, 2, 1, True, True),
        (512, 512, 3, 2, 1, True, True),
        (512, 512, 3, 2, 1, True, True),
    ]
    assert table(generator.bottleneck) == [(512, 512, 3, 1, d, True, True) for d in (2, 4, 8, 16)]
    assert table(generator.decoder) == [
        (1024, 512, 3, 1, 1, True, True),
        (1024, 512, 3, 1, 1, True, True),
        (1024, 512, 3, 1, 1, True, True),
        (512, 256, 3, 1, 1, True, True),
        (256, 128, 3, 1, 1, True, True),
        (128, 64, 3, 1, 1, True, True),
        (12, 3, 3, 1, 1, False, False),
    ]
    upsamplers = [(m.in_channels, m.out_channels) for m in generator.upsamplers if isinstance(m, GatedDeconv2d)]
    assert upsamplers == [(512, 512), (512, 512), (512, 512), (512, 256), (256, 128), (128, 64), (64, 3)]


@pytest.mark.parametrize("size", [(12, 16), (16, 20)])
def test_sizes_that_do_not_halve_are_refused_with_the_cure(size):
    with pytest.raises(ConfigError, match="multiple of 8"):
        small()(torch.zeros(1, 9, *size))


def test_every_parameter_gets_a_gradient():
    generator = small()
    generator(torch.rand(1, 9, 64, 64)).square().mean().backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_silenced_taps_change_nothing_at_the_trained_size_and_something_above():
    generator = small(num_downsamples=3, dilations=(2, 4, 8)).eval()
    at_trained, larger = torch.rand(1, 9, 32, 32), torch.rand(1, 9, 128, 128)
    with torch.no_grad():
        before, larger_before = generator(at_trained), generator(larger)
        kept = generator.bottleneck[0].weight.clone()
        generator.silence_untrained_taps(32)  # the bottleneck's map is 4x4: dilations 4 and 8 see padding only
        assert torch.equal(generator(at_trained), before)
        assert not torch.allclose(generator(larger), larger_before)
    assert torch.equal(generator.bottleneck[0].weight, kept)
    for layer in generator.bottleneck[1:]:
        assert layer.weight[:, :, 1, 1].abs().min() > 0
        assert torch.count_nonzero(layer.weight) == layer.weight[:, :, 1, 1].numel()


def test_silencing_for_an_impossible_size_is_refused():
    with pytest.raises(ConfigError, match="multiples of 8"):
        small().silence_untrained_taps(20)


def test_half_precision_gives_float32_images():
    generator = small()
    packed = torch.rand(1, 9, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        generated = generator(packed)
    assert generated.dtype == torch.float32
    torch.testing.assert_close(generated, generator(packed), atol=0.05, rtol=0.05)


def test_export_with_free_batch_matches():
    generator = small().eval()
    program = torch.export.export(
        generator, (torch.rand(2, 9, 32, 32),), dynamic_shapes={"packed": {0: Dim("number", min=1, max=64)}}
    )
    packed = torch.rand(5, 9, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(packed), generator(packed))


def packed(color=None):
    """Pack an image that is 0.5 at the left and -0.5 at the right, with a hole in the middle."""
    image = torch.full((2, 3, 16, 16), 0.5)
    image[..., 8:] = -0.5
    mask = torch.zeros(2, 1, 16, 16)
    mask[..., 4:12, 4:12] = 1.0
    paint = -mask.expand(2, 3, 16, 16).clone()
    if color is not None:
        paint[..., 6:10, 6:10] = color
    plane = torch.zeros_like(mask)
    return images.pack_input(image * (1 - mask), plane, paint, mask, plane), image, mask


def silent(generator):
    """Let the last layer add nothing."""
    torch.nn.init.zeros_(generator.decoder[-1].weight)
    return generator


def test_residual_starts_from_a_smooth_fill_of_what_is_known():
    generator = silent(small(3, 4))
    given, image, mask = packed()
    assert not generator(given).any(), "as published: from gray"
    generator.config = replace(generator.config, output="residual")
    generated = generator(given)
    assert torch.allclose(generated * (1 - mask), 0.98 * image * (1 - mask), atol=1e-5)
    inside = generated[0, 0, 4:12, 4:12]
    assert inside.abs().max() < 0.5
    assert (inside.diff(dim=1) <= 1e-6).all(), "from the left to the right it falls"
    assert inside[:, 0].min() > 0.15 and inside[:, -1].max() < -0.15, "and meets both sides"
    with torch.autocast("cpu", torch.bfloat16):
        assert generator(given).dtype == torch.float32


def test_residual_starts_from_paint_too():
    generator = silent(small(3, 4))
    generator.config = replace(generator.config, output="residual")
    given, _, _ = packed(color=0.9)
    assert torch.allclose(generator(given)[..., 6:10, 6:10], torch.tensor(0.98 * 0.9), atol=1e-5)


def test_residual_of_nothing_known_starts_from_gray():
    generator = silent(small(3, 4))
    generator.config = replace(generator.config, output="residual")
    mask = torch.ones(1, 1, 16, 16)
    plane = torch.zeros_like(mask)
    given = images.pack_input(torch.zeros(1, 3, 16, 16), plane, -mask.expand(1, 3, 16, 16), mask, plane)
    assert not generator(given).any()


def test_residual_is_exported_for_any_number_of_images():
    generator = small(3, 4)
    generator.config = replace(generator.config, output="residual")
    given, _, _ = packed(color=0.3)
    program = torch.export.export(generator, (given,), dynamic_shapes=({0: Dim("number", min=1, max=64)},)).module()
    three = torch.cat([given, given[:1]])
    assert torch.allclose(program(three), generator(three), atol=1e-6)


def test_a_second_stage_is_given_the_first_ones_fill():
    torch.manual_seed(0)
    config = ModelConfig(base_channels=4, num_downsamples=2, dilations=(2,), stages=2)
    generator = Generator(config)
    alone = Generator(replace(config, stages=1))
    alone.load_state_dict({n: v for n, v in generator.state_dict().items() if not n.startswith("coarse.")})
    packed = torch.rand(2, 9, 16, 16) * 2 - 1
    packed[:, 7] = 0
    packed[:, 7, 4:12, 4:12] = 1
    packed[:, :3] *= 1 - packed[:, 7:8]
    fill = generator.coarse(packed)
    filled = packed.clone()
    filled[:, :3, 4:12, 4:12] = fill[:, :, 4:12, 4:12]
    assert torch.equal(generator(packed), alone(filled))
    generator(packed).mean().backward()
    assert all(parameter.grad is not None for parameter in generator.coarse.parameters()), "both are trained"


def test_both_stages_are_silenced():
    generator = Generator(ModelConfig(base_channels=4, num_downsamples=2, dilations=(2, 16), stages=2))
    generator.silence_untrained_taps(32)
    for network in (generator, generator.coarse):
        assert network.bottleneck[1].weight[:, :, 0].abs().sum() == 0
        assert network.bottleneck[0].weight[:, :, 0].abs().sum() > 0


@pytest.mark.parametrize("num_left", [1, 2, 3])
@pytest.mark.parametrize("output", ["direct", "residual"])
def test_a_part_of_the_image_is_right_but_for_its_margin(num_left: int, output: str) -> None:
    torch.manual_seed(0)
    generator = Generator(ModelConfig(base_channels=4, num_downsamples=3, output=output)).eval()
    mask = torch.zeros(1, 1, 96, 64)
    mask[:, :, 20:70, 10:60] = 1
    packed = images.pack_input(torch.rand(1, 3, 96, 64) * (1 - mask), mask, -mask.expand(1, 3, 96, 64), mask, mask)
    with torch.no_grad():
        whole = generator(packed)
        x, skips, fill = generator.begin(packed, num_left)
        assert len(skips) == num_left and torch.equal(generator.finish(x, list(skips), fill), whole)

        def part(features: torch.Tensor) -> torch.Tensor:
            step = 96 // features.shape[2]
            return features[:, :, 16 // step : 80 // step, : 56 // step]

        found = generator.finish(part(x), [part(skip) for skip in skips], None if fill is None else part(fill))
    margin = margin_px(num_left)
    expected = whole[:, :, 16:80, :56]
    right = (found - expected)[:, :, margin:-margin, :-margin], (found - expected)[:, :, :, : margin // 2]
    assert right[0].abs().max() < 1e-5, "the left border is the image's, and has no margin"
    assert right[1].abs().max() > 1e-5, "there is one"
