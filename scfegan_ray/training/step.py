"""One update of the discriminator and one of the generator, on one worker's share of the global batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from scfegan_ray import losses
from scfegan_ray.config import LossConfig
from scfegan_ray.images import Batch
from scfegan_ray.models.features import Features
from scfegan_ray.precision import autocast, tf32
from scfegan_ray.training.state import TrainingState


class Pass(NamedTuple):
    """Images that go through the networks together.

    Attributes:
        batch: the images.
        interpolation: (N,) float32 in [0, 1), where between composite and ground truth the gradient penalty looks.
    """

    batch: Batch
    interpolation: Tensor


def cut_into_passes(maps: Mapping[str, Tensor], largest: int) -> list[Pass]:
    """Cut a batch into passes.

    Args:
        maps: uint8, as `Batch.from_uint8` takes them, and interpolation, all with a leading axis of images.
        largest: most images of a pass; 0 for no limit.
    """
    number = len(maps["interpolation"])
    passes = []
    for at in range(0, number, largest or number):
        piece = {name: one[at : at + (largest or number)] for name, one in maps.items()}
        interpolation = piece.pop("interpolation")
        passes.append(Pass(Batch.from_uint8(**piece), interpolation))
    return passes


def _refuse_nothing(name: str, loss: Tensor, gradient_norm: Tensor) -> None:
    return None


def train_step(
    state: TrainingState,
    passes: Sequence[Pass],
    features: Features,
    config: LossConfig,
    *,
    generator: nn.Module,
    discriminator: nn.Module,
    precision: torch.dtype = torch.float32,
    allow_tf32: str = "off",
    images_per_worker: float | None = None,
    keep_graph: bool = True,
    refuses: Callable[[str, Tensor, Tensor], Tensor | None] = _refuse_nothing,
    with_gradient_norms: bool = False,
) -> dict[str, Tensor]:
    """Update both networks; the host waits for nothing.

    Each wrapped network runs forward once and backward once for each pass; the gradients add up, and only the last
    pass's backward makes DDP send anything.

    Args:
        state: its networks' weights and optimizers change; its position and moving average are the caller's.
        passes: this worker's images.
        features: frozen VGG-16.
        config: loss weights.
        generator: `state.generator`, or its DDP wrapper.
        discriminator: `state.discriminator`, or its DDP wrapper.
        precision: float32, or bfloat16 for the convolutions of generator, features and discriminator. Local response
            normalization's sums, the spectral norm, the gradient penalty with its own way through the discriminator,
            Gram matrices and all reductions of a loss stay float32.
        allow_tf32: where GPUs may round float32 to TF32, forward and backward: "off"; "networks" for the convolutions
            of the generator's update; "all" for the discriminator's update, hence the penalty, and the Gram matrices,
            too.
        images_per_worker: images of the global batch divided by the number of workers, which makes images count the
            same where workers' shares differ. Default: the images of `passes`.
        keep_graph: let the generator's one forward serve both updates, which keeps all passes' activations meanwhile.
            Otherwise it runs a second time for its own update. DDP sends something in some forwards, so this must be
            the same on all workers.
        refuses: asked with a network's name, this worker's total and the norm of the averaged gradient, before that
            network's weights change. Where the scalar float32 that it returns is 1, weights and moments stay as they
            are; so must the generator's where the discriminator's did.
        with_gradient_norms: also measure the gradient of each weighted term of the generator's loss with respect to
            the generated images of the first pass (`losses.gradient_norms`).

    Returns:
        Unweighted loss terms, totals and norms of the gradients, detached scalars, named `generator/...` and
        `discriminator/...`; where asked for, also `gradient_norm/...`.

    Raises:
        ValueError: several passes shall keep their graphs under DDP.
    """
    if keep_graph and len(passes) > 1 and isinstance(generator, nn.parallel.DistributedDataParallel):
        raise ValueError("DDP would send in the first of several backwards; give keep_graph=False")
    reduced = autocast(precision, passes[0].batch.mask.device)
    networks, everything = allow_tf32 != "off", allow_tf32 == "all"
    each = images_per_worker or sum(len(one.interpolation) for one in passes)
    shares = [len(one.interpolation) / each for one in passes]
    values: dict[str, Tensor] = {}

    def add(found: Mapping[str, Tensor], share: float) -> None:
        for name, value in found.items():
            part = _times(share, value.detach())
            values[name] = values[name] + part if name in values else part

    def generate(network: nn.Module, one: Pass) -> tuple[Tensor, Tensor]:
        with reduced:
            image = network(one.batch.generator_input()).float()
        return image, one.batch.composite(image)

    conditions = [one.batch.conditions() for one in passes]
    with tf32(convolutions=networks, products=everything):
        if keep_graph:
            generated = [generate(generator, one) for one in passes]
        else:
            with torch.no_grad():
                generated = [generate(state.generator, one) for one in passes]

    # Discriminator: real images up, composites down, its gradient in the hole near 1.
    with tf32(convolutions=everything, products=everything):
        state.discriminator.advance_spectral_norm()
        state.discriminator_optimizer.zero_grad(set_to_none=True)
        for at, (one, share) in enumerate(zip(passes, shares, strict=True)):
            batch, (_, composite) = one.batch, generated[at]
            with _sending(discriminator, at == len(passes) - 1):
                with reduced:
                    total, found = losses.discriminator_loss(
                        discriminator,
                        batch.ground_truth,
                        composite,
                        conditions[at],
                        batch.mask,
                        one.interpolation,
                        config,
                    )
                _times(share, total).backward()  # type: ignore[no-untyped-call]
            add(
                {"discriminator/total": total} | {f"discriminator/{name}": value for name, value in found.items()},
                share,
            )
    _update("discriminator", state.discriminator, state.discriminator_optimizer, values, refuses)

    # Generator: scored by the plain discriminator, whose weights want no gradient now, so nothing is sent for them.
    with tf32(convolutions=networks, products=everything):
        state.discriminator.requires_grad_(False)
        state.discriminator.advance_spectral_norm()
        state.generator_optimizer.zero_grad(set_to_none=True)
        for at, (one, share) in enumerate(zip(passes, shares, strict=True)):
            batch = one.batch
            with _sending(generator, at == len(passes) - 1):
                image, composite = generated[at] if keep_graph else generate(generator, one)
                with reduced:
                    fake_scores = state.discriminator(composite, conditions[at])
                    real_scores = None
                    if config.real_score_penalty_in == "generator":
                        with torch.no_grad():
                            real_scores = state.discriminator(batch.ground_truth, conditions[at])
                    terms = losses.generator_terms(
                        image, composite, batch.ground_truth, batch.mask, features, fake_scores, config, real_scores
                    )
                    total = losses.weighted_sum(terms)
                if with_gradient_norms and at == 0:
                    norms = losses.gradient_norms(terms, image)
                    values |= {f"gradient_norm/{name}": value for name, value in norms.items()}
                _times(share, total).backward()  # type: ignore[no-untyped-call]
            add({"generator/total": total} | {f"generator/{name}": term for name, (_, term) in terms.items()}, share)
    state.discriminator.requires_grad_(True)
    _update("generator", state.generator, state.generator_optimizer, values, refuses)
    return values


def _times(share: float, value: Tensor) -> Tensor:
    return value if share == 1.0 else share * value


def _update(
    name: str,
    network: nn.Module,
    optimizer: torch.optim.Adam,
    values: dict[str, Tensor],
    refuses: Callable[[str, Tensor, Tensor], Tensor | None],
) -> None:
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    norm = values[f"{name}/gradient_norm"] = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    # A fused Adam looks at it on the device, and skips exactly; a factor of 0 would not, as 0 times NaN is NaN.
    optimizer.found_inf = refuses(name, values[f"{name}/total"], norm)  # type: ignore[attr-defined]
    optimizer.step()


def _sending(network: nn.Module, wanted: bool) -> contextlib.AbstractContextManager[None]:
    """Let a DDP wrapper add gradients up without sending them, unless wanted."""
    if wanted or not isinstance(network, nn.parallel.DistributedDataParallel):
        return contextlib.nullcontext()
    waiting: contextlib.AbstractContextManager[None] = network.no_sync()
    return waiting
