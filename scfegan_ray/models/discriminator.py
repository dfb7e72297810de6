"""The discriminator: SN-PatchGAN, which scores every patch and channel of its last layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from scfegan_ray.config import ModelConfig
from scfegan_ray.models.layers import LEAK, conv2d_same, conv2d_same_adjoint, full_precision
from scfegan_ray.precision import lowered

CONDITION_CHANNELS = 5
"""mask 1, sketch 1, color 3: what `images.pack_conditions` stacks. The noise is not among them."""

INPUT_CHANNELS = 3 + CONDITION_CHANNELS


def discriminator_widths(config: ModelConfig) -> list[int]:
    """Return the output channels of each layer: they double from layer to layer, up to 4 times the first."""
    return [config.discriminator_base_channels * min(2**i, 4) for i in range(config.discriminator_num_layers)]


_KERNEL_SIZE = 3
_STRIDE = 2
_EPSILON = 1e-12  # least length that a vector is divided by
_FIRST_ITERATIONS = 16


class _Vectors(nn.Module):
    """Estimates of a matrix's first singular vectors: `_u` (rows,) and `_v` (columns,)."""

    _u: Tensor
    _v: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        u, v = (matrix.new_empty(size).normal_() for size in matrix.shape)
        self.register_buffer("_u", F.normalize(u, dim=0, eps=_EPSILON))
        self.register_buffer("_v", F.normalize(v, dim=0, eps=_EPSILON))


class _Conv2d(nn.Module):
    """Weights of a convolution under spectral normalization: first normal with variance 1 / fan-in, bias 0.

    Its tensors have the names that torch's own `spectral_norm` gives them.
    """

    bias: Tensor

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        weight = nn.Parameter(torch.empty(out_channels, in_channels, _KERNEL_SIZE, _KERNEL_SIZE))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        with torch.no_grad():
            weight.normal_(0.0, math.sqrt(1.0 / (in_channels * _KERNEL_SIZE**2)))
        self.parametrizations = nn.ModuleDict({"weight": nn.ModuleDict({"0": _Vectors(weight.detach().flatten(1))})})
        self.parametrizations["weight"].register_parameter("original", weight)

    @property
    def original(self) -> Tensor:
        """The weight that is trained: (out, in, 3, 3)."""
        return self.get_parameter("parametrizations.weight.original")

    @property
    def vectors(self) -> _Vectors:
        """What its norm is estimated with."""
        vectors = self.get_submodule("parametrizations.weight.0")
        assert isinstance(vectors, _Vectors), "as made above"
        return vectors


@torch.no_grad()
def _iterate(convs: Sequence[_Conv2d]) -> None:
    """Move the vectors of several layers by one power iteration: u = W v / |W v|, then v = W^T u / |W^T u|."""
    matrices, vectors = [conv.original.flatten(1) for conv in convs], [conv.vectors for conv in convs]
    us = _normalized([torch.mv(matrix, one._v) for matrix, one in zip(matrices, vectors, strict=True)])
    vs = _normalized([torch.mv(matrix.t(), u) for matrix, u in zip(matrices, us, strict=True)])
    torch._foreach_copy_([one._u for one in vectors] + [one._v for one in vectors], us + vs)


class _OverNorms(torch.autograd.Function):
    """Weights over their spectral norms, with the closed-form gradient, for which the vectors are constants."""

    @staticmethod
    def forward(ctx: Any, us: Sequence[Tensor], vs: Sequence[Tensor], *weights: Tensor) -> tuple[Tensor, ...]:
        norms = [torch.dot(u, torch.mv(weight.flatten(1), v)) for u, v, weight in zip(us, vs, weights, strict=True)]
        normalized = tuple(torch._foreach_div(weights, norms))
        ctx.save_for_backward(*us, *vs, *norms, *normalized)
        return normalized

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        number, saved = len(gradients), ctx.saved_tensors
        us, vs, norms, normalized = (saved[at : at + number] for at in range(0, 4 * number, number))
        # For N = W / s with s = u^T W v: dL/dW = (G - <G, N> u v^T) / s.
        scaled = torch._foreach_div(gradients, norms)
        shares = [product.sum() for product in torch._foreach_mul(scaled, normalized)]
        outers = [torch.outer(u, v) for u, v in zip(torch._foreach_mul(us, shares), vs, strict=True)]
        torch._foreach_sub_(scaled, [outer.view_as(one) for outer, one in zip(outers, scaled, strict=True)])
        return None, None, *scaled


