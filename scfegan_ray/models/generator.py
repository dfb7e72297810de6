"""The generator: a gated U-Net that fills the hole so that it obeys sketch and color."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from scfegan_ray import images
from scfegan_ray.config import ModelConfig
from scfegan_ray.errors import ConfigError
from scfegan_ray.models.layers import GatedConv2d, GatedDeconv2d, full_precision, smooth_fill
from scfegan_ray.precision import lowered

INPUT_CHANNELS = 9
"""incomplete 3, sketch 1, color 3, mask 1, noise 1: what `images.pack_input` stacks."""

IMAGE_CHANNELS = 3

_FILL_RANGE = 0.98
"""Of (-1, 1), where a residual of 0 reaches: beyond it tanh is so flat that a residual would have to be large."""


def encoder_widths(config: ModelConfig) -> list[int]:
    """Return the output channels of each encoder layer: they double from layer to layer, up to 8 times the first."""
    return [config.base_channels * min(2**i, 8) for i in range(config.num_downsamples)]


def decoder_widths(config: ModelConfig) -> list[int]:
    """Return the output channels of each decoder stage: the encoder's backwards, and an image last."""
    return [*reversed(encoder_widths(config)[:-1]), IMAGE_CHANNELS]


def encoder_kernel_size(index: int) -> int:
    """Return the kernel side of the encoder layer with this index from 0: 7, 5, 5, then 3."""
    return 7 if index == 0 else 5 if index <= 2 else 3


def margin_px(num_stages: int) -> int:
    """Return how far from its border a part of the image is wrong that `Generator.finish` made.

    Where the part ends and the image does not, each stage takes zeros for what is there: its transpose convolution at
    up to 2 pixels from the border, the convolution after it at 1 more; the next stage doubles that.

    Args:
        num_stages: stages of the decoder that were left to it.
    """
    return 3 * ((1 << num_stages) - 1)


