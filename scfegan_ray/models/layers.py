"""Building blocks of the generator: gated convolutions, local response normalization, TensorFlow's SAME padding."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LEAK = 0.2
"""Negative slope of every leaky ReLU, in both networks (released graph)."""

_AVERAGINGS = 8
_LEAST_KNOWN = 1e-6
_LRN_RADIUS = 5
_LRN_BIAS = 5e-5

_adds_shifted: ContextVar[bool] = ContextVar("adds_shifted", default=False)


def same_padding(size: int, kernel_size: int, stride: int, dilation: int) -> tuple[int, int]:
    """Count the zeros that TensorFlow's SAME puts before and after one axis.

    With stride 2 on an even size the two differ (kernel 7: 2 and 3), which is where ports of TensorFlow models
    shift by half a pixel per layer.

    Args:
        size: length of the axis in pixels.
        kernel_size: taps along the axis.
        stride: step between outputs.
        dilation: step between taps.

    Returns:
        Zeros before and zeros after, such that the output has ceil(size / stride) elements.
    """
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + (kernel_size - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def conv2d_same(x: Tensor, weight: Tensor, bias: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
    """Convolve with TensorFlow's SAME padding.

    Args:
        x: (N, C, H, W) float.
        weight: (D, C, k, k) float.
        bias: (D,) float.
        stride: step between outputs.
        dilation: step between taps.

    Returns:
        (N, D, ceil(H / stride), ceil(W / stride)) float.
    """
    if weight.shape[-1] == 3 and stride == 1 and dilation >= max(x.shape[-2:]):
        # All taps but the middle one only ever see padding.
        return F.conv2d(x, weight[..., 1:2, 1:2], bias)
    top, bottom = same_padding(x.shape[-2], weight.shape[-2], stride, dilation)
    left, right = same_padding(x.shape[-1], weight.shape[-1], stride, dilation)
    if top == bottom and left == right:
        # The convolution pads by itself, which saves a copy of the input.
        return F.conv2d(x, weight, bias, stride, (top, left), dilation)
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, stride, 0, dilation)


def conv2d_same_adjoint(gradient: Tensor, weight: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """Bring a gradient from the output of `conv2d_same` to its input; differentiable like any convolution.

    Args:
        gradient: (N, D, ceil(H / stride), ceil(W / stride)) float.
        weight: (D, C, k, k) float, the convolution's.
        size: H and W of the convolution's input.
        stride: the convolution's.

    Returns:
        (N, C, H, W) float.
    """
    top, _ = same_padding(size[0], weight.shape[-2], stride, 1)
    left, _ = same_padding(size[1], weight.shape[-1], stride, 1)
    full = F.conv_transpose2d(gradient, weight, stride=stride)
    return _crop(full, top, left, size)


class _Crop(torch.autograd.Function):
    """`_crop` with its gradient padded at once, where each of two slices would fill and copy all of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, top: int, left: int, size: tuple[int, int]) -> Tensor:
        ctx.margins = (left, x.shape[-1] - left - size[1], top, x.shape[-2] - top - size[0])
        return x[..., top : top + size[0], left : left + size[1]]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return F.pad(gradient, ctx.margins), None, None, None


def _crop(x: Tensor, top: int, left: int, size: tuple[int, int]) -> Tensor:
    """Return a view of the part of this height and width: (N, C, H, W)."""
    if _takes_custom_gradients():
        result: Tensor = _Crop.apply(x, top, left, size)  # type: ignore[no-untyped-call]
        return result
    return x[..., top : top + size[0], left : left + size[1]]


def _takes_custom_gradients() -> bool:
    """Tell whether gradients are wanted, and not by exporters, which cannot look into a function of our own.

    `torch.compile` can; by itself it would derive a sum into scattered places, slow and on GPUs in any order.
    """
    return torch.is_grad_enabled() and not torch.compiler.is_exporting()


@contextlib.contextmanager
def shifted_sums() -> Iterator[None]:
    """Within the context sums over 11 neighboring channels are made of five additions of shifted copies.

    That is what to export for other runtimes: they would copy each window, with 64-bit indices, before they sum it.
    Results differ from the usual ones by rounding alone.
    """
    token = _adds_shifted.set(True)
    try:
        yield
    finally:
        _adds_shifted.reset(token)


