import pytest
import torch
from torch.nn.utils.parametrizations import spectral_norm

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
        discriminator.advance_spectral_norm()
    for weight in discriminator.weights():
        assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1.0, abs=1e-3)


def test_vectors_of_the_spectral_norm_are_state_and_move_only_when_told():
    discriminator = small()
    names = [name for name in discriminator.state_dict() if name.endswith(("._u", "._v"))]
    assert len(names) == 2 * SMALL.discriminator_num_layers
    inputs = torch.rand(1, 3, 16, 16), torch.rand(1, 5, 16, 16)

    def moved_by(work):
        before = {name: discriminator.state_dict()[name].clone() for name in names}
        work()
        return [name for name in names if not torch.equal(before[name], discriminator.state_dict()[name])]

    assert moved_by(discriminator.advance_spectral_norm) == names
    for training in (True, False):
        discriminator.train(training)
        assert discriminator.training == training
        assert not moved_by(lambda: discriminator(*inputs))
        assert not moved_by(lambda: discriminator(*inputs, slope_at=inputs))
        assert torch.equal(discriminator(*inputs), discriminator(*inputs))
    assert moved_by(discriminator.advance_spectral_norm) == names, "in evaluation mode, too"


def test_power_iteration_is_the_textbooks():
    discriminator = small()
    layer = discriminator.layers[0]
    matrix = layer.original.detach().flatten(1)
    u = layer.vectors._u.clone()
    discriminator.advance_spectral_norm()
    # The right vector follows from the new left one, so that their product is the new estimate.
    v = layer.vectors._v
    expected_u = torch.nn.functional.normalize(matrix @ (matrix.T @ u), dim=0)
    torch.testing.assert_close(layer.vectors._u, expected_u)
    torch.testing.assert_close(v, torch.nn.functional.normalize(matrix.T @ expected_u, dim=0))
    torch.testing.assert_close(discriminator.weights()[0].detach().flatten(1), matrix / (expected_u @ matrix @ v))


class Weights(torch.nn.Module):
    """What torch's own spectral norm is put on."""

    def __init__(self, original):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty_like(original))
        self.bias = torch.nn.Parameter(torch.zeros(len(original)))
        with torch.no_grad():
            self.weight.normal_(0.0, original[0].numel() ** -0.5)


def test_spectral_norm_is_torchs_in_names_draws_steps_and_gradients():
    torch.manual_seed(3)
    ours = Discriminator(SMALL)
    torch.manual_seed(3)
    theirs = torch.nn.ModuleDict(
        {"layers": torch.nn.ModuleList(spectral_norm(Weights(layer.original.detach())) for layer in ours.layers)}
    )
    for _ in range(3):
        expected, found = theirs.state_dict(), ours.state_dict()
        assert list(found) == list(expected)
        assert all(torch.equal(found[name], value) for name, value in expected.items())
        weights = ours.weights()
        pulls = [torch.randn_like(weight) for weight in weights]
        gradients = torch.autograd.grad(weights, [layer.original for layer in ours.layers], pulls)
        for weight, pull, gradient, other in zip(weights, pulls, gradients, theirs["layers"], strict=True):
            other.eval()
            assert torch.equal(weight, other.weight)
            (wanted,) = torch.autograd.grad(other.weight, other.parametrizations.weight.original, pull)
            torch.testing.assert_close(gradient, wanted)
            other.train()
            _ = other.weight  # which moves its vectors
        ours.advance_spectral_norm()


@pytest.mark.parametrize("size", [(16, 16), (15, 15), (9, 16), (1, 3), (2, 2)])
@pytest.mark.parametrize("num_layers", [1, 2, 4])
def test_slope_is_the_gradient_of_the_summed_scores(size, num_layers):
    torch.manual_seed(0)
    config = ModelConfig(discriminator_base_channels=3, discriminator_num_layers=num_layers)
    discriminator = Discriminator(config).double()
    for name, parameter in discriminator.named_parameters():
        if name.endswith("bias"):  # 0 at first, which would hide a bend in the wrong place
            torch.nn.init.normal_(parameter, std=0.3)
    image, conditions = (torch.randn(2, channels, *size, dtype=torch.float64) for channels in (3, 5))
    mask = (torch.rand(2, 1, *size) < 0.5).double()
    others = (torch.randn(3, channels, *size, dtype=torch.float64) for channels in (3, 5))
    scores, slope = discriminator(*others, slope_at=(image, conditions))
    assert scores.shape[0] == 3, "scores and slope are of different images"

    image.requires_grad_(True)
    (expected,) = torch.autograd.grad(discriminator(image, conditions).sum(), image, create_graph=True)
    torch.testing.assert_close(slope, expected)
    weights = [p for name, p in discriminator.named_parameters() if name.endswith("original")]
    assert len(weights) == num_layers
    # A penalty like that of training: autograd's double backward is what it must come to.
    penalties = [
        ((g * mask).square().sum(dim=(1, 2, 3)).add(1e-16).sqrt() - 1).square().mean() for g in (slope, expected)
    ]
    found, wanted = (torch.autograd.grad(penalty, weights) for penalty in penalties)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)
        assert b.abs().max() > 0


def test_scores_are_the_same_with_and_without_a_slope():
    discriminator = small()
    inputs = torch.rand(2, 3, 16, 16), torch.rand(2, 5, 16, 16)
    scores, slope = discriminator(*inputs, slope_at=inputs)
    assert torch.equal(scores, discriminator(*inputs))
    assert slope.shape == inputs[0].shape


@pytest.mark.parametrize("half", [False, True])
def test_penalty_on_the_slope_reaches_every_weight(half):
    discriminator = small()
    inputs = torch.rand(2, 3, 16, 16), torch.rand(2, 5, 16, 16)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        scores, slope = discriminator(*inputs, slope_at=inputs)
    assert scores.dtype == slope.dtype == torch.float32
    slope.square().sum().backward()
    for name, parameter in discriminator.named_parameters():
        if name.endswith("original"):
            assert parameter.grad is not None
            assert torch.isfinite(parameter.grad).all()
            assert parameter.grad.abs().max() > 0, name


def test_slope_is_float32_under_autocast():
    discriminator = small()
    inputs = torch.rand(2, 3, 16, 16), torch.rand(2, 5, 16, 16)
    _, expected = discriminator(*inputs, slope_at=inputs)
    with torch.autocast("cpu", torch.bfloat16):
        _, slope = discriminator(*inputs, slope_at=inputs)
    assert torch.equal(slope, expected)


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


def test_spectral_norm_is_taken_outside_autocast(monkeypatch):
    discriminator, product, seen = small(), torch.mv, []

    def watched(*arguments):
        # Only CUDA's autocast takes the product to half precision, so look at the switch.
        seen.append(torch.is_autocast_enabled("cpu"))
        return product(*arguments)

    monkeypatch.setattr(torch, "mv", watched)
    with torch.autocast("cpu", torch.bfloat16):
        discriminator(torch.rand(1, 3, 16, 16), torch.rand(1, 5, 16, 16))
    assert seen == [False] * SMALL.discriminator_num_layers