class Generator(nn.Module):
    """Turn the packed user input into an image.

    `config.num_downsamples` gated convolutions of stride 2, dilated ones at the smallest size, and as many stages of
    transpose convolution, skip connection and gated convolution. The default config is the released network.

    Args:
        config: `base_channels`, `num_downsamples`, `dilations`, `output` and `stages` are read.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Draw the weights from torch's global generator; the law is told in `layers`."""
        super().__init__()
        self.config = config
        down = encoder_widths(config)
        up = decoder_widths(config)
        inputs = [INPUT_CHANNELS, *down[:-1]]
        self.encoder = nn.ModuleList(
            GatedConv2d(inputs[i], down[i], encoder_kernel_size(i), stride=2, normalize=i > 0) for i in range(len(down))
        )
        self.bottleneck = nn.ModuleList(
            GatedConv2d(down[-1], down[-1], 3, dilation=dilation) for dilation in config.dilations
        )
        self.upsamplers = nn.ModuleList()
        self.decoder = nn.ModuleList()
        width = down[-1]
        for i, (skip, out) in enumerate(zip(reversed(inputs), up, strict=True)):
            last = i == len(up) - 1
            self.upsamplers.append(GatedDeconv2d(width, out))
            self.decoder.append(GatedConv2d(skip + out, out, 3, normalize=not last, activate=not last))
            width = out
        self.coarse = Generator(replace(config, stages=config.stages - 1)) if config.stages > 1 else None

    def forward(self, packed: Tensor) -> Tensor:
        """Generate a whole image; only its hole is meant to be used (`images.composite`).

        Args:
            packed: (N, 9, H, W) float as `images.pack_input` gives it; H and W divisible by 2^num_downsamples.

        Returns:
            (N, 3, H, W) in (-1, 1), float32 under autocast too. Paper: figure 2, and the released graph.

        Raises:
            ConfigError: the height or the width is not divisible.
        """
        divisor = 2**self.config.num_downsamples
        height, width = packed.shape[-2:]
        if height % divisor or width % divisor:
            raise ConfigError(
                f"a generator with {self.config.num_downsamples} downsamples cannot take {height}x{width} images; "
                f"resize or pad both sides to a multiple of {divisor}, or set fewer model.num_downsamples"
            )
        if self.coarse is not None:
            packed = images.with_filled_hole(packed, self.coarse(packed))
        x, skips = self._encode(packed)
        return self._finish(self._decode(x, skips, len(self.decoder)), self._fill(packed))

    def begin(self, packed: Tensor, num_left: int) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """Compute what `finish` goes on with, which may then do so on a part of the image.

        Args:
            packed: as of `forward`.
            num_left: stages of the decoder, the last ones, that are left to `finish`.

        Returns:
            Features, (N, C, H / 2^num_left, W / 2^num_left); the skip connections of the stages that are left, of the
            last one first; and what is added to the result, (N, 3, H, W), or None.
        """
        if self.coarse is not None:
            packed = images.with_filled_hole(packed, self.coarse(packed))
        x, skips = self._encode(packed)
        x = self._decode(x, skips, len(self.decoder) - num_left)
        return x, skips, self._fill(packed)

    def finish(self, x: Tensor, skips: list[Tensor], fill: Tensor | None) -> Tensor:
        """Return the image, or the same part of it that each of the arguments is of, see `begin` and `margin_px`."""
        return self._finish(self._decode(x, skips, len(skips)), fill)

    def _encode(self, packed: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the bottleneck's features, and what each layer of the encoder was given."""
        x = packed
        skips = []
        for layer, weights in _with_weights(self.encoder):
            skips.append(x)
            x = layer(x, weights)
        for layer, weights in _with_weights(self.bottleneck):
            x = layer(x, weights)
        return x, skips

    def _decode(self, x: Tensor, skips: list[Tensor], number: int) -> Tensor:
        """Go through so many stages of the decoder, the first that have not had their skip connection taken."""
        if not number:
            return x
        first = len(self.decoder) - len(skips)
        chosen = slice(first, first + number)
        stages = _with_weights([*self.upsamplers[chosen], *self.decoder[chosen]])
        for (upsampler, its_weights), (layer, weights) in zip(stages[:number], stages[number:], strict=True):
            x = layer(torch.cat([skips.pop(), upsampler(x, its_weights)], dim=1), weights)
        return x

    def _fill(self, packed: Tensor) -> Tensor | None:
        """Return what a residual is added to, before tanh."""
        if self.config.output != "residual":
            return None
        fill = smooth_fill(*images.known_colors(packed.float()), self.config.num_downsamples)
        return torch.atanh(_FILL_RANGE * fill)

    def _finish(self, x: Tensor, fill: Tensor | None) -> Tensor:
        x = full_precision(x)
        return torch.tanh(x if fill is None else x + fill)

    @torch.no_grad()
    def silence_untrained_taps(self, trained_size_px: int) -> None:
        """Zero the bottleneck's taps that training at this size could not reach.

        Where a dilation is as large as the bottleneck's map, the outer taps only ever see padding: they keep their
        initial noise and would add it to larger images. At the trained size this changes no output.

        Args:
            trained_size_px: side of the square images the weights were trained on.

        Raises:
            ConfigError: the generator cannot have been trained at this size.
        """
        divisor = 2**self.config.num_downsamples
        if trained_size_px <= 0 or trained_size_px % divisor:
            raise ConfigError(
                f"trained_size_px is {trained_size_px}; a generator with {self.config.num_downsamples} downsamples "
                f"trains at multiples of {divisor}: give one"
            )
        if self.coarse is not None:
            self.coarse.silence_untrained_taps(trained_size_px)
        bottleneck_size = trained_size_px // divisor
        for layer in self.bottleneck:
            if isinstance(layer, GatedConv2d) and layer.dilation >= bottleneck_size:
                center = layer.weight[:, :, 1, 1].clone()
                layer.weight.zero_()
                layer.weight[:, :, 1, 1] = center


def _with_weights(layers: Iterable[nn.Module]) -> list[tuple[nn.Module, tuple[Tensor, Tensor]]]:
    """Return each layer with its weight and bias in the type to compute in."""
    layers = list(layers)
    tensors = lowered([layer.get_parameter(name) for layer in layers for name in ("weight", "bias")])
    return list(zip(layers, zip(tensors[::2], tensors[1::2], strict=True), strict=True))
