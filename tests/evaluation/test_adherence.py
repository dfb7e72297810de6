"""Does it obey: lines and colors on pictures that are simple enough to know."""

from __future__ import annotations

import numpy as np
import pytest

from scfegan_ray.evaluation import adherence

EVERYWHERE = np.ones((64, 64), bool)


def step_at(column: int) -> np.ndarray:
    image = np.full((64, 64, 3), 40, np.uint8)
    image[:, column:] = 200
    return image


def line_at(column: int) -> np.ndarray:
    sketch = np.zeros((64, 64), np.uint8)
    sketch[:, column] = 1
    return sketch


def test_tolerance_follows_the_diagonal() -> None:
    assert [adherence.tolerance_px(size) for size in (32, 64, 128, 256, 512)] == [1, 1, 1, 3, 5]


@pytest.mark.parametrize("column", [31, 32])
def test_a_line_on_an_edge_is_obeyed(column: int) -> None:
    assert adherence.sketch_adherence(step_at(32), line_at(column), EVERYWHERE) == (1.0, 1.0, 1.0)


def test_a_line_elsewhere_is_not() -> None:
    assert adherence.sketch_adherence(step_at(32), line_at(20), EVERYWHERE) == (0.0, 0.0, 0.0)


def test_edges_without_lines_cost_precision_and_lines_without_edges_recall() -> None:
    image = step_at(32)
    image[:, 50:] = 40
    precision, recall, f1 = adherence.sketch_adherence(image, line_at(32), EVERYWHERE)
    assert (precision, recall) == (pytest.approx(0.5), 1.0)
    assert f1 == pytest.approx(2 / 3)
    precision, recall, _ = adherence.sketch_adherence(step_at(32), line_at(32) | line_at(10), EVERYWHERE)
    assert (precision, recall) == (1.0, 0.5)


def test_only_the_hole_counts() -> None:
    hole = EVERYWHERE.copy()
    hole[:, 40:] = False
    image = step_at(32)
    image[:, 50:] = 40
    assert adherence.sketch_adherence(image, line_at(32) | line_at(60), hole) == (1.0, 1.0, 1.0)


def test_no_line_no_number_and_no_edge_no_precision() -> None:
    assert np.isnan(adherence.sketch_adherence(step_at(32), np.zeros((64, 64), np.uint8), EVERYWHERE)).all()
    assert adherence.sketch_adherence(np.full((64, 64, 3), 90, np.uint8), line_at(32), EVERYWHERE) == (0.0, 0.0, 0.0)


def test_color_is_compared_where_it_is_painted() -> None:
    color = np.zeros((4, 4, 3), np.uint8)
    color[:2] = 255
    image = np.full((4, 4, 3), 255, np.uint8)
    image[2:] = (255, 0, 0)
    assert adherence.color_adherence(image, color) == 0.0
    image[0] = 0
    assert adherence.color_adherence(image, color) == pytest.approx(50.0, abs=0.01)  # black is 100 from white
    assert np.isnan(adherence.color_adherence(image, np.zeros_like(color)))


def test_sensitivity_looks_around_the_stroke_that_moved() -> None:
    before = np.full((64, 64, 3), 100, np.uint8)
    after = before.copy()
    after[:, 20:23] = 160
    here = adherence.sensitivity(before, after, line_at(21), line_at(25))
    far = adherence.sensitivity(before, after, line_at(50), line_at(54))
    assert here > 10
    assert far == 0.0
    assert np.isnan(adherence.sensitivity(before, after, line_at(21), line_at(21)))