def _normalized(vectors: list[Tensor]) -> list[Tensor]:
    norms = torch._foreach_clamp_min(list(torch._foreach_norm(vectors)), _EPSILON)
    return list(torch._foreach_div(vectors, list(norms)))


class Discriminator(nn.Module):
    """Score how real an image looks, given mask, sketch and color.

    Convolutions of kernel 3 and stride 2 under spectral normalization, leaky ReLU between them, nothing after the
    last. The vectors of the spectral norm move only in `advance_spectral_norm`, so that a forward is a pure function
    of weights and inputs, however many of them one update takes.
    Paper: figure 2 for the widths; the stride of the first layer was never published.

    Args:
        config: shapes; `discriminator_base_channels` and `discriminator_num_layers` are read.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Draw the weights, and the starting vectors of the spectral norm, from torch's global generator."""
        super().__init__()
        self.config = config
        widths = discriminator_widths(config)
        self.layers = nn.ModuleList(
            _Conv2d(inputs, outputs) for inputs, outputs in zip([INPUT_CHANNELS, *widths[:-1]], widths, strict=True)
        )
        for _ in range(_FIRST_ITERATIONS):
            self.advance_spectral_norm()

    def advance_spectral_norm(self) -> None:
        """Move the vectors of the spectral norm by one power iteration towards the present weights."""
        _iterate(list(self._convs()))

    def forward(
        self, image: Tensor, conditions: Tensor, slope_at: tuple[Tensor, Tensor] | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the score grid, each of whose elements is one score; higher means more real.

        The network is linear wherever no leaky ReLU bends, so the gradient of its scores is a second network, of its
        transposed convolutions. Computed that way, a penalty on it is differentiated once and not twice, and costs
        half as much.

        Args:
            image: (N, 3, H, W) float in [-1, 1].
            conditions: (N, 5, H, W) float as `images.pack_conditions` gives them.
            slope_at: other images (M, 3, H, W) and their conditions (M, 5, H, W), at which to take the gradient.

        Returns:
            (N, C, h, w), unbounded, float32 under autocast too; at 512 with the default config (N, 256, 8, 8).
            Where `slope_at` is given, also the gradient (M, 3, H, W) of the sum of each such image's scores with
            respect to the image, float32 under autocast too and differentiable in the weights.
        """
        # Under autocast the norm would be taken of rounded weights.
        with torch.autocast(image.device.type, enabled=False):
            weights = self.weights()
            slope = None if slope_at is None else self._slope(weights, *slope_at)
        *_, scores = self._activations(weights, image, conditions)
        return full_precision(scores) if slope is None else (full_precision(scores), slope)

    def weights(self) -> Sequence[Tensor]:
        """Return each layer's weight over its spectral norm: (out, in, 3, 3) float32."""
        convs = list(self._convs())
        us, vs = [conv.vectors._u for conv in convs], [conv.vectors._v for conv in convs]
        weights: tuple[Tensor, ...] = _OverNorms.apply(us, vs, *(conv.original for conv in convs))  # type: ignore[no-untyped-call]
        return weights

    def _convs(self) -> Iterator[_Conv2d]:
        for layer in self.layers:
            assert isinstance(layer, _Conv2d), "as made above"
            yield layer

    def _activations(self, weights: Sequence[Tensor], image: Tensor, conditions: Tensor) -> Iterator[Tensor]:
        """Yield the output of each convolution; the leaky ReLU then changes it in place, which keeps its sign."""
        # Convolutions of few channels are twice as fast with channels last.
        x = torch.cat([image, conditions], dim=1).contiguous(memory_format=torch.channels_last)
        tensors = lowered([*weights, *(layer.bias for layer in self._convs())])
        for at, (weight, bias) in enumerate(zip(tensors[: len(weights)], tensors[len(weights) :], strict=True)):
            x = conv2d_same(x if at == 0 else F.leaky_relu_(x, LEAK), weight, bias, _STRIDE)
            yield x

    def _slope(self, weights: Sequence[Tensor], image: Tensor, conditions: Tensor) -> Tensor:
        with torch.no_grad():
            *bends, scores = self._activations(weights, image, conditions)
        gradient = torch.ones_like(scores)
        for weight, bend in zip(reversed(weights[1:]), reversed(bends), strict=True):
            gradient = conv2d_same_adjoint(gradient, weight, (bend.shape[2], bend.shape[3]), _STRIDE)
            # One call, where a comparison, a choice and a product would be several; differentiable, too.
            gradient = torch.ops.aten.leaky_relu_backward(gradient, bend, LEAK, True)
        return conv2d_same_adjoint(gradient, weights[0][:, : image.shape[1]], (image.shape[2], image.shape[3]), _STRIDE)
