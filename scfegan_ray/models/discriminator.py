"""The discriminator: SN-PatchGAN, which scores every patch and channel of its last layer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from scfegan_ray.config import ModelConfig
from scfegan_ray.models.layers import LEAK, conv2d_same, full_precision

CONDITION_CHANNELS = 5
"""mask 1, sketch 1, color 3: what `images.pack_conditions` stacks. The noise is not among them."""

INPUT_CHANNELS = 3 + CONDITION_CHANNELS


def discriminator_widths(config: ModelConfig) -> list[int]:
    """Return the output channels of each layer: they double from layer to layer, up to 4 times the first."""
    return [config.discriminator_base_channels * min(2**i, 4) for i in range(config.discriminator_num_layers)]


class _Conv2d(nn.Module):
    """Convolution of kernel 3, stride 2 and SAME padding, normal weights of variance 1 / fan-in, bias 0."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        with torch.no_grad():
            self.weight.normal_(0.0, math.sqrt(1.0 / (in_channels * 9)))

    def forward(self, x: Tensor) -> Tensor:
        # Reading `weight` runs the power iteration; in half precision it would not converge.
        with torch.autocast(x.device.type, enabled=False):
            weight = self.weight
        return conv2d_same(x, weight, self.bias, stride=2)


class Discriminator(nn.Module):
    """Score how real an image looks, given mask, sketch and color.

    Convolutions of kernel 3 and stride 2 under spectral normalization, leaky ReLU between them, nothing after the
    last. In training mode each forward advances the vectors of the spectral norm by one power iteration.
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
            spectral_norm(_Conv2d(inputs, outputs))
            for inputs, outputs in zip([INPUT_CHANNELS, *widths[:-1]], widths, strict=True)
        )

    def forward(self, image: Tensor, conditions: Tensor) -> Tensor:
        """Return the score grid, each of whose elements is one score; higher means more real.

        Args:
            image: (N, 3, H, W) float in [-1, 1].
            conditions: (N, 5, H, W) float as `images.pack_conditions` gives them.

        Returns:
            (N, C, h, w), unbounded, float32 under autocast too; at 512 with the default config (N, 256, 8, 8).
        """
        x = torch.cat([image, conditions], dim=1)
        for i, layer in enumerate(self.layers):
            if i > 0:
                x = F.leaky_relu(x, LEAK)
            x = layer(x)
        return full_precision(x)
