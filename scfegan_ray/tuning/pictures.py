"""What a search found, to look at: its trials as parallel coordinates, and which weights mattered."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import spearmanr

from scfegan_ray import pages

_FEWEST_TRIALS = 3
_CHART_PX = (900, 380)


def importance(weights: Mapping[str, Sequence[float]], scores: Sequence[float]) -> dict[str, float]:
    """Tell how far trials with a higher weight are better ones: Spearman's rank correlation, by scipy.

    Args:
        weights: of all trials, by name.
        scores: of the same trials, where all of them were equally far; NaN for a trial that never was.

    Returns:
        By name, -1 to 1, strongest first; nothing where fewer than three trials can be compared. A weight that is
        always the same has 0.
    """
    found: dict[str, float] = {}
    known = np.isfinite(np.asarray(scores, np.float64))
    if known.sum() < _FEWEST_TRIALS:
        return found
    for name, values in weights.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of weights that are all the same
            correlation = float(spearmanr(np.asarray(values)[known], np.asarray(scores)[known]).statistic)
        found[name] = 0.0 if math.isnan(correlation) else correlation
    return dict(sorted(found.items(), key=lambda item: -abs(item[1])))


def draw_importance(found: Mapping[str, float], num_trials: int) -> bytes:
    """Draw what `importance` returned, as SVG."""
    with pages.chart(_CHART_PX, "importance of weights") as (figure, file):
        axes = figure.add_axes((0.22, 0.16, 0.74, 0.72))
        names = list(found)[::-1]
        colors = ["tab:blue" if found[name] >= 0 else "tab:orange" for name in names]
        axes.barh(names, [found[name] for name in names], color=colors)
        axes.set_xlim(-1, 1)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xlabel("rank correlation with the objective where all trials were equally far")
        axes.set_title(f"Is more of it better? {num_trials} trials", loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    return file.getvalue()


def draw_coordinates(weights: Mapping[str, Sequence[float]], objectives: Sequence[float]) -> bytes:
    """Draw a line for each trial through all its weights, on scales of their own, to its objective; as SVG.

    Args:
        weights: of all trials, by name, in columns from left to right.
        objectives: of the same trials; the better, the darker their line.
    """
    scaled, ends = [], []
    for name, values in [*weights.items(), ("objective_db", objectives)]:
        column = np.asarray(values, np.float64)
        logarithmic = name in weights and (column > 0).all()
        shown = np.log(column) if logarithmic else column
        low, high = float(shown.min()), float(shown.max())
        scaled.append((shown - low) / (high - low) if high > low else np.full(len(column), 0.5))
        ends.append((float(column.min()), float(column.max())))
    lines = np.stack(scaled, axis=1)
    names = [*weights, "objective_db"]
    with pages.chart(_CHART_PX, "trials as parallel coordinates") as (figure, file):
        axes = figure.add_axes((0.07, 0.2, 0.88, 0.62))
        for line in lines[np.argsort(lines[:, -1])]:
            axes.plot(range(len(names)), line, color=str(0.8 * (1 - line[-1])), linewidth=1 + 1.5 * line[-1])
        for at, (low, high) in enumerate(ends):
            axes.axvline(at, color="black", linewidth=0.6)
            axes.annotate(f"{high:.3g}", (at, 1.03), ha="center", fontsize=8, annotation_clip=False)
            axes.annotate(f"{low:.3g}", (at, -0.08), ha="center", fontsize=8, annotation_clip=False)
        axes.set_ylim(0, 1)
        axes.set_yticks([])
        axes.set_xticks(range(len(names)), names, rotation=20, ha="right", fontsize=8)
        axes.tick_params(axis="x", pad=14)
        axes.spines[:].set_visible(False)
        figure.suptitle(f"{len(lines)} trials; dark and thick: the best", x=0.07, ha="left", fontsize=10)
    return file.getvalue()
