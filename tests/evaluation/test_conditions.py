"""Strokes that are not the photograph's."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from scfegan_ray.evaluation import conditions

SIZE = 64


def lines(*columns: int) -> np.ndarray:
    sketch = np.zeros((SIZE, SIZE), np.uint8)
    sketch[8:56, list(columns)] = 1
    return sketch


@pytest.fixture
def row() -> dict[str, Any]:
    return {"image": np.full((SIZE, SIZE, 3), 100, np.uint8), "sketch": lines(20, 40)}


@pytest.fixture
def made(row: dict[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    hole = np.zeros((SIZE, SIZE), np.uint8)
    hole[4:60, 4:60] = 1
    color = np.zeros((SIZE, SIZE, 3), np.uint8)
    color[10:30, 10:50] = (200, 150, 120)
    example = {
        "image": row["image"],
        "mask": hole[..., None],
        "sketch": (row["sketch"] & hole)[..., None],
        "color": color,
        "noise": hole[..., None],
    }
    return conditions.make(example, row, {"sketch": lines(2, 30)}, np.random.default_rng(0))


def test_each_condition_gives_what_its_name_says(made: dict[str, dict[str, np.ndarray]]) -> None:
    assert tuple(made) == conditions.CONDITIONS
    has = {name: (bool(one["sketch"].any()), bool(one["color"].any())) for name, one in made.items()}
    assert has == {
        "guided": (True, True),
        "sketch_only": (True, False),
        "color_only": (False, True),
        "blind": (False, False),
        "foreign_sketch": (True, False),
        "shifted_sketch": (True, False),
        "recolored": (True, True),
        "moved_stroke": (True, True),
    }
    for one in made.values():
        for name in ("image", "mask", "noise"):
            assert one[name] is made["guided"][name]


def test_foreign_lines_are_the_other_face_s_within_the_hole(made: dict[str, dict[str, np.ndarray]]) -> None:
    assert np.array_equal(made["foreign_sketch"]["sketch"][..., 0], lines(30))


def test_shifted_lines_are_a_sixteenth_of_the_side_away(made: dict[str, dict[str, np.ndarray]]) -> None:
    before, after = (made[name]["sketch"][..., 0] for name in ("guided", "shifted_sketch"))
    moves = [(y, x) for y in (-4, 0, 4) for x in (-4, 0, 4) if (y, x) != (0, 0)]
    assert any(np.array_equal(np.roll(before, move, (0, 1)), after) for move in moves)


def test_one_stroke_moves_and_the_other_stays(made: dict[str, dict[str, np.ndarray]]) -> None:
    before, after = (made[name]["sketch"][..., 0] for name in ("guided", "moved_stroke"))
    kept = [column for column in (20, 40) if np.array_equal(after[:, column], before[:, column])]
    assert len(kept) == 1
    assert after.sum() <= before.sum()


def test_lines_too_short_to_move_stay(row: dict[str, Any]) -> None:
    dot = np.zeros((SIZE, SIZE, 1), np.uint8)
    dot[5, 5:7] = 1
    example = {
        "image": row["image"], "mask": np.ones_like(dot), "sketch": dot, "color": row["image"], "noise": dot,
    }  # fmt: skip
    found = conditions.make(example, row, row, np.random.default_rng(0))
    assert np.array_equal(found["moved_stroke"]["sketch"], dot)


def test_paint_gets_another_strong_hue_at_its_lightness() -> None:
    color = np.zeros((4, 4, 3), np.uint8)
    color[0] = (200, 150, 120)  # skin
    color[1] = (128, 128, 128)  # gray: no hue of its own
    color[2] = (1, 1, 1)  # nearly black
    changed = conditions.recolored(color)
    assert not changed[3].any()
    assert changed[:3].any(axis=2).all()
    before, after = (cv2.cvtColor(one.astype(np.float32) / 255, cv2.COLOR_RGB2LAB) for one in (color, changed))
    assert after[:2, :, 0] == pytest.approx(before[:2, :, 0], abs=6)  # colors out of reach are clipped
    apart = np.hypot(*(after - before)[:2, 0, 1:].T)
    assert (apart > 25).all()
