"""One update written straight from the paper's formulas, as slow as that is: what the fast one is held against.

Shares no code with the networks and losses that are trained: two convolutions per gate, torch's own local response
normalization, one pass of each network per image it looks at, float32. Takes the weights of a `TrainingState`, so that
both can be given the same batch and must agree on every part of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from scfegan_ray.config import LossConfig, OptimizationConfig
from scfegan_ray.images import Batch
from scfegan_ray.models.discriminator import Discriminator
from scfegan_ray.models.features import Features
from scfegan_ray.models.generator import Generator
from scfegan_ray.models.layers import GatedConv2d, GatedDeconv2d
from scfegan_ray.training.state import TrainingState


def _pad_same(x: Tensor, kernel_size: int, stride: int, dilation: int) -> Tensor:
    sides = []
    for size in (x.shape[3], x.shape[2]):
        reach = (kernel_size - 1) * dilation + 1
        total = max((-(-size // stride) - 1) * stride + reach - size, 0)
        sides += [total // 2, total - total // 2]
    return F.pad(x, sides)


class _GatedConv(nn.Module):
    def __init__(self, source: GatedConv2d) -> None:
        super().__init__()
        self.normalize, self.activate = source.normalize, source.activate
        self.kernel_size, self.stride, self.dilation = source.weight.shape[-1], source.stride, source.dilation
        weights, biases = source.weight.detach().chunk(2), source.bias.detach().chunk(2)
        self.weight, self.gate_weight = (nn.Parameter(one.clone()) for one in weights)
        self.bias, self.gate_bias = (nn.Parameter(one.clone()) for one in biases)

    def forward(self, x: Tensor) -> Tensor:
        x = _pad_same(x, self.kernel_size, self.stride, self.dilation)
        features = F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation)
        gate = F.conv2d(x, self.gate_weight, self.gate_bias, self.stride, 0, self.dilation)
        if self.normalize:
            # torch takes the mean over the window where the paper takes the sum: hence alpha = 11.
            features = F.local_response_norm(features, 11, alpha=11.0, beta=0.5, k=5e-5)
        if self.activate:
            features = F.leaky_relu(features, 0.2)
        return features * torch.sigmoid(gate)


class _GatedDeconv(nn.Module):
    def __init__(self, source: GatedDeconv2d) -> None:
        super().__init__()
        self.weight = nn.Parameter(source.weight.detach().clone())
        self.bias = nn.Parameter(source.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        z = F.conv_transpose2d(x, self.weight, self.bias, stride=2)[:, :, 1:-2, 1:-2]
        z = F.leaky_relu(z, 0.2)
        return z * torch.sigmoid(z)


class PlainGenerator(nn.Module):
    """The generator of the paper, with the weights of one of ours.

    Args:
        source: whose weights to copy.
    """

    def __init__(self, source: Generator) -> None:
        """Copy the weights."""
        super().__init__()
        self.encoder = nn.ModuleList(_GatedConv(_gated(layer)) for layer in source.encoder)
        self.bottleneck = nn.ModuleList(_GatedConv(_gated(layer)) for layer in source.bottleneck)
        self.upsamplers = nn.ModuleList()
        for layer in source.upsamplers:
            assert isinstance(layer, GatedDeconv2d), "the generator's upsamplers are transpose convolutions"
            self.upsamplers.append(_GatedDeconv(layer))
        self.decoder = nn.ModuleList(_GatedConv(_gated(layer)) for layer in source.decoder)

    def forward(self, packed: Tensor) -> Tensor:
        """Generate: (N, 9, H, W) float32 to (N, 3, H, W) float32 in (-1, 1)."""
        x, skips = packed, []
        for layer in self.encoder:
            skips.append(x)
            x = layer(x)
        for layer in self.bottleneck:
            x = layer(x)
        for upsampler, layer in zip(self.upsamplers, self.decoder, strict=True):
            x = layer(torch.cat([skips.pop(), upsampler(x)], dim=1))
        return torch.tanh(x)


def _gated(layer: nn.Module) -> GatedConv2d:
    assert isinstance(layer, GatedConv2d), "all other layers of the generator are gated convolutions"
    return layer


class _PlainDiscriminator(nn.Module):
    def __init__(self, source: Discriminator) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for layer in source.layers:
            weight = layer.get_parameter("parametrizations.weight.original")
            conv = spectral_norm(nn.Conv2d(weight.shape[1], weight.shape[0], 3, stride=2)).to(weight.device)
            # With the vectors of the power iteration, so that both start with the same estimate.
            conv.load_state_dict(layer.state_dict())
            self.layers.append(conv)

    def forward(self, image: Tensor, mask: Tensor, sketch: Tensor, color: Tensor) -> Tensor:
        x = torch.cat([image, mask, sketch, color], dim=1)
        for at, layer in enumerate(self.layers):
            x = layer(_pad_same(x if at == 0 else F.leaky_relu(x, 0.2), 3, 2, 1))
        return x


class PlainStep:
    """The paper's update of both networks."""

    def __init__(
        self, state: TrainingState, features: Features, losses: LossConfig, optimization: OptimizationConfig
    ) -> None:
        """Copy the weights.

        Args:
            state: whose weights to start from; it is left alone.
            features: frozen VGG-16.
            losses: weights and choices.
            optimization: rates of Adam, whose moments start at 0.
        """
        self.generator = PlainGenerator(state.generator)
        self.discriminator = _PlainDiscriminator(state.discriminator)
        self._features = features
        self._config = losses
        betas = (optimization.beta1, optimization.beta2)
        self._generator_optimizer = torch.optim.Adam(
            self.generator.parameters(), optimization.generator_learning_rate, betas
        )
        self._discriminator_optimizer = torch.optim.Adam(
            self.discriminator.parameters(), optimization.discriminator_learning_rate, betas
        )

    def __call__(self, batch: Batch, interpolation: Tensor) -> dict[str, Tensor]:
        """Update both networks once.

        Args:
            batch: what both networks are given.
            interpolation: (N,) float32 in [0, 1), where between composite and ground truth the penalty looks.

        Returns:
            Loss parts as `train_step` names them.
        """
        config = self._config
        ground_truth, mask, sketch, color = batch.ground_truth, batch.mask, batch.sketch, batch.color
        incomplete = ground_truth * (1 - mask)
        generated = self.generator(torch.cat([incomplete, sketch, color, mask, batch.noise], dim=1))
        composite = generated * mask + ground_truth * (1 - mask)

        def score(image: Tensor) -> Tensor:
            scores: Tensor = self.discriminator(image, mask, sketch, color)
            return scores

        # L_D
        real = score(ground_truth)
        fake = score(composite.detach())
        position = interpolation.reshape(-1, 1, 1, 1)
        between = (position * ground_truth + (1 - position) * composite.detach()).requires_grad_(True)
        scores = score(between).flatten(1)
        count = {"mean": scores.shape[1], "root": math.sqrt(scores.shape[1]), "sum": 1}
        score_of_image = scores.sum(1) / count[config.gradient_penalty_reduction]
        (slope,) = torch.autograd.grad(score_of_image.sum(), between, create_graph=True)
        # The root has no gradient at 0.
        norm = torch.sqrt(((slope * mask) ** 2).sum(dim=(1, 2, 3)) + 1e-16)
        gradient_penalty = ((norm - 1) ** 2).mean()
        discriminator_total = (1 - real).mean() + (1 + fake).mean() + config.gradient_penalty * gradient_penalty
        if config.real_score_penalty_in == "discriminator":
            real_score_penalty = (real**2).mean()
            discriminator_total = discriminator_total + config.real_score_penalty * real_score_penalty
        self._discriminator_optimizer.zero_grad()
        discriminator_total.backward()  # type: ignore[no-untyped-call]
        self._discriminator_optimizer.step()

        # L_G
        difference = (generated - ground_truth).abs()
        per_pixel = ((1 - mask) * difference).mean() + config.hole * (mask * difference).mean()
        scale = 255 * 0.225 if config.feature_scale == "caffe" else 1.0
        seen_generated = [scale * seen for seen in _vgg(self._features, generated)]
        seen_composite = [scale * seen for seen in _vgg(self._features, composite)]
        seen_truth = [scale * seen for seen in _vgg(self._features, ground_truth)]
        perceptual = _distance(seen_generated, seen_truth) + _distance(seen_composite, seen_truth)
        style_generated = _style(seen_generated, seen_truth)
        style_composite = _style(seen_composite, seen_truth)
        total_variation = _total_variation(composite, mask, config.total_variation_region)
        adversarial = -score(composite).mean()
        generator_total = (
            per_pixel
            + config.perceptual * perceptual
            + config.style * (style_generated + style_composite)
            + config.total_variation * total_variation
            + config.adversarial * adversarial
        )
        if config.real_score_penalty_in == "generator":
            real_score_penalty = (score(ground_truth) ** 2).mean()
            generator_total = generator_total + config.real_score_penalty * real_score_penalty
        self._generator_optimizer.zero_grad()
        generator_total.backward()
        self._generator_optimizer.step()

        parts = {
            "generator/total": generator_total,
            "generator/per_pixel": per_pixel,
            "generator/perceptual": perceptual,
            "generator/style_generated": style_generated,
            "generator/style_composite": style_composite,
            "generator/total_variation": total_variation,
            "generator/adversarial": adversarial,
            "discriminator/total": discriminator_total,
            "discriminator/real_scores": real.mean(),
            "discriminator/fake_scores": fake.mean(),
            "discriminator/gradient_penalty": gradient_penalty,
            f"{config.real_score_penalty_in}/real_score_penalty": real_score_penalty,
        }
        return {name: value.detach() for name, value in parts.items()}


