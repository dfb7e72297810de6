"""Watches every update, refuses those that would ruin the networks, and says when to go back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from scfegan_ray.config import SentinelConfig
from scfegan_ray.errors import DivergenceError

_MEMORY = 0.99
"""Weight of the past in the usual size of a loss."""
_SETTLING_UPDATES = 20
"""Updates before a loss has a usual size that it can exceed."""


class Sentinel:
    """What has gone wrong in a run so far, and what follows from it.

    It must be told the same on every worker; then it answers the same on every worker. All it knows is part of the
    checkpoint, so that a resumed run judges as one that never stopped.

    Attributes:
        rate_scale: by which learning rates are to be multiplied.
        reseeded_at: positions, in images seen, from which on order and holes are drawn anew.
        num_skipped: batches, over the whole run.

    Args:
        config: how much is tolerated.
    """

    def __init__(self, config: SentinelConfig) -> None:
        self.rate_scale = 1.0
        self.reseeded_at: tuple[int, ...] = ()
        self.num_skipped = 0
        self._config = config
        self._usual: dict[str, float] = {}
        self._num_accepted: dict[str, int] = {}
        self._skipped_in_a_row = 0
        self._last_reason = ""

    def accept(self, name: str, loss: float, gradient_norm: float) -> bool:
        """Judge one network's update before it is made.

        Args:
            name: of the network.
            loss: its total, averaged over the workers.
            gradient_norm: Euclidean norm of its averaged gradient.

        Returns:
            Whether to make it; otherwise the rest of the batch is to be skipped.
        """
        usual, known = self._usual.get(name, 0.0), self._num_accepted.get(name, 0)
        limit = self._config.explosion_factor * max(usual, 1.0)
        if not math.isfinite(loss):
            reason = f"the {name}'s loss is {loss}"
        elif not math.isfinite(gradient_norm):
            reason = f"the norm of the {name}'s gradient is {gradient_norm}"
        elif known >= _SETTLING_UPDATES and abs(loss) > limit:
            reason = f"the {name}'s loss is {loss:.3g}, where {usual:.3g} is usual"
        else:
            memory = min(_MEMORY, known / (known + 1))
            self._usual[name] = memory * usual + (1.0 - memory) * abs(loss)
            self._num_accepted[name] = known + 1
            return True
        self._last_reason = reason
        return False

    def conclude(self, accepted: bool) -> str:
        """Take notice of a batch's end.

        Returns:
            "" where it was made, else why it was skipped.
        """
        self._skipped_in_a_row = 0 if accepted else self._skipped_in_a_row + 1
        self.num_skipped += not accepted
        return "" if accepted else self._last_reason

    @property
    def last_was_accepted(self) -> bool:
        """Whether the last batch was accepted, so that the state is worth keeping."""
        return self._skipped_in_a_row == 0

    @property
    def must_roll_back(self) -> bool:
        """Whether too many batches in a row were skipped."""
        return self._skipped_in_a_row >= self._config.max_skipped

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
        self._skipped_in_a_row = 0

    def state(self) -> dict[str, Any]:
        """Return all it knows, ready for JSON."""
        return {
            "rate_scale": self.rate_scale,
            "reseeded_at": list(self.reseeded_at),
            "num_skipped": self.num_skipped,
            "skipped_in_a_row": self._skipped_in_a_row,
            "usual": self._usual,
            "num_accepted": self._num_accepted,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Know what `state` returned."""
        self.rate_scale = state["rate_scale"]
        self.reseeded_at = tuple(state["reseeded_at"])
        self.num_skipped = state["num_skipped"]
        self._skipped_in_a_row = state["skipped_in_a_row"]
        self._usual = dict(state["usual"])
        self._num_accepted = dict(state["num_accepted"])
