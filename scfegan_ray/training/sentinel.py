"""Watches every update, refuses those that would ruin the networks, and says when to go back.

Whether an update is refused is decided on the device, where it takes effect at once (`Sentinel.refuses`); the host
reads what was decided some updates later (`Sentinel.read`), so that an ordinary update waits for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scfegan_ray.config import SentinelConfig
from scfegan_ray.errors import DivergenceError

NETWORKS = ("discriminator", "generator")
"""In the order in which one batch updates them; a batch whose first update is refused makes no second one."""
_MEMORY = 0.99
"""Weight of the past in the usual size of a loss."""
_SETTLING_UPDATES = 20
"""Updates before a loss has a usual size that it can exceed."""
_LARGEST = torch.finfo(torch.float64).max


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was decided about one batch.

    Attributes:
        reason: why it was skipped; "" where it was not.
        num_skipped: batches skipped by then, over the whole run.
        must_roll_back: whether too many in a row were.
    """

    reason: str
    num_skipped: int
    must_roll_back: bool


class Sentinel:
    """What has gone wrong in a run so far, and what follows from it.

    It must be told the same on every rank; then it decides the same on every rank. All it knows is part of the
    checkpoint, so that a resumed run decides as one that never stopped.

    Attributes:
        rate_scale: by which learning rates are to be multiplied.
        reseeded_at: positions, in images seen, from which on order and holes are drawn anew.

    Args:
        config: how much is tolerated.
        device: where losses are.
    """

    def __init__(self, config: SentinelConfig, device: torch.device | str = "cpu") -> None:
        self.rate_scale = 1.0
        self.reseeded_at: tuple[int, ...] = ()
        self._config = config
        self._last_reason = ""
        self._usual = torch.zeros(2, dtype=torch.float64, device=device)
        self._counts = torch.zeros(4, dtype=torch.float64, device=device)  # accepted of each network; skipped; in a row
        self._seen: list[Tensor] = []
        self._fine: list[Tensor] = []

    def refuses(self, name: str, loss: Tensor, gradient_norm: Tensor) -> Tensor:
        """Decide about one network's update before it is made.

        Args:
            name: of the network, in the order of `NETWORKS`.
            loss: its total, averaged over the ranks; a scalar.
            gradient_norm: Euclidean norm of its averaged gradient; a scalar.

        Returns:
            Scalar float32: 1 where the update must not be made, else 0; an optimizer takes it as `found_inf`.
        """
        at = len(self._fine)
        assert name == NETWORKS[at], "the order of one batch"
        seen = torch.stack([loss, gradient_norm]).double()
        usual, is_settled = self._usual[at], self._counts[at] >= _SETTLING_UPDATES
        limit = torch.where(is_settled, self._config.explosion_factor * usual.clamp(min=1.0), _LARGEST)
        # Not finite is not below the largest; a large gradient alone is none of our business.
        size, norm = seen.abs().unbind()
        fine = (size <= limit) & (norm <= _LARGEST)
        if at:
            fine = fine & self._fine[0]
        self._seen.append(seen)
        self._fine.append(fine)
        return (~fine).float()

    def conclude(self) -> tuple[Tensor, Tensor]:
        """Take notice of a batch's end.

        Returns:
            Scalar bool: whether it was made; and what `read` makes a verdict of, to be brought to the host.
        """
        seen, fine = torch.stack(self._seen), torch.stack(self._fine)
        self._seen, self._fine = [], []
        usual, known = self._usual, self._counts[:2]
        weight = (known / (known + 1.0)).clamp(max=_MEMORY)
        self._usual = torch.where(fine, torch.lerp(seen[:, 0].abs(), usual, weight), usual)
        skipped = (~fine[1]).double()
        ever, in_a_row = self._counts[2] + skipped, (self._counts[3] + 1.0) * skipped
        self._counts = torch.cat([known + fine, torch.stack([ever, in_a_row])])
        return fine[1], torch.cat([seen.flatten(), fine.double(), usual, self._counts])

    def read(self, values: Sequence[float]) -> Verdict:
        """Say in words what was decided about a batch; batches are read in their order.

        Args:
            values: what `conclude` returned, from the host.
        """
        losses, norms, fine, usual = values[0:4:2], values[1:4:2], values[4:6], values[6:8]
        _, _, num_skipped, in_a_row = values[8:12]
        reason = ""
        if not all(fine):
            at = fine.index(0.0)
            name, loss, norm = NETWORKS[at], losses[at], norms[at]
            if not math.isfinite(loss):
                reason = f"the {name}'s loss is {loss}"
            elif not math.isfinite(norm):
                reason = f"the norm of the {name}'s gradient is {norm}"
            else:
                reason = f"the {name}'s loss is {loss:.3g}, where {usual[at]:.3g} is usual"
            self._last_reason = reason
        return Verdict(reason, int(num_skipped), in_a_row >= self._config.max_skipped)

    def roll_back(self, position: int) -> None:
        """Make ready to go on from an earlier state: slower, and with other batches.

        Args:
            position: images seen in that state.

        Raises:
            DivergenceError: that was tried often enough.
        """
        if len(self.reseeded_at) >= self._config.max_rollbacks:
            raise DivergenceError(
                f"training does not recover: {self._last_reason}, after {len(self.reseeded_at)} returns to a "
                f"checkpoint (at {', '.join(map(str, self.reseeded_at)) or '-'} images) and with learning rates "
                f"scaled by {self.rate_scale:g}; lower --optimization.generator-learning-rate and "
                "--optimization.discriminator-learning-rate, give --train.precision float32, or look for extreme "
                "loss weights and damaged images, and start a new run"
            )
        self.reseeded_at = (*self.reseeded_at, position)
        self.rate_scale *= self._config.rate_fraction
        self._counts[3] = 0.0

    def state(self) -> dict[str, Any]:
        """Return all it knows, ready for JSON; waits for the device."""
        usual, (*num_accepted, num_skipped, in_a_row) = self._usual.tolist(), self._counts.tolist()
        return {
            "rate_scale": self.rate_scale,
            "reseeded_at": list(self.reseeded_at),
            "num_skipped": int(num_skipped),
            "skipped_in_a_row": int(in_a_row),
            "usual": dict(zip(NETWORKS, usual, strict=True)),
            "num_accepted": {name: int(number) for name, number in zip(NETWORKS, num_accepted, strict=True)},
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Know what `state` returned."""
        self.rate_scale = state["rate_scale"]
        self.reseeded_at = tuple(state["reseeded_at"])
        # A run that was stopped before its first update knew no network yet.
        usual = [state["usual"].get(name, 0.0) for name in NETWORKS]
        counts = [state["num_accepted"].get(name, 0) for name in NETWORKS]
        counts += [state["num_skipped"], state["skipped_in_a_row"]]
        self._usual = torch.tensor(usual, dtype=torch.float64, device=self._usual.device)
        self._counts = torch.tensor(counts, dtype=torch.float64, device=self._counts.device)