def _vgg(weights: Features, image: Tensor) -> list[Tensor]:
    x, pooled = ((image + 1) / 2 - weights.mean) / weights.std, []
    for block, number in ((1, 2), (2, 2), (3, 3)):
        for at in range(1, number + 1):
            weight, bias = (weights.get_buffer(f"conv{block}_{at}_{kind}").contiguous() for kind in ("weight", "bias"))
            x = F.relu(F.conv2d(x, weight, bias, padding=1))
        x = F.max_pool2d(x, 2)
        pooled.append(x)
    return pooled


def _distance(ours: Sequence[Tensor], truth: Sequence[Tensor]) -> Tensor:
    return torch.stack([(a - b).abs().mean() for a, b in zip(ours, truth, strict=True)]).sum()


def _style(ours: Sequence[Tensor], truth: Sequence[Tensor]) -> Tensor:
    total = truth[0].new_zeros(())
    for a, b in zip(ours, truth, strict=True):
        _, channels, height, width = a.shape
        grams = [torch.einsum("nchw,ndhw->ncd", seen, seen) / (channels * height * width) for seen in (a, b)]
        total = total + (grams[0] - grams[1]).abs().mean()
    return total


def _total_variation(composite: Tensor, mask: Tensor, where: str) -> Tensor:
    dilated = F.max_pool2d(mask, 3, stride=1, padding=1)
    region = {"dilated_hole": dilated, "hole": mask, "image": torch.ones_like(mask)}[where]
    total = composite.new_zeros(())
    for one, other in (
        ((slice(None), slice(None), slice(1, None)), (slice(None), slice(None), slice(None, -1))),
        ((..., slice(1, None)), (..., slice(None, -1))),
    ):
        both = region[one] * region[other]
        difference = ((composite[one] - composite[other]).abs() * both).sum(dim=(1, 2, 3))
        total = total + (difference / (3 * both.sum(dim=(1, 2, 3))).clamp(min=1)).mean()
    return total
