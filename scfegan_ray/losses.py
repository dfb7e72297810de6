"""The paper's losses: one pure function per term, and the two sums that training minimizes.

Every term is reduced per image and then averaged over the batch, so that its value does not depend on the size of
the image or of the batch. Parts are reported without their weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from scfegan_ray.config import LossConfig
from scfegan_ray.errors import ConfigError
from scfegan_ray.models.features import CAFFE_SCALE, Features
from scfegan_ray.models.layers import full_precision

_POWERS = {"mean": 1.0, "root": 0.5, "sum": 0.0}
"""Of the number of scores, that their sum is divided by."""


def per_pixel(generated: Tensor, ground_truth: Tensor, mask: Tensor, hole: float, border: float = 0.0) -> Tensor:
    """Compare pixels, those of the hole with a weight of their own, and more along its border.

    ||(1 - m)(generated - ground_truth)||_1 / N + hole * ||m (generated - ground_truth)||_1 / N, with N the number
    of elements of one image.

    Args:
        generated: (N, 3, H, W) float in [-1, 1].
        ground_truth: (N, 3, H, W) float in [-1, 1].
        mask: (N, 1, H, W) float in {0, 1}; 1 marks pixels to fill.
        hole: weight of the hole; the known region has 1.
        border: additional weight of the hole's pixels at its border; half of it from a 64th of the side on, none from a
            32nd on.

    Returns:
        Scalar, 0 or more. Paper: SC-FEGAN, per-pixel loss with alpha = `hole` and none of the border; the paper's M is
        1 - mask here.
    """
    weight = 1.0 + (hole - 1.0) * mask
    if border:
        weight = weight + border * _near_the_border(mask)
    return ((generated - ground_truth).abs() * weight).mean()


def _near_the_border(mask: Tensor) -> Tensor:
    """Return (N, 1, H, W): 1 at the hole's pixels along its border, 1/2 a little deeper in it, 0 elsewhere."""
    half = max(1, round(mask.shape[-1] / 64))
    near = [
        F.max_pool2d(F.max_pool2d(1.0 - mask, (k, 1), 1, (k // 2, 0)), (1, k), 1, (0, k // 2))
        for k in (2 * half + 1, 4 * half + 1)
    ]
    return 0.5 * mask * (near[0] + near[1])


def perceptual(features_x: Sequence[Tensor], features_gt: Sequence[Tensor]) -> Tensor:
    """Compare what the feature network sees in two images.

    Sum over the layers q of ||Theta_q(x) - Theta_q(ground_truth)||_1 / N_q.

    Args:
        features_x: per layer (S * N, C, H, W) float; of S sets of images one after the other, as the generated and
            the composite ones.
        features_gt: per layer (N, C, H, W) float; of the ground truths.

    Returns:
        (S,), 0 or more. Paper: SC-FEGAN, perceptual loss, which sums up those of both sets.
    """
    # Pixels by channels, as the feature network lays them out: gradients then come in that layout, too.
    return _distances(*([layer.permute(0, 2, 3, 1) for layer in layers] for layers in (features_x, features_gt)))


def gram(features: Sequence[Tensor]) -> list[Tensor]:
    """Measure which features occur together, wherever they are.

    Args:
        features: per layer (N, C, H, W) float.

    Returns:
        Per layer (N, C, C), the Gram matrix over N_q = C H W; float32, or float64 where the features are.
    """
    matrices = []
    for layer in features:
        # Pixels by channels: how the feature network lays them out.
        flat = full_precision(layer).permute(0, 2, 3, 1).flatten(1, 2)
        # Sums of thousands of products need float32, which autocast would take away from the matrix product.
        with torch.autocast(flat.device.type, enabled=False):
            matrices.append(flat.transpose(1, 2) @ flat / (flat.shape[1] * flat.shape[2]))
    return matrices


def style(grams_x: Sequence[Tensor], grams_gt: Sequence[Tensor]) -> Tensor:
    """Compare which features occur together in two images.

    Sum over the layers q of ||(G_q(x) - G_q(ground_truth)) / N_q||_1 / C_q^2, with G the Gram matrix over the
    C_q channels and N_q = C_q H_q W_q. In float32.

    Args:
        grams_x: per layer (S * N, C, C) as `gram` gives them; of S sets of images, as of `perceptual`.
        grams_gt: per layer (N, C, C); of the ground truths.

    Returns:
        (S,), 0 or more. Paper: SC-FEGAN, style loss of each set.
    """
    return _distances(grams_x, grams_gt)


def _distances(layers_x: Sequence[Tensor], layers_gt: Sequence[Tensor]) -> Tensor:
    """Sum up the mean absolute differences of all layers: (S,), of S sets of (N, ...) in (S * N, ...)."""
    terms = []
    for x, gt in zip(layers_x, layers_gt, strict=True):
        differences = full_precision(x).view(-1, *gt.shape) - full_precision(gt)
        terms.append(differences.abs().flatten(1).mean(dim=1))
    return torch.stack(terms).sum(dim=0)


def total_variation(composite: Tensor, mask: Tensor, region: str = "dilated_hole") -> Tensor:
    """Measure how much neighboring pixels differ in the hole and across its border.

    A pair of neighbors counts where both are in the region. Per image, the mean absolute difference of the counting
    vertical pairs (over their 3 channels) plus that of the horizontal ones; without any it is 0.

    Args:
        composite: (N, 3, H, W) float in [-1, 1].
        mask: (N, 1, H, W) float in {0, 1}; 1 marks pixels to fill.
        region: "dilated_hole", the hole dilated by one pixel (3x3); "hole"; or "image".

    Returns:
        Scalar, 0 or more. Paper: SC-FEGAN, total variation loss; its region was never published, the default is the
        one of partial convolutions.
    """
    composite = full_precision(composite)
    inside = full_precision(mask) if region != "image" else torch.ones_like(mask)
    if region == "dilated_hole":
        inside = F.max_pool2d(inside, 3, stride=1, padding=1)
    terms = []
    for axis in (2, 3):
        length = composite.shape[axis] - 1
        pairs = inside.narrow(axis, 0, length) * inside.narrow(axis, 1, length)
        differences = (composite.narrow(axis, 1, length) - composite.narrow(axis, 0, length)).abs()
        count = pairs.sum(dim=(1, 2, 3)) * composite.shape[1]
        terms.append((differences * pairs).sum(dim=(1, 2, 3)) / count.clamp(min=1.0))
    return (terms[0] + terms[1]).mean()


def adversarial(fake_scores: Tensor) -> Tensor:
    """Reward the generator for composites that score as real: -E[D(composite)].

    Args:
        fake_scores: (N, C, h, w) float, of composites.

    Returns:
        Scalar of any sign. Paper: SC-FEGAN, generator's GAN loss; no ReLU.
    """
    return -full_precision(fake_scores).mean()


def score_gap(real_score: Tensor, fake_score: Tensor) -> Tensor:
    """Reward the discriminator for telling them apart: E[1 - D(ground_truth)] + E[1 + D(composite)].

    Args:
        real_score: scalar, the mean of all scores of ground truths.
        fake_score: scalar, the mean of all scores of composites.

    Returns:
        Scalar of any sign. Paper: SC-FEGAN, discriminator's GAN loss; no ReLU, so it is no hinge loss.
    """
    return 2.0 - real_score + fake_score


def real_score_penalty(real_scores: Tensor) -> Tensor:
    """Keep the scores near 0: E[D(ground_truth)^2].

    Args:
        real_scores: (N, C, h, w) float, of ground truths.

    Returns:
        Scalar, 0 or more. Paper: SC-FEGAN, the epsilon term.
    """
    return full_precision(real_scores).square().mean()


def gradient_penalty(gradient: Tensor, mask: Tensor) -> Tensor:
    """Keep the slope of the discriminator within each hole near 1: E[(||gradient * m||_2 - 1)^2].

    The norm is taken per image. An image without a hole gives 1 and no gradient.

    Args:
        gradient: (N, 3, H, W) float; of each image's score with respect to that image.
        mask: (N, 1, H, W) float in {0, 1}; 1 marks pixels to fill.

    Returns:
        Scalar, 0 or more. Paper: SC-FEGAN, GP term.
    """
    # Where a norm is 0, so is its gradient.
    norms: Tensor = torch.linalg.vector_norm(full_precision(gradient) * mask, dim=(1, 2, 3))
    return (norms - 1.0).square().mean()


def part_weights(config: LossConfig) -> dict[str, float]:
    """Return the weight of each part of the losses, by the part's name."""
    return {
        "per_pixel": 1.0,
        "perceptual": config.perceptual,
        "style_generated": config.style,
        "style_composite": config.style,
        "total_variation": config.total_variation,
        "adversarial": config.adversarial,
        "real_score_penalty": config.real_score_penalty,
        "gradient_penalty": config.gradient_penalty,
    }


Terms = dict[str, tuple[float, Tensor]]
"""Terms of a sum by name: weight, and scalar with its graph."""


def generator_terms(
    generated: Tensor,
    composite: Tensor,
    ground_truth: Tensor,
    mask: Tensor,
    features: Features,
    fake_scores: Tensor,
    config: LossConfig,
    real_scores: Tensor | None = None,
) -> Terms:
    """Compute every term that the generator minimizes, with its weight.

    per_pixel + sigma * perceptual + gamma * (style_generated + style_composite) + upsilon * total_variation
    + beta * adversarial, and + epsilon * real_score_penalty where `config.real_score_penalty_in` says so. That last
    term has no gradient in the generator; it is there for who wants the paper's sum as printed.

    Args:
        generated: (N, 3, H, W) float in [-1, 1], with the generator's graph.
        composite: (N, 3, H, W) float in [-1, 1], `images.composite(generated, ground_truth, mask)` with its graph.
        ground_truth: (N, 3, H, W) float in [-1, 1].
        mask: (N, 1, H, W) float in {0, 1}; 1 marks pixels to fill.
        features: frozen feature network.
        fake_scores: (N, C, h, w) float, the discriminator's on the composites, with their graph; the discriminator's
            parameters should not require gradients then.
        config: weights and choices.
        real_scores: (N, C, h, w) float, the discriminator's on the ground truth; read only where
            `config.real_score_penalty_in` is `generator`.

    Returns:
        per_pixel (with alpha inside), perceptual (generated plus composite), style_generated, style_composite,
        total_variation, adversarial, and real_score_penalty where it is part of the sum. Paper: SC-FEGAN, L_G.

    Raises:
        ConfigError: the real scores are needed and not given.
    """
    # One pass for both, because the feature network costs more than all the rest of this function, and one cast of
    # what it sees, which is large and read by several terms.
    seen = [full_precision(layer) for layer in features(torch.cat([generated, composite]))]
    with torch.no_grad():
        features_gt = [full_precision(layer) for layer in features(ground_truth)]
    if config.feature_scale == "caffe":
        seen, features_gt = ([CAFFE_SCALE * layer for layer in layers] for layers in (seen, features_gt))
    style_generated, style_composite = style(gram(seen), gram(features_gt))
    terms = {
        "per_pixel": per_pixel(generated, ground_truth, mask, config.hole, config.border),
        "perceptual": perceptual(seen, features_gt).sum(),
        "style_generated": style_generated,
        "style_composite": style_composite,
        "total_variation": total_variation(composite, mask, config.total_variation_region),
        "adversarial": adversarial(fake_scores),
    }
    if config.real_score_penalty_in == "generator":
        if real_scores is None:
            raise ConfigError(
                "losses.real_score_penalty_in is 'generator', but no real_scores were given; pass the scores of the "
                "ground truth, or set it to 'discriminator'"
            )
        terms["real_score_penalty"] = real_score_penalty(real_scores.detach())
    weights = part_weights(config)
    return {name: (weights[name], term) for name, term in terms.items()}


def weighted_sum(terms: Terms) -> Tensor:
    """Sum up terms with their weights: a scalar."""
    weights, values = zip(*terms.values(), strict=True)
    return torch.stack(torch._foreach_mul(values, weights)).sum()


def gradient_norms(terms: Terms, generated: Tensor) -> dict[str, Tensor]:
    """Measure how strongly each weighted term pulls at the generated image.

    Args:
        terms: as `generator_terms` gives them; their graphs are kept.
        generated: the image they were computed from.

    Returns:
        By term, the Euclidean norm of its weighted gradient with respect to `generated`; 0 where it has none.
    """
    norms = {}
    for name, (weight, term) in terms.items():
        (gradient,) = (
            torch.autograd.grad(weight * term, generated, retain_graph=True) if term.requires_grad else (None,)
        )
        norms[name] = torch.zeros_like(term) if gradient is None else full_precision(gradient).norm()
    return norms


def discriminator_loss(
    discriminator: Callable[[Tensor, Tensor, tuple[Tensor, Tensor]], tuple[Tensor, Tensor]],
    ground_truth: Tensor,
    composite: Tensor,
    conditions: Tensor,
    mask: Tensor,
    interpolation: Tensor,
    config: LossConfig,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum up what the discriminator minimizes.

    E[1 - real_scores] + E[1 + fake_scores] + theta * gradient_penalty, and + epsilon * real_score_penalty where
    `config.real_score_penalty_in` says so.
    Differs from the paper: by default the epsilon term is here, because where the paper prints it, in the generator's
    loss, its gradient is zero.

    Args:
        discriminator: maps (image, conditions, slope_at) to scores and gradients as `Discriminator.forward` does; the
            network or a DDP wrapper of it.
        ground_truth: (N, 3, H, W) float in [-1, 1].
        composite: (N, 3, H, W) float in [-1, 1]; detached here.
        conditions: (N, 5, H, W) float as `images.pack_conditions` gives them.
        mask: (N, 1, H, W) float in {0, 1}; 1 marks pixels to fill.
        interpolation: (N,) float, uniform in [0, 1]; where on the segment from composite (0) to ground truth (1) the
            gradient is taken.
        config: weights and choices.

    Returns:
        The scalar to minimize, and the terms without their weights, detached: real_scores and fake_scores (means over
        all scores, so that the first two terms are 2 - real_scores + fake_scores), gradient_penalty, and
        real_score_penalty where it is part of the sum. Paper: SC-FEGAN, L_D. How the score grid becomes one number
        per image in GP was never published: `config.gradient_penalty_reduction`.
    """
    composite = composite.detach()
    position = interpolation.to(ground_truth.dtype).reshape(-1, 1, 1, 1)
    between = torch.lerp(composite, ground_truth, position).detach()
    # One forward for all three, because DDP wants one forward per backward.
    scores, gradient = discriminator(
        torch.cat([ground_truth, composite]), conditions.repeat(2, 1, 1, 1), (between, conditions)
    )
    real, fake = full_precision(scores).chunk(2)
    gradient = gradient / real[0].numel() ** _POWERS[config.gradient_penalty_reduction]
    penalty = gradient_penalty(gradient, mask)
    parts = {"real_scores": real.mean(), "fake_scores": fake.mean(), "gradient_penalty": penalty}
    total = score_gap(parts["real_scores"], parts["fake_scores"]) + config.gradient_penalty * penalty
    if config.real_score_penalty_in == "discriminator":
        parts["real_score_penalty"] = real_score_penalty(real)
        total = total + config.real_score_penalty * parts["real_score_penalty"]
    return total, {name: value.detach() for name, value in parts.items()}
