"""Everything that training changes: networks, optimizers, moving average, the sentinel's memory, and the images seen.

No generator of random numbers is part of it: weights are drawn from the seed once, and whatever is random later is a
pure function of the seed and the position (`data.examples`).
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scfegan_ray.config import Config, OptimizationConfig
from scfegan_ray.models.discriminator import Discriminator
from scfegan_ray.models.generator import Generator
from scfegan_ray.training.sentinel import Sentinel


@dataclass(slots=True)
class TrainingState:
    """Networks (never wrapped), optimizers, what went wrong, and the position of one run."""

    generator: Generator
    discriminator: Discriminator
    ema: Generator
    generator_optimizer: torch.optim.Adam
    discriminator_optimizer: torch.optim.Adam
    sentinel: Sentinel
    images_seen: int = 0

    @classmethod
    def build(
        cls, config: Config, device: torch.device | str = "cpu", *, channels_last: bool | None = None
    ) -> TrainingState:
        """Draw the first weights from the config's seed, the same on every machine of a kind.

        Args:
            config: `seed`, `model`, `optimization` and `sentinel` are read.
            device: where the networks are to be.
            channels_last: whether kernels lie in memory channels last. Default: on GPUs, whose tensor cores want it; on
                CPUs it makes the small maps in the generator's middle slower.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            generator = Generator(config.model).to(device)
            discriminator = Discriminator(config.model).to(device)
        if torch.device(device).type == "cuda" if channels_last is None else channels_last:
            for network in (generator, discriminator):
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        ema = copy.deepcopy(generator).requires_grad_(False).eval()
        optimization = config.optimization
        betas = (optimization.beta1, optimization.beta2)
        return cls(
            generator=generator,
            discriminator=discriminator,
            ema=ema,
            generator_optimizer=torch.optim.Adam(
                generator.parameters(), lr=optimization.generator_learning_rate, betas=betas, fused=True
            ),
            discriminator_optimizer=torch.optim.Adam(
                discriminator.parameters(), lr=optimization.discriminator_learning_rate, betas=betas, fused=True
            ),
            sentinel=Sentinel(config.sentinel, device),
        )

    def networks(self) -> dict[str, nn.Module]:
        """Return the networks by name."""
        return {"generator": self.generator, "discriminator": self.discriminator, "ema": self.ema}

    def tensors(self) -> dict[str, Tensor]:
        """Return weights and spectral norm's vectors of all networks, by name."""
        return {
            f"{name}.{key}": tensor
            for name, network in self.networks().items()
            for key, tensor in network.state_dict().items()
        }

    @torch.no_grad()
    def update_ema(self, half_life_images: float, batch_size: int, accepted: Tensor | None = None) -> None:
        """Move the average towards the generator by one update.

        Args:
            half_life_images: images after which a past generator counts half; capped at a twentieth of the images
                seen, so that the first, poor generators are soon forgotten. 0 copies the generator.
            batch_size: images of the update.
            accepted: scalar bool on the device; where it is False the average stays. Default: it moves.
        """
        half_life = min(half_life_images, self.images_seen / 20)
        weight = 1.0 - (0.5 ** (batch_size / half_life) if half_life > 0 else 0.0)
        averages: list[Tensor] = list(self.ema.parameters())
        values: list[Tensor] = list(self.generator.parameters())
        share = torch.full((), weight, device=averages[0].device)
        if accepted is not None:
            share *= accepted
        # As a list of tensors: one tensor alone would be brought to the host first.
        torch._foreach_lerp_(averages, values, [share] * len(averages))

    def set_learning_rates(self, config: OptimizationConfig, total_images: int) -> tuple[float, float]:
        """Set both optimizers' rates for the present position, and return them (generator, discriminator)."""
        fraction = rate_fraction(config, self.images_seen, total_images) * self.sentinel.rate_scale
        rates = (config.generator_learning_rate * fraction, config.discriminator_learning_rate * fraction)
        for optimizer, rate in zip((self.generator_optimizer, self.discriminator_optimizer), rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate
        return rates

    def weights_sha256(self) -> str:
        """Return one digest over the tensors of generator, discriminator and moving average."""
        return digest_of({name: network.state_dict() for name, network in self.networks().items()})


def rate_fraction(config: OptimizationConfig, images_seen: int, total_images: int) -> float:
    """Return the share of the peak learning rate at a position: warm-up, then a half cosine to its final share."""
    warmup = config.warmup_images
    if images_seen < warmup:
        return (images_seen + 1) / (warmup + 1)
    progress = min(1.0, (images_seen - warmup) / max(1, total_images - warmup))
    last = config.final_rate_fraction
    return last + (1.0 - last) * 0.5 * (1.0 + math.cos(math.pi * progress))


def digest_of(networks: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Return one SHA-256 over the tensors of networks, given as state dicts by name."""
    digest = hashlib.sha256()
    for name, tensors in networks.items():
        for key, tensor in sorted(tensors.items()):
            digest.update(f"{name}.{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
