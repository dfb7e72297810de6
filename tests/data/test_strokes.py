"""Strokes such as people draw."""

from __future__ import annotations

import numpy as np
import pytest

from scfegan_ray.config import MaskConfig, StrokeConfig
from scfegan_ray.data import examples, strokes

SIZE = 64
LINES = np.zeros((SIZE, SIZE), np.uint8)
LINES[8::16] = 1
PAINT = np.zeros((SIZE, SIZE, 3), np.uint8)
PAINT[:32, :32] = (200, 150, 120)
PAINT[40:, 40:] = (0, 0, 1)


def varied(times: int = 20, **settings: float) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [strokes.vary(LINES, PAINT, StrokeConfig(**settings), rng) for _ in range(times)]


def distance_to_lines(lines: np.ndarray) -> np.ndarray:
    down = np.abs(np.arange(SIZE)[:, None] - np.arange(8, SIZE, 16))
    return np.broadcast_to(down.min(axis=1)[:, None], lines.shape)[lines == 1]


def test_nothing_is_drawn_at_random_where_nothing_is_asked_for() -> None:
    rng = np.random.default_rng(0)
    lines, paint = strokes.vary(LINES, PAINT, StrokeConfig(), rng)
    assert lines is LINES and paint is PAINT
    assert rng.random() == np.random.default_rng(0).random()


def test_lines_stray_as_far_as_was_said_and_stay_lines() -> None:
    found = [lines for lines, _ in varied(60, wobble=0.03)]
    away = np.concatenate([distance_to_lines(lines) for lines in found])
    assert 0.3 < away.mean() < 0.03 * SIZE
    lengths = [lines.any(axis=0).mean() for lines in found]
    assert min(lengths) > 0.9, "they are not torn"
    assert {str(lines.dtype) for lines in found} == {"uint8"} and max(lines.max() for lines in found) == 1


def test_pieces_are_missing() -> None:
    shares = [lines.sum() / LINES.sum() for lines, _ in varied(200, missing=0.4)]
    assert np.mean(shares) == pytest.approx(0.8, abs=0.05), "half of what is said, on average"
    assert max(shares) > 0.97 and min(shares) < 0.7


def test_lines_are_added_and_thicker() -> None:
    added = [lines for lines, _ in varied(40, added_lines=3.0)]
    assert all((lines >= LINES).all() for lines in added)
    assert 5 < np.mean([(lines > LINES).sum() for lines in added]) < 60
    thick = [lines for lines, _ in varied(40, thickness=0.1)]
    assert all((lines >= LINES).all() for lines in thick)
    assert 1.5 < np.mean([lines.sum() for lines in thick]) / LINES.sum() < 4


def test_no_line_at_all() -> None:
    shares = [lines.any() for lines, _ in varied(300, sketch_absent_probability=0.3)]
    assert np.mean(shares) == pytest.approx(0.7, abs=0.08)
    assert not any(lines.any() for lines, _ in varied(5, sketch_absent_probability=1.0))


def test_each_color_is_off_as_a_whole_and_paint_stays_paint() -> None:
    for lines, paint in varied(50, color_shift=40.0):
        assert lines is LINES or np.array_equal(lines, LINES)
        assert np.array_equal(paint.any(axis=2), PAINT.any(axis=2))
        for part in (paint[:32, :32], paint[40:, 40:]):
            assert len(np.unique(part.reshape(-1, 3), axis=0)) == 1
    differences = [paint[0, 0].astype(int) - PAINT[0, 0] for _, paint in varied(300, color_shift=12.0)]
    assert 5 < np.std(differences) < 9, "12 levels times a share from 0 to 1"


def test_what_is_seen_lies_in_the_hole() -> None:
    config = MaskConfig(strokes=StrokeConfig(wobble=0.05, added_lines=5, thickness=0.05, color_shift=20))
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[20:40, 20:40] = 1
    row = {"image": PAINT, "sketch": LINES, "color": PAINT | 1}
    for seed in range(10):
        example = examples.fill_in(row, mask, config, np.random.default_rng(seed))
        for name in ("sketch", "color", "noise"):
            assert not example[name][mask == 0].any()
