import pytest
import torch

from scfegan_ray import images
from scfegan_ray.config import ModelConfig
from scfegan_ray.models.discriminator import Discriminator, discriminator_widths

SMALL = ModelConfig(discriminator_base_channels=4, discriminator_num_layers=3)


def small():
    torch.manual_seed(0)
    return Discriminator(SMALL)


def test_default_widths_are_the_published_ones():
    assert discriminator_widths(ModelConfig()) == [64, 128, 256, 256, 256, 256]


def test_each_element_of_the_grid_is_a_score():
    discriminator = Discriminator(ModelConfig(discriminator_base_channels=2))
    scores = discriminator(torch.rand(1, 3, 512, 512), torch.rand(1, 5, 512, 512))
    assert scores.shape == (1, 8, 8, 8)


def test_scores_may_be_negative():
    scores = small()(torch.rand(4, 3, 32, 32) * 2 - 1, torch.rand(4, 5, 32, 32))
    assert scores.min() < 0 < scores.max()


def test_sees_mask_sketch_and_color_but_never_noise():
    mask, sketch, color, noise = (torch.rand(1, c, 16, 16) for c in (1, 1, 3, 1))
    conditions = images.pack_conditions(mask, sketch, color)
    small()(torch.rand(1, 3, 16, 16), conditions)
    with pytest.raises(RuntimeError):
        small()(torch.rand(1, 3, 16, 16), torch.cat([conditions, noise], dim=1))


def test_each_layer_has_spectral_norm_one():
    discriminator = small()
    for _ in range(30):
        discriminator(torch.rand(1, 3, 16, 16), torch.rand(1, 5, 16, 16))
    discriminator.eval()
    for layer in discriminator.layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1.0, abs=1e-3)


def test_vectors_of_the_spectral_norm_are_state_and_move_only_in_training():
    discriminator = small()
    names = [name for name in discriminator.state_dict() if name.endswith(("._u", "._v"))]
    assert len(names) == 2 * SMALL.discriminator_num_layers
    inputs = torch.rand(1, 3, 16, 16), torch.rand(1, 5, 16, 16)

    def moved():
        before = {name: discriminator.state_dict()[name].clone() for name in names}
        discriminator(*inputs)
        return [name for name in names if not torch.equal(before[name], discriminator.state_dict()[name])]

    assert moved()
    discriminator.eval()
    assert not moved()


@pytest.mark.parametrize("half", [False, True])
def test_survives_double_backward(half):
    discriminator = small()
    image = torch.rand(2, 3, 16, 16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        scores = discriminator(image, torch.rand(2, 5, 16, 16))
    assert scores.dtype == torch.float32
    (gradient,) = torch.autograd.grad(scores.sum(), image, create_graph=True)
    gradient.square().sum().backward()
    for name, parameter in discriminator.named_parameters():
        if name.endswith("original"):
            assert parameter.grad is not None
            assert torch.isfinite(parameter.grad).all()
            assert parameter.grad.abs().max() > 0, name


def test_power_iteration_runs_outside_autocast():
    discriminator = small()
    seen = []
    for layer in discriminator.layers:
        # Only CUDA's autocast takes the products of the power iteration to half precision, so look at the switch.
        layer.parametrizations.weight[0].register_forward_pre_hook(
            lambda module, inputs: seen.append(torch.is_autocast_enabled("cpu"))
        )
    with torch.autocast("cpu", torch.bfloat16):
        discriminator(torch.rand(1, 3, 16, 16), torch.rand(1, 5, 16, 16))
    assert seen == [False] * SMALL.discriminator_num_layers
