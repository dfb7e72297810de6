"""One update of the discriminator and one of the generator, on one worker's share of the global batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scfegan_ray import losses
from scfegan_ray.config import LossConfig
from scfegan_ray.images import Batch
from scfegan_ray.models.features import Features
from scfegan_ray.precision import autocast
from scfegan_ray.training.state import TrainingState


def train_step(
    state: TrainingState,
    batch: Batch,
    interpolation: Tensor,
    features: Features,
    config: LossConfig,
    *,
    generator: nn.Module,
    discriminator: nn.Module,
    precision: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Update both networks.

    Each wrapped network runs forward once and backward once, which is what DDP asks for.

    Args:
        state: its networks' weights and optimizers change; its position and moving average are the caller's.
        batch: this worker's images.
        interpolation: (N,) float32 in [0, 1), where between composite and ground truth the gradient penalty looks.
        features: frozen VGG-16.
        config: loss weights.
        generator: `state.generator`, or its DDP wrapper.
        discriminator: `state.discriminator`, or its DDP wrapper.
        precision: float32, or bfloat16 for the generator and the features.

    Returns:
        Unweighted loss parts and totals, detached scalars, named `generator/...` and `discriminator/...`.
    """
    conditions = batch.conditions()
    reduced = autocast(precision, batch.mask.device)
    with reduced:
        generated = generator(batch.generator_input()).float()

    # Discriminator: real images up, composites down, its gradient in the hole near 1.
    discriminator_total, discriminator_parts = losses.discriminator_loss(
        discriminator,
        batch.ground_truth,
        batch.composite(generated).detach(),
        conditions,
        batch.mask,
        interpolation,
        config,
    )
    state.discriminator_optimizer.zero_grad(set_to_none=True)
    discriminator_total.backward()  # type: ignore[no-untyped-call]
    state.discriminator_optimizer.step()

    # Generator: judged by the plain discriminator, whose weights want no gradient now, so nothing is sent for them.
    state.discriminator.requires_grad_(False)
    fake_scores = state.discriminator(batch.composite(generated), conditions)
    real_scores = None
    if config.real_score_penalty_in == "generator":
        with torch.no_grad():
            real_scores = state.discriminator(batch.ground_truth, conditions)
    with reduced:
        generator_total, generator_parts = losses.generator_loss(
            generated, batch.ground_truth, batch.mask, features, fake_scores, config, real_scores
        )
    state.generator_optimizer.zero_grad(set_to_none=True)
    generator_total.backward()  # type: ignore[no-untyped-call]
    state.generator_optimizer.step()
    state.discriminator.requires_grad_(True)

    return {
        "generator/total": generator_total.detach(),
        "discriminator/total": discriminator_total.detach(),
        **{f"generator/{name}": value for name, value in generator_parts.items()},
        **{f"discriminator/{name}": value for name, value in discriminator_parts.items()},
    }
