"""From numbers of images to numbers of models: means with intervals, differences, and how they change with the hole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.stats import bootstrap

from scfegan_ray.evaluation import sets
from scfegan_ray.evaluation.measure import FEATURES, METRICS
from scfegan_ray.evaluation.networks import INCEPTION_SIZE

CONFIDENCE = 0.95
AREA_BOUNDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
"""Lower bounds of the bins of hole areas; the last one is open."""
PHOTOGRAPH = "photograph"

_RESAMPLES = 1_000
_RESAMPLED_AT_ONCE = 50
_WORST_TENTH = ("seam_step",)
_SETS = {"embedding": ("sface_frechet", "sface_kernel", 1.0), "inception": ("fid", "kid", 1 / INCEPTION_SIZE)}
"""Fréchet and kernel distance of features, and the scale of the kernel: embeddings have length 1."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its bootstrap interval.

    Attributes:
        mean: over the images that have a value.
        low: lower end of the interval that holds the mean of all such images with a confidence of 95 %.
        high: upper end.
        count: images that have a value.
    """

    mean: float
    low: float
    high: float
    count: int


def mean_of(value: Mapping[str, float] | float) -> float:
    """Return the mean of a number as `result.json` has it: an interval, or where there is none the number itself."""
    return value["mean"] if isinstance(value, Mapping) else value


class Table:
    """Values of all candidates, metrics and images.

    Args:
        rows: columns of `measure.SCHEMA`; of all images, of each image all candidates.

    Attributes:
        candidates: names, in the order in which they came.
        keys: of the images, sorted: all sums are taken in this order.
    """

    def __init__(self, rows: pa.Table) -> None:
        self.candidates: list[str] = rows.column("candidate").unique().to_pylist()
        self.keys: list[str] = sorted(rows.column("key").unique().to_pylist())
        self._metric = {name: at for at, name in enumerate(METRICS)}
        shape = len(self.candidates), len(self.keys)
        number = pc.index_in(rows.column("candidate"), pa.array(self.candidates)).to_numpy()
        place = pc.index_in(rows.column("key"), pa.array(self.keys)).to_numpy()
        self._values = np.full((shape[0], len(METRICS), shape[1]), np.nan)
        for at, name in enumerate(METRICS):
            self._values[number, at, place] = rows.column(name).to_numpy()
        self.hole_areas = np.full(shape[1], np.nan)
        self.hole_areas[place] = rows.column("hole_area").to_numpy()
        self._features: dict[str, NDArray[np.float32]] = {}
        for name in FEATURES:
            column = rows.column(name).combine_chunks()
            if not column.null_count:
                flat = column.flatten().to_numpy()
                self._features[name] = np.zeros((*shape, len(flat) // len(rows)), np.float32)
                self._features[name][number, place] = flat.reshape(len(rows), -1)

    def values(self, candidate: str, metric: str) -> NDArray[np.float64]:
        """Return (N,) values of all images, NaN where there is none."""
        return np.asarray(self._values[self.candidates.index(candidate), self._metric[metric]], np.float64)

    def means(self) -> dict[str, dict[str, Interval]]:
        """Return intervals by candidate and metric; metrics that no image has are left out."""
        found = _intervals(self._values.reshape(-1, len(self.keys)))
        names = list(METRICS)
        return {
            candidate: {
                metric: found[at * len(names) + number]
                for number, metric in enumerate(names)
                if found[at * len(names) + number].count
            }
            for at, candidate in enumerate(self.candidates)
        }

    def differences(self, first: str, second: str) -> dict[str, Interval]:
        """Return intervals of the first candidate's values less the second one's, image by image."""
        one, other = self.candidates.index(first), self.candidates.index(second)
        found = _intervals(self._values[one] - self._values[other])
        return {metric: interval for metric, interval in zip(METRICS, found, strict=True) if interval.count}

    def others(self, candidate: str) -> dict[str, float]:
        """Return numbers that are no means over images.

        Returns:
            sface_frechet, sface_kernel and sface_kernel_deviation (see `sets`), where faces were told apart; fid, kid
            and kid_deviation, where Inception was given; and seam_step_p90: what the worst tenth exceeds.
        """
        found = {}
        if PHOTOGRAPH in self.candidates:
            for name, of in self._features.items():
                frechet, kernel, scale = _SETS[name]
                real, filled = of[self.candidates.index(PHOTOGRAPH)], of[self.candidates.index(candidate)]
                found[frechet] = sets.frechet_distance(real, filled)
                found[kernel], found[f"{kernel}_deviation"] = sets.kernel_distance(real, filled, scale)
        for metric in _WORST_TENTH:
            values = self.values(candidate, metric)
            known = values[np.isfinite(values)]
            if known.size:
                found[f"{metric}_p90"] = float(np.quantile(known, 0.9))
        return {name: value for name, value in found.items() if np.isfinite(value)}

    def by_area(self, metric: str) -> list[tuple[str, int, dict[str, float]]]:
        """Return means of a metric for holes of different size: bin, number of images, mean by candidate."""
        found = []
        bounds = (*AREA_BOUNDS, np.inf)
        for low, high in zip(bounds, bounds[1:], strict=False):
            within = (self.hole_areas >= low) & (self.hole_areas < high)
            name = f"{low:.0%} and more" if np.isinf(high) else f"{low:.0%} to {high:.0%}"
            means = {}
            for candidate in self.candidates:
                values = self.values(candidate, metric)[within]
                values = values[np.isfinite(values)]
                if values.size:
                    means[candidate] = float(values.mean())
            if within.any():
                found.append((name, int(within.sum()), means))
        return found


def _intervals(values: NDArray[np.float64]) -> list[Interval]:
    """Return the interval of each row of (K, N) values, of those of its values that are finite."""
    known = np.isfinite(values)
    counts = known.sum(axis=1)
    found = [Interval(np.nan, np.nan, np.nan, 0)] * len(values)
    # Rows that lack the same images are resampled together, by the same draws.
    groups: dict[bytes, list[int]] = {}
    for at, mask in enumerate(known):
        if counts[at]:
            groups.setdefault(mask.tobytes(), []).append(at)
    for members in groups.values():
        of = values[members][:, known[members[0]]]
        means = of.mean(axis=1)
        lows, highs = means, means
        if of.shape[1] > 1:
            ends = bootstrap(
                (of,),
                np.mean,
                axis=1,
                n_resamples=_RESAMPLES,
                batch=_RESAMPLED_AT_ONCE,
                method="percentile",
                confidence_level=CONFIDENCE,
                rng=np.random.default_rng(0),
            ).confidence_interval
            lows, highs = ends.low, ends.high
        for at, mean, low, high in zip(members, means, lows, highs, strict=True):
            found[at] = Interval(float(mean), float(low), float(high), int(counts[at]))
    return found
