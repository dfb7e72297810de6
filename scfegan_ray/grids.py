"""Named sets of variants of a config, to be trained and evaluated side by side by `jobs/tune.py --grid`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from scfegan_ray.config import WOBBLY
from scfegan_ray.errors import ConfigError, ScFeganError

Variants = Mapping[str, Mapping[str, Any]]
"""What to change, by dotted name of a setting, for each variant by its name."""

_ABLATIONS: Variants = {
    "as-configured": {},
    "without-vgg": {"losses.perceptual": 0.0, "losses.style": 0.0},
    "coarse-to-fine": {"model.stages": 2},
    "blind": {"masks.color_coverage": 0.0, "masks.strokes.sketch_absent_probability": 1.0},
    "full-color": {"masks.color_coverage": 1.0, "masks.color_absent_probability": 0.0},
    "without-eyes": {"masks.eye_line_probability": 0.0},
}
"""Of the paper: its feature losses, its single network, its strokes, brushed color, holes at the eyes."""

_RATE = "optimization.discriminator_learning_rate"
_FREE = {"losses.gradient_penalty": 0.0}
_ADVERSARIAL: Variants = {
    "none": {"losses.adversarial": 0.0},
    "as-configured": {},
    "beta-0.1": {"losses.adversarial": 0.1},
    "beta-0.1-sum": {"losses.adversarial": 0.1, "losses.gradient_penalty_reduction": "sum"},
    "beta-0.1-rate-1e-3": {"losses.adversarial": 0.1, _RATE: 1e-3},
    "beta-0.1-shallow": {"losses.adversarial": 0.1, "model.discriminator_num_layers": 3},
    "beta-0.1-no-penalty": {"losses.adversarial": 0.1} | _FREE,
    "beta-0.1-no-penalty-rate-2e-3": {"losses.adversarial": 0.1, _RATE: 2e-3} | _FREE,
    "beta-1-no-penalty": {"losses.adversarial": 1.0} | _FREE,
    "beta-1-no-penalty-rate-2e-3": {"losses.adversarial": 1.0, _RATE: 2e-3} | _FREE,
}
"""What it takes for the adversarial term to act: its weight, how the penalty sees scores, whether there is one, the
discriminator's rate and depth."""

_STROKES: Variants = {
    "clean": {},
    "wobbly": {f"masks.strokes.{name}": value for name, value in asdict(WOBBLY).items()},
}
"""What training on strokes such as people draw costs and wins; see the protocol `wobbly`."""

_BORDER: Variants = {
    "as-in-the-paper": {"model.output": "direct", "losses.border": 0.0},
    "border": {"model.output": "direct", "losses.border": 6.0},
    "residual": {"model.output": "residual", "losses.border": 0.0},
    "residual-border": {"model.output": "residual", "losses.border": 6.0},
}
"""Where the hole meets the photograph."""

_SEEDS: Variants = {f"seed-{seed}": {"seed": seed} for seed in range(5)}
"""How far chance alone goes; the runs that a reference curve is made of."""

GRIDS: Mapping[str, Variants] = MappingProxyType(
    {"ablations": _ABLATIONS, "adversarial": _ADVERSARIAL, "strokes": _STROKES, "border": _BORDER, "seeds": _SEEDS}
)


def find(name: str) -> Variants:
    """Return the variants of a grid.

    Args:
        name: one of `GRIDS`; or a JSON file, local or s3://, with an object of settings for each variant by its name.

    Raises:
        ConfigError: there is none of that name, and no such file.
    """
    if name in GRIDS:
        return GRIDS[name]
    from scfegan_ray import storage

    try:
        found = json.loads(storage.read_bytes(name))
    except (ScFeganError, ValueError) as error:
        known = ", ".join(GRIDS)
        raise ConfigError(
            f"--grid {name} is none of {known}, and no JSON file: {' '.join(str(error).split())}"
        ) from error
    if not (isinstance(found, dict) and found and all(isinstance(one, dict) for one in found.values())):
        raise ConfigError(
            f'--grid {name} holds no variants; give an object such as {{"wide": {{"model.base_channels": 96}}}}'
        )
    return found
