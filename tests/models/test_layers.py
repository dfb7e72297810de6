import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_compiler

from scfegan_ray.models.layers import (
    GatedConv2d,
    GatedDeconv2d,
    conv2d_same,
    conv2d_same_adjoint,
    local_response_norm,
    same_padding,
)


@pytest.mark.parametrize(
    ("size", "kernel_size", "stride", "dilation", "expected"),
    [
        (512, 7, 2, 1, (2, 3)),
        (256, 5, 2, 1, (1, 2)),
        (64, 3, 2, 1, (0, 1)),
        (4, 3, 1, 16, (16, 16)),
        (5, 3, 2, 1, (1, 1)),
        (1, 3, 2, 1, (1, 1)),
    ],
)
def test_same_padding_is_tensorflows(size, kernel_size, stride, dilation, expected):
    assert same_padding(size, kernel_size, stride, dilation) == expected


def padded_convolution(x, weight, bias, stride, dilation):
    """What TensorFlow does, with every zero in place."""
    top, bottom = same_padding(x.shape[-2], weight.shape[-2], stride, dilation)
    left, right = same_padding(x.shape[-1], weight.shape[-1], stride, dilation)
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, stride, 0, dilation)


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 3), (8, 2), (16, 4)])
@pytest.mark.parametrize(
    ("kernel_size", "stride", "dilation"),
    [(3, 1, 1), (3, 1, 2), (3, 1, 4), (3, 1, 16), (3, 2, 1), (5, 2, 1), (7, 2, 1), (5, 1, 16)],
)
def test_same_convolution_is_the_padded_one(size, kernel_size, stride, dilation):
    """Also where a dilation as large as the map leaves some taps nothing but padding to see."""
    torch.manual_seed(0)
    shapes = (2, 3, *size), (4, 3, kernel_size, kernel_size), (4,)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    actual = conv2d_same(*inputs, stride, dilation)
    expected = padded_convolution(*inputs, stride, dilation)
    torch.testing.assert_close(actual, expected)
    pull = torch.randn_like(expected)
    found, wanted = (torch.autograd.grad(y, inputs, pull) for y in (actual, expected))
    for name, a, b in zip(("input", "weight", "bias"), found, wanted, strict=True):
        torch.testing.assert_close(a, b, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 5), (5, 8), (8, 5)])
@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_adjoint_is_the_gradient_of_the_same_convolution(size, kernel_size, stride):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, kernel_size, kernel_size, dtype=torch.float64, requires_grad=True)
    y = conv2d_same(x, weight, torch.zeros(4, dtype=torch.float64), stride)
    pull = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, x, pull, create_graph=True)
    actual = conv2d_same_adjoint(pull, weight, size, stride)
    torch.testing.assert_close(actual, expected)
    # A penalty on it trains the weights as it would through autograd's own.
    found, wanted = (torch.autograd.grad(g.square().sum(), weight)[0] for g in (actual, expected))
    torch.testing.assert_close(found, wanted)


def test_lrn_divides_by_the_plain_sum_of_squares_over_channels():
    # Channels 3 and 4: both see 9 + 16. An instance norm of a constant image would be 0, a mean 11 times larger.
    x = torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1).expand(1, 2, 4, 4)
    expected = x / (25.0 + 5e-5) ** 0.5
    torch.testing.assert_close(local_response_norm(x), expected)


def test_lrn_window_reaches_five_channels():
    x = torch.zeros(1, 13, 1, 1)
    x[0, 0] = 2.0
    x[0, 5] = 1.0
    x[0, 6] = 1.0
    y = local_response_norm(x).flatten()
    assert y[5].item() == pytest.approx(1 / 6.00005**0.5)
    assert y[6].item() == pytest.approx(1 / 2.00005**0.5)


@pytest.mark.parametrize("channels", [1, 5, 6, 11, 24])
@pytest.mark.parametrize("grad", [True, False])
def test_lrn_matches_pytorch(channels, grad):
    torch.manual_seed(channels)
    x = torch.randn(2, channels, 3, 4)
    with torch.set_grad_enabled(grad):
        actual = local_response_norm(x.requires_grad_(grad))
    expected = F.local_response_norm(x, 11, alpha=11.0, beta=0.5, k=5e-5)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("channels", [3, 14])
