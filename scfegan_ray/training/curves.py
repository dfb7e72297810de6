"""Reference curves: how a run of the same settings usually goes, so that another one can be held against it.

A curve is made of several runs that differ by their seed alone (`jobs/tune.py --grid seeds`). Those of this package lie
in `curves/`.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from scfegan_ray import pages
from scfegan_ray.config import Config, differences
from scfegan_ray.errors import ConfigError, ScFeganError

LOSS, QUALITY = "train/generator/total", "val/hole_psnr"
NAMES = (LOSS, QUALITY, "val/objective_db")
"""Metrics of MLflow's that a curve holds."""

_FREE = (
    "run_name", "seed", "train", "tune", "storage", "tracking", "evaluation.batch_size", "evaluation.grid_images",
    "data.prepared", "data.shard_images", "data.gpus_per_actor", "data.feed", "data.license",
)  # fmt: skip
_CHART_PX = (900, 360)

History = Sequence[tuple[int, float]]
"""Images seen and value."""


@dataclass(frozen=True, slots=True)
class ReferenceCurve:
    """What several runs of one config went through.

    Attributes:
        config: of the runs, but for their seeds.
        images: (M,) images seen, by metric.
        values: (N, M) of N runs, by metric.
    """

    config: Config
    images: Mapping[str, Sequence[int]]
    values: Mapping[str, Sequence[Sequence[float]]]

    @classmethod
    def of(cls, config: Config, histories: Sequence[Mapping[str, History]]) -> ReferenceCurve:
        """Make a curve from the histories of several runs, by metric; of a place that came twice the last one counts.

        Args:
            config: of the runs.
            histories: of each run.
        """
        images: dict[str, list[int]] = {}
        values: dict[str, list[list[float]]] = {}
        for name in NAMES:
            runs = [dict(history.get(name, [])) for history in histories]
            images[name] = sorted(set.intersection(*(set(run) for run in runs)))
            values[name] = [[run[at] for at in images[name]] for run in runs]
        return cls(config, images, values)

    @classmethod
    def read(cls, content: bytes) -> ReferenceCurve:
        """Read what `to_json` wrote.

        Raises:
            ConfigError: it is something else.
        """
        try:
            found = json.loads(content)
            return cls(Config.from_dict(found["config"]), found["images"], found["values"])
        except (ScFeganError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"this is no reference curve: {error}; --grid seeds of jobs/tune.py makes one") from error

    def to_json(self) -> bytes:
        """Return the curve as a file."""
        rounded = {name: [[float(f"{one:.5g}") for one in run] for run in runs] for name, runs in self.values.items()}
        content = {"config": self.config.to_dict(), "images": dict(self.images), "values": rounded}
        return (json.dumps(content) + "\n").encode()

    def agrees(self, config: Config) -> bool:
        """Tell whether runs of a config should go as these did."""
        same_length = (config.train.images, config.train.batch_size) == (
            self.config.train.images,
            self.config.train.batch_size,
        )
        return same_length and next(differences(self.config, config, free=_FREE), None) is None

    def usual(self, name: str, images_seen: int) -> tuple[float, float] | None:
        """Return the usual range of a metric: that of all runs, widened by as much on either side.

        Args:
            name: one of `NAMES`.
            images_seen: where; between two places the range is interpolated.

        Returns:
            Its ends; None before the first and after the last place.
        """
        places = self.images[name]
        if not places or not places[0] <= images_seen <= places[-1]:
            return None
        values = np.asarray(self.values[name])
        lowest, highest = values.min(axis=0), values.max(axis=0)
        low, high = (
            float(np.interp(images_seen, places, ends)) for ends in (2 * lowest - highest, 2 * highest - lowest)
        )
        return low, high

    def remark(self, name: str, images_seen: int, value: float) -> str:
        """Say how a value compares: within, above or below the usual; nothing where nobody knows."""
        usual = self.usual(name, images_seen)
        if usual is None:
            return ""
        low, high = usual
        how = "above" if value > high else "below" if value < low else "within"
        return f"{how} the usual {low:.3f} to {high:.3f}"

    def draw(self, histories: Mapping[str, History]) -> bytes:
        """Draw a run's loss and quality beside the usual range, as SVG.

        Args:
            histories: of the run, by metric.
        """
        with pages.chart(_CHART_PX, "reference curve") as (figure, file):
            for at, name in enumerate((LOSS, QUALITY)):
                axes = figure.add_axes((0.07 + 0.48 * at, 0.13, 0.42, 0.74))
                places = [one for one in self.images[name] if self.usual(name, one)]
                ranges = [self.usual(name, one) or (np.nan, np.nan) for one in places]
                axes.fill_between(
                    places, [low for low, _ in ranges], [high for _, high in ranges], color="0.85", linewidth=0,
                    label=f"usual, by {len(self.values[name])} runs",
                )  # fmt: skip
                own = sorted(dict(histories.get(name, [])).items())
                places, values = [place for place, _ in own], [value for _, value in own]
                axes.plot(places, values, color="tab:blue", marker=".", label="this run")
                axes.set_title(name, loc="left")
                axes.set_xlabel("images seen")
                axes.spines[["top", "right"]].set_visible(False)
                axes.legend(frameon=False)
        return file.getvalue()


def find(config: Config) -> ReferenceCurve | None:
    """Return the curve of this package that a run of a config can be held against; None where there is none yet."""
    for file in importlib.resources.files("scfegan_ray.training").joinpath("curves").iterdir():
        if file.name.endswith(".json"):
            curve = ReferenceCurve.read(file.read_bytes())
            if curve.agrees(config):
                return curve
    return None
