"""What mattered in a search."""

from __future__ import annotations

import math

import pytest

from scfegan_ray.tuning import pictures

WEIGHTS = {"same": [1.0] * 5, "more is better": [1, 2, 3, 5, 9], "less is better": [0.9, 0.8, 0.7, 0.5, 0.6]}
SCORES = [10.0, 11.0, 12.0, 13.0, 14.0]


def test_importance_is_a_rank_correlation_the_strongest_first() -> None:
    found = pictures.importance(WEIGHTS, SCORES)
    assert list(found) == ["more is better", "less is better", "same"]
    assert list(found.values()) == pytest.approx([1.0, -0.9, 0.0])


def test_trials_that_never_were_compared_do_not_count() -> None:
    assert pictures.importance(WEIGHTS, [math.nan, 11.0, 12.0, 13.0, math.nan])["more is better"] == pytest.approx(1.0)
    assert pictures.importance(WEIGHTS, [math.nan] * 3 + [1.0, 2.0]) == {}


def test_pictures_show_every_weight() -> None:
    for drawing in (
        pictures.draw_coordinates(WEIGHTS, SCORES),
        pictures.draw_importance(pictures.importance(WEIGHTS, SCORES), 5),
    ):
        assert drawing.startswith(b"<?xml") and drawing.rstrip().endswith(b"</svg>")
    assert pictures.draw_coordinates({"zero": [0.0, 1.0]}, [1.0, 1.0]), (
        "a scale that is not logarithmic, and a flat one"
    )