def test_lrn_gradient(channels):
    torch.manual_seed(0)
    x = torch.randn(2, channels, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(local_response_norm, (x,))


def test_lrn_sums_half_precision_in_float32():
    # 300^2 overflows float16.
    x = torch.full((1, 11, 1, 1), 300.0, dtype=torch.float16, requires_grad=True)
    y = local_response_norm(x)
    y.sum().backward()
    assert y.dtype == torch.float16
    assert y[0, 5].item() == pytest.approx(11**-0.5, rel=1e-3)
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # of Dynamo, of what it does
def test_compiled_gradients_scatter_nothing():
    """What adds up in scattered places does so in any order on GPUs."""
    called = []

    @make_boxed_compiler
    def looked_at(graph, inputs):
        called.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    layers = torch.nn.Sequential(GatedConv2d(3, 12, 3), GatedDeconv2d(12, 3))
    compiled = torch.compile(layers, backend=aot_autograd(fw_compiler=looked_at), fullgraph=True)
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    (found,) = torch.autograd.grad(compiled(x).sum(), x)
    (expected,) = torch.autograd.grad(layers(x).sum(), x)
    torch.testing.assert_close(found, expected)
    assert any("convolution_backward" in name for name in called)
    assert not [name for name in called if "unfold_backward" in name or "index_put" in name or "scatter" in name]


def test_gated_conv_multiplies_leaky_features_by_the_gate():
    layer = GatedConv2d(1, 1, 1, normalize=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1))
        layer.bias.copy_(torch.tensor([-3.0, 0.5]))
    y = layer(torch.full((1, 1, 1, 1), 2.0))
    assert y.item() == pytest.approx(0.2 * -1.0 * torch.sigmoid(torch.tensor(6.5)).item())


def test_gated_conv_without_activation_is_linear_in_its_features():
    layer = GatedConv2d(1, 1, 1, normalize=False, activate=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, 0.0]).reshape(2, 1, 1, 1))
    assert layer(torch.full((1, 1, 1, 1), -2.0)).item() == pytest.approx(-1.0)


def test_gated_conv_with_stride_pads_only_after():
    layer = GatedConv2d(1, 1, 3, stride=2, normalize=False, activate=False)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, 0, 0, 0] = 2.0
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    # Symmetric padding would put the first tap at pixel -1.
    torch.testing.assert_close(layer(x), x[..., ::2, ::2])


def test_gated_conv_normalizes_features_and_not_the_gate():
    torch.manual_seed(0)
    layer = GatedConv2d(3, 4, 3, dilation=2)
    x = torch.randn(2, 3, 8, 8)
    both = F.conv2d(x, layer.weight, layer.bias, padding=2, dilation=2)
    features = F.local_response_norm(both[:, :4], 11, alpha=11.0, beta=0.5, k=5e-5)
    torch.testing.assert_close(layer(x), F.leaky_relu(features, 0.2) * torch.sigmoid(both[:, 4:]))


def test_gated_deconv_is_the_gradient_of_a_same_convolution():
    torch.manual_seed(0)
    layer = GatedDeconv2d(3, 2).double()
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    image = torch.zeros(1, 2, 8, 8, dtype=torch.float64, requires_grad=True)
    # k5 stride 2: one zero before, two after. `weight` is (in, out, k, k), which is the convolution's (out, in, k, k).
    convolved = F.conv2d(F.pad(image, (1, 2, 1, 2)), layer.weight.detach(), stride=2)
    (z,) = torch.autograd.grad(convolved, image, x)
    with torch.no_grad():
        layer.bias.fill_(0.3)
    z = F.leaky_relu(z + 0.3, 0.2)
    torch.testing.assert_close(layer(x), z * torch.sigmoid(z))


def test_same_seed_same_weights():
    torch.manual_seed(5)
    first = GatedConv2d(2, 3, 3).weight
    torch.manual_seed(5)
    assert torch.equal(first, GatedConv2d(2, 3, 3).weight)
