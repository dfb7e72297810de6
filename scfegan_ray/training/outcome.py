"""What came of a run, as every rank knows it in the end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from scfegan_ray.errors import ScFeganError


@dataclass(kw_only=True, slots=True)
class Outcome:
    """What came of a run; complete on rank 0.

    Attributes:
        images_seen: when the loop ended.
        weights_sha256: digest over generator, discriminator and moving average then.
        checkpoint: URI of the last checkpoint; None where there is none.
        features: which VGG weights were used.
        first_metrics: of held-back images when this loop started.
        last_metrics: of held-back images when they were last measured.
        images_per_second: of the loop, without its first updates, held-back images and copying for checkpoints.
        stopped: whether the user ended training before its time.
        failure: class and text of a deliberate error that ended training, after which a restart would change nothing.
    """

    images_seen: int = 0
    weights_sha256: str = ""
    checkpoint: str | None = None
    features: str = ""
    first_metrics: dict[str, float]
    last_metrics: dict[str, float]
    images_per_second: float = 0.0
    stopped: bool = False
    failure: tuple[str, str] | None = None

    def fail(self, error: ScFeganError) -> None:
        """Note what ended training."""
        self.failure = type(error).__name__, str(error)

    @contextlib.contextmanager
    def noting_failure(self) -> Iterator[None]:
        """Note a deliberate error within; it must be the same on every rank, which then all come to the same end."""
        try:
            yield
        except ScFeganError as error:
            self.fail(error)