def _window_sum(values: Tensor) -> Tensor:
    """Sum channels c-5..c+5 for each channel c, with zeros beyond the ends.

    Nothing is subtracted, hence nothing cancels, as it would with a cumulative sum.

    Args:
        values: (N, C, H, W) float.

    Returns:
        (N, C, H, W), dtype of `values`.
    """
    padded = F.pad(values, (0, 0, 0, 0, _LRN_RADIUS, _LRN_RADIUS))
    if not torch.compiler.is_dynamo_compiling() and _adds_shifted.get():  # Dynamo cannot read a context variable
        two = padded[:, :-1] + padded[:, 1:]
        four = two[:, :-2] + two[:, 2:]
        eight = four[:, :-4] + four[:, 4:]
        return eight[:, : values.shape[1]] + two[:, 8 : 8 + values.shape[1]] + padded[:, 10:]  # 11 = 8 + 2 + 1
    return padded.unfold(1, 2 * _LRN_RADIUS + 1, 1).sum(-1)  # a view, and one call that reads it


def full_precision(x: Tensor) -> Tensor:
    """Return half-precision tensors as float32, others unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _inverse_norm(x: Tensor) -> Tensor:
    """Return 1 / sqrt(5e-5 + window sum of x^2): (N, C, H, W), at least float32."""
    return torch.rsqrt(_window_sum(full_precision(x).square()) + _LRN_BIAS)


class _LocalResponseNorm(torch.autograd.Function):
    """`local_response_norm` with its closed-form gradient.

    Keeps the input and one tensor of inverse norms, where autograd would keep every intermediate of the sum.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        inverse_norm = _inverse_norm(x)
        ctx.save_for_backward(x, inverse_norm)
        return (x * inverse_norm).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, inverse_norm = ctx.saved_tensors
        # y_c = x_c r_c with r_c = s_c^(-1/2), and s_c sums x_k^2 over the window of c, which is symmetric:
        # dL/dx_k = g_k r_k - x_k * sum over c in the window of k of g_c x_c r_c^3.
        scaled = gradient * inverse_norm
        inner = (scaled * x).mul_(inverse_norm).mul_(inverse_norm)
        result: Tensor = scaled.addcmul_(x, _window_sum(inner), value=-1.0).to(x.dtype)
        return result


def local_response_norm(x: Tensor) -> Tensor:
    """Divide each element by the root of the summed squares of its 11 neighbors along the channels.

    f / sqrt(5e-5 + sum of f^2 over channels c-5..c+5): alpha = 1 multiplies the plain sum, where PyTorch's own
    function would take a mean. The sum is taken in float32 under autocast too. Differentiable once.

    Args:
        x: (N, C, H, W) float.

    Returns:
        (N, C, H, W), dtype of `x`, in (-1, 1). Paper: the released graph's LRN.
    """
    if _takes_custom_gradients():
        result: Tensor = _LocalResponseNorm.apply(x)  # type: ignore[no-untyped-call]
        return result
    return (x * _inverse_norm(x)).to(x.dtype)


def smooth_fill(colors: Tensor, known: Tensor, num_levels: int) -> Tensor:
    """Spread what is known of an image into what is not, as smoothly as may be.

    From the smallest of several sizes to the full one: what is unknown takes the colors of the size before, and is then
    averaged with its neighbors a few times, which known pixels take part in and keep their colors. That comes close to
    the solution of Laplace's equation with known pixels as its border, in a fixed number of operations.

    Args:
        colors: (N, C, H, W) float, 0 where unknown; H and W divisible by 2^num_levels.
        known: (N, 1, H, W) float in {0, 1}.
        num_levels: halvings.

    Returns:
        (N, C, H, W) float: `colors` where known; 0 where an image knows nothing at all.
    """
    sizes = [(colors, known)]
    for _ in range(num_levels):
        colors, known = (F.avg_pool2d(one, 2) for one in (colors, known))
        sizes.append((colors, known))
    colors, known = sizes.pop()
    share = known.sum(dim=(2, 3), keepdim=True)
    mean = colors.sum(dim=(2, 3), keepdim=True) / share.clamp(min=_LEAST_KNOWN)
    filled = torch.where(known > 0, colors / known.clamp(min=_LEAST_KNOWN), mean)
    for colors, known in reversed(sizes):
        filled = F.interpolate(filled, scale_factor=2.0, mode="bilinear", align_corners=False)
        given = torch.where(known > 0, colors / known.clamp(min=_LEAST_KNOWN), filled)
        filled = torch.lerp(filled, given, known)
        for _ in range(_AVERAGINGS):
            filled = torch.lerp(F.avg_pool2d(filled, 3, 1, 1, count_include_pad=False), given, known)
    return filled


@torch.no_grad()
def _draw_normal(tensor: Tensor, variance: float) -> None:
    """Draw values from torch's global generator in place, normal around 0.

    Tensors on "meta" have none; torch would import its compiler to draw them nonetheless, which takes seconds.
    """
    if not tensor.is_meta:
        tensor.normal_(0.0, math.sqrt(variance))


class GatedConv2d(nn.Module):
    """Convolve twice, once for features and once for a gate, and return features times sigmoid(gate).

    Both convolutions read the same input, so they run as one: the first half of its output channels is the
    feature, the second half the gate. `weight` is (2 * out_channels, in_channels, k, k), `bias` (2 * out_channels,).

    Initial weights are normal with a variance of gain / fan-in. The gain is 2 / (1 + 0.2^2) for features that pass
    a leaky ReLU, and 1 for linear features and for gates. Biases are 0, so that gates start at one half.
    Differs from the paper: its initial weights were never published.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the result.
        kernel_size: side of both kernels.
        stride: step between outputs.
        dilation: step between taps.
        normalize: apply `local_response_norm` to the features.
        activate: apply leaky ReLU (slope 0.2) to the features.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        normalize: bool = True,
        activate: bool = True,
    ) -> None:
        """Draw the weights from torch's global generator."""
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride
        self.dilation = dilation
        self.normalize = normalize
        self.activate = activate
        self.weight = nn.Parameter(torch.empty(2 * out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(2 * out_channels))
        fan_in = in_channels * kernel_size**2
        gain = 2 / (1 + LEAK**2) if activate else 1.0
        _draw_normal(self.weight[:out_channels], gain / fan_in)
        _draw_normal(self.weight[out_channels:], 1.0 / fan_in)

    def forward(self, x: Tensor, weights: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return the gated features.

        Args:
            x: (N, in_channels, H, W) float.
            weights: `weight` and `bias` as `precision.lowered` gives them. Default: as they are.

        Returns:
            (N, out_channels, ceil(H / stride), ceil(W / stride)) float. Paper: released graph, `gate_conv`.
        """
        weight, bias = weights or (self.weight, self.bias)
        features, gate = conv2d_same(x, weight, bias, self.stride, self.dilation).chunk(2, dim=1)
        if self.normalize:
            features = local_response_norm(features)
        if self.activate:
            # In place where it is no view: fresh memory costs more than the arithmetic.
            features = F.leaky_relu(features, LEAK, inplace=self.normalize)
        return features * torch.sigmoid(gate)


class GatedDeconv2d(nn.Module):
    """Double the size by a transpose convolution whose result gates itself.

    The released graph computes a second convolution for the gate and then drops it; its weights (`biases2`) are dead
    and do not exist here. Initial weights are normal with variance 4 * 2 / (1 + 0.2^2) / fan-in, and the bias is 0.
    The fan-in is in_channels * 25 / 4, since a kernel of 25 taps and stride 2 puts 25 / 4 of them on each output on
    average; the 4 makes up for the gate, which is one half near 0, because no normalization follows.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the result.
    """

    _KERNEL_SIZE = 5
    _STRIDE = 2

    def __init__(self, in_channels: int, out_channels: int) -> None:
        """Draw the weights from torch's global generator."""
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.weight = nn.Parameter(torch.empty(in_channels, out_channels, self._KERNEL_SIZE, self._KERNEL_SIZE))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        fan_in = in_channels * (self._KERNEL_SIZE / self._STRIDE) ** 2
        _draw_normal(self.weight, 4 * 2 / (1 + LEAK**2) / fan_in)

    def forward(self, x: Tensor, weights: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return z * sigmoid(z), which is SiLU, for z = leaky_relu(transpose convolution).

        Args:
            x: (N, in_channels, H, W) float.
            weights: as of `GatedConv2d`.

        Returns:
            (N, out_channels, 2 H, 2 W) float. Paper: released graph, `gate_deconv`.
        """
        # The full output has 2 n + 3 rows. SAME drops one at the start and two at the end: `padding` drops one at
        # either end, the slice the last.
        weight, bias = weights or (self.weight, self.bias)
        z = F.conv_transpose2d(x, weight, bias, self._STRIDE, padding=1)
        return F.silu(F.leaky_relu(_crop(z, 0, 0, (2 * x.shape[-2], 2 * x.shape[-1])), LEAK))
