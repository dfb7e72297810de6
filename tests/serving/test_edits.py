"""An edit's document: what it says, pixel by pixel, and whose documents are refused."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from scfegan_ray.errors import DataError
from scfegan_ray.serving import edits

UNITS = edits.UNITS
FULL = {"kind": "polygon", "layer": "mask", "points": [0, 0, UNITS, 0, UNITS, UNITS, 0, UNITS]}


def draw(*strokes: dict[str, Any], size_px: int = 32) -> edits.Maps:
    return edits.rasterize(edits.parse_face(json.dumps({"strokes": strokes})), size_px)


def line(points: Any, width: int = 6000, layer: str = "mask", **more: Any) -> dict[str, Any]:
    return {"kind": "line", "layer": layer, "width": width, "points": np.ravel(points).tolist(), **more}


def rows(plane: NDArray[np.uint8]) -> list[str]:
    return ["".join(".#"[value] for value in row) for row in plane]


def test_brush_is_round_and_its_path_has_no_gaps() -> None:
    # A pixel of 8 has 8,192 units; the disc's center is the corner of four pixels, its radius two of them.
    assert rows(draw(line([16384, 16384, 255], 32768), size_px=8).mask) == [
        ".##.....",
        "####....",
        "####....",
        ".##.....",
        "........",
        "........",
        "........",
        "........",
    ]
    diagonal = [[4096, 4096, 255], [61440, 61440, 255]]
    assert np.array_equal(draw(line(diagonal, 1), size_px=8).mask, np.eye(8))


def by_definition(points: NDArray[np.int64], width: int, size_px: int) -> NDArray[np.bool_]:
    """Mark each pixel by itself, in Python's own integers."""
    place = [[(int(value) * size_px * 16) >> 16 for value in point[:2]] for point in points]
    radius = [max(width * size_px * 8 * int(point[2]) // (65536 * 255), 8) for point in points]
    marked = np.zeros((size_px, size_px), bool)
    for row in range(size_px):
        for column in range(size_px):
            x, y = column * 16 + 8, row * 16 + 8
            here = any((x - u) ** 2 + (y - v) ** 2 <= r * r for (u, v), r in zip(place, radius, strict=True))
            for ((ax, ay), (bx, by)), (ar, br) in zip(pairwise(place), pairwise(radius), strict=True):
                dx, dy, r = bx - ax, by - ay, (ar + br) >> 1
                along, across = (x - ax) * dx + (y - ay) * dy, (x - ax) * dy - (y - ay) * dx
                length = dx * dx + dy * dy
                here |= length > 0 and 0 <= along <= length and across * across <= r * r * length
            marked[row, column] = here
    return marked


@pytest.mark.parametrize("seed", range(30))
def test_brush_covers_what_is_near_its_path(seed: int) -> None:
    rng = np.random.default_rng(seed)
    number = int(rng.integers(1, 6))
    points = np.concatenate(
        [rng.integers(-UNITS // 3, 4 * UNITS // 3, (number, 2)), rng.integers(1, 256, (number, 1))], axis=1
    )
    if seed % 3 == 0:
        points[:, 0] = points[0, 0]  # upright, and
    if seed % 5 == 0:
        points[:, 1] = points[0, 1]  # level, or no way at all
    width, size_px = int(rng.integers(1, 20000)), int(rng.choice([20, 32, 48]))
    assert np.array_equal(draw(line(points, width), size_px=size_px).mask, by_definition(points, width, size_px))


def test_many_brushes_at_once_are_each_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    strokes = [
        line(np.c_[rng.integers(0, UNITS, (40, 2)), np.full(40, 200)], 3000, "color", color=f"#0000{10 + at:02x}")
        for at in range(8)
    ]
    whole = draw(*strokes).color
    alone = [draw(stroke).color for stroke in strokes]
    for one in alone:
        assert (whole[one.any(axis=2)] > 0).any(axis=1).all()
    assert np.array_equal(whole[alone[-1].any(axis=2)], alone[-1][alone[-1].any(axis=2)])
    monkeypatch.setattr(edits, "_POINTS_AT_ONCE", 3)
    monkeypatch.setattr(edits, "_ROWS_AT_ONCE", 50)
    assert np.array_equal(draw(*strokes).color, whole)


@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_brushes_of_one_value_are_not_joined(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    strokes = [
        line(np.c_[rng.integers(0, UNITS, (number, 2)), rng.integers(1, 256, number)], int(width))
        for number, width in zip((1, 4, 2, 7, 1), rng.integers(1, 4000, 5), strict=True)
    ]
    alone = [draw(stroke, size_px=64).mask for stroke in strokes]
    monkeypatch.setattr(edits, "_POINTS_AT_ONCE", at_once)
    assert np.array_equal(draw(*strokes, size_px=64).mask, np.maximum.reduce(alone))


def test_integer_root_is_exact() -> None:
    root = np.random.default_rng(3).integers(0, 2_277_000_000, 10_000)
    for squares in (root**2, root**2 + 2 * root, np.maximum(root**2 - 1, 0)):
        assert edits._integer_root(squares).tolist() == [math.isqrt(one) for one in squares.tolist()]


def test_polygon_is_what_its_path_winds_around() -> None:
    square = [0, 0, 8192 * 4, 0, 8192 * 4, 8192 * 4, 0, 8192 * 4]
    assert rows(draw({"kind": "polygon", "layer": "mask", "points": square}, size_px=8).mask) == [
        *["####...."] * 4,
        *["........"] * 4,
    ]
    star = [32768, 10, 52000, 60000, 2000, 22000, 63000, 22000, 13000, 60000]
    drawn = draw({"kind": "polygon", "layer": "mask", "points": star}, size_px=16).mask
    assert drawn[8, 8] == 1  # its middle is wound around twice
    corners = np.array([(value * 16 * 16) >> 16 for value in star]).reshape(-1, 2) @ [1, 1j]
    centers = (np.arange(16) * 16 + 8)[None] + 1j * (np.arange(16) * 16 + 8)[:, None]
    turns = np.angle((np.roll(corners, -1) - centers[..., None]) / (corners - centers[..., None])).sum(axis=2)
    assert np.array_equal(drawn, np.abs(turns) > 3)
    for points in ([5, 5], [0, 0, UNITS, UNITS], [0, 0, UNITS, 0, UNITS // 2, 0]):
        assert draw({"kind": "polygon", "layer": "mask", "points": points}).mask.sum() == 0


def test_eraser_takes_away_and_order_counts() -> None:
    hole, gap = line([32768, 32768, 255], 30000), line([32768, 32768, 255], 10000, erase=True)
    ring = draw(hole, gap).mask
    assert ring[16, 16] == 0
    assert ring[16, 10] == 1
    assert draw(gap, hole).mask[16, 16] == 1
    red = {"kind": "polygon", "layer": "color", "color": "#ff0000", "points": FULL["points"]}
    painted = draw(red, line([32768, 32768, 255], 10000, "color", erase=True)).color
    assert painted[16, 16].tolist() == [0, 0, 0]
    assert painted[0, 0].tolist() == [255, 0, 0]
    assert draw(red, {"kind": "clear", "layer": "color"}).color.sum() == 0
    assert draw(FULL, {"kind": "clear", "layer": "color"}).mask.all()


def test_bucket_fills_up_to_lines_within_the_hole() -> None:
    half = {"kind": "polygon", "layer": "mask", "points": [0, 0, 49152, 0, 49152, UNITS, 0, UNITS]}
    wall = line([[32768, 0, 255], [32768, UNITS, 255]], 1, "sketch")
    bucket = {"kind": "bucket", "layer": "color", "color": "#0a0b0c", "points": [1000, 1000]}
    maps = draw(half, wall, bucket, size_px=8)
    assert rows(maps.sketch) == ["...##..."] * 8  # between two pixels, so both
    assert rows(maps.color.any(axis=2).astype(np.uint8)) == ["###....."] * 8
    assert (maps.color[0, 0] == [10, 11, 12]).all()
    other = {**bucket, "points": [45000, 1000]}
    assert rows(draw(half, wall, other, size_px=8).color.any(axis=2).astype(np.uint8)) == [".....#.."] * 8
    for nowhere in ([60000, 100], [-5, 100], [30000, 100]):  # outside the hole, of the square, on a line
        assert draw(half, wall, {**bucket, "points": nowhere}, size_px=8).color.sum() == 0
    # Strokes that come later are no walls.
    assert (draw(half, bucket, wall, size_px=8).color[:, :6].any(axis=2)).all()


def test_bucket_fills_a_ring() -> None:
    ring = line([[16384, 16384, 255], [49152, 16384, 255], [49152, 49152, 255], [16384, 49152, 255],
                 [16384, 16384, 255]], 1)  # fmt: skip
    inside = draw(ring, {"kind": "bucket", "layer": "mask", "points": [32768, 32768]}).mask
    assert inside[8:24, 8:24].all()
    assert inside.sum() < 400


@pytest.mark.parametrize("size_px", [4, 8, 6])
def test_map_is_laid_by_the_nearest_pixel(size_px: int) -> None:
    lines = {"kind": "map", "layer": "sketch", "size": 4, "runs": [0, 5, 1, 2, 0, 9]}
    picture = np.zeros((4, 4), np.uint8)
    picture[1, 1:3] = 1
    nearest = (2 * np.arange(size_px) + 1) * 4 // (2 * size_px)
    assert np.array_equal(draw(lines, size_px=size_px).sketch, picture[np.ix_(nearest, nearest)])
    colors = {**lines, "layer": "color", "runs": [0, 5, 2, 1, 1, 10], "colors": ["#010203", "#ffffff"]}
    painted = draw(colors, size_px=4).color
    assert painted[1].tolist() == [[0, 0, 0], [255, 255, 255], [1, 2, 3], [1, 2, 3]]
    assert draw(colors, {**colors, "erase": True}, size_px=4).color.sum() == 0
    assert draw(lines, {**lines, "erase": True}, size_px=4).sketch.sum() == 0


def test_black_is_painted_as_the_darkest_color() -> None:
    assert draw(line([32768, 32768, 255], layer="color", color="#000000")).color[16, 16].tolist() == [1, 1, 1]


def test_the_same_edit_at_twice_the_size_is_twice_as_large() -> None:
    strokes = (FULL, line([[10000, 20000, 255], [50000, 40000, 80]], 5000, erase=True))
    small, large = draw(*strokes, size_px=64).mask, draw(*strokes, size_px=256).mask
    assert abs(small.mean() - large.mean()) < 0.01


def test_document_is_read() -> None:
    text = json.dumps(
        {
            "format": "scfegan-edit",
            "version": 1,
            "model": "models:/m/3",
            "photograph": {"name": "a.jpg"},
            "faces": [{"square": {"x": 0.25, "y": 0.5, "side": 0.5, "angle": 0.1}, "seed": 7, "strokes": [FULL]}],
        }
    )
    edit = edits.parse_edit(text)
    assert (edit.model, len(edit.faces), edit.faces[0].seed) == ("models:/m/3", 1, 7)
    assert edit.faces[0].square == edits.Square(0.25, 0.5, 0.5, 0.1)
    assert edits.with_seed(edit.faces[0], 9).seed == 9
    assert edits.parse_square('{"side": 0.5}') == edits.Square(0.5, 0.5, 0.5, 0.0)


def face_of(*strokes: object, **more: object) -> str:
    return json.dumps({"strokes": strokes, **more})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ('{"strokes": NaN}', "NaN is no number"),
        ('{"seed": ' + "9" * 5000 + "}", "no JSON"),
        ("[]", "no JSON object"),
        ("{}", "no list of strokes"),
        ('{"strokes": [], "stroke": 1}', "unknown 'stroke'"),
        (face_of(seed=-1), "seed is -1"),
        (face_of(seed=1.5), "seed is 1.5"),
        (face_of(seed=True), "seed is True"),
        (face_of(square={"x": "0"}), "not four numbers"),
        (face_of(square={"side": 0}), "outside any photograph"),
        (face_of(square=[1]), "the square is no JSON object"),
        (face_of(7), "stroke 0 is no JSON object"),
        (face_of({**FULL, "layer": "noise"}), "layer one of"),
        (face_of({**FULL, "kind": []}), "kind is one of"),
        (face_of({**FULL, "erase": 1}), "erase a bool"),
        (face_of({**FULL, "points": []}), "a line or polygon has some"),
        (face_of({**FULL, "points": [1]}), "2 for each"),
        (face_of({**FULL, "points": [1.5, 2]}), "not all are integers"),
        (face_of({**FULL, "points": [True, 2]}), "not all are integers"),
        (face_of({**FULL, "points": [1 << 40, 2]}), "not all are integers"),
        (face_of(line([1, 2, 0])), "pressure"),
        (face_of(line([1, 2, 256])), "pressure"),
        (face_of(line([1, 2, 3], 0)), "width is 0"),
        (face_of(line([1, 2, 3], 1 << 20)), "width is"),
        (face_of(line([1, 2, 3], layer="color")), "None is no color"),
        (face_of(line([1, 2, 3], layer="color", color="#12345")), "is no color"),
        (face_of(line([1, 2, 3], layer="color", color="#-12345")), "is no color"),
        (face_of({"kind": "bucket", "layer": "mask", "points": [1, 2, 3, 4]}), "a bucket has one point"),
        (face_of({"kind": "map", "layer": "mask", "size": 2, "runs": [1, 3]}), "not 2x2 pixels long"),
        (face_of({"kind": "map", "layer": "mask", "size": 1 << 20, "runs": []}), "size is"),
        (face_of({"kind": "map", "layer": "color", "size": 1, "runs": [2, 1], "colors": ["#ffffff"]}), "more colors"),
        (face_of({"kind": "map", "layer": "color", "size": 1, "runs": [1, 1]}), "list of colors"),
        (face_of(*[FULL] * (edits.MAX_STROKES + 1)), "more than 20000 strokes"),
        (face_of(*[line([0, 0, 255] * 100_000)] * 4), "more than 1000000 numbers"),
    ],
)
def test_strangers_documents_are_refused(text: str, why: str) -> None:
    with pytest.raises(DataError, match=why) as refused:
        edits.parse_face(text)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"format": "svg"}, 'not "scfegan-edit"'),
        ({"version": 2}, "version 2"),
        ({"model": 3}, "model is no URI"),
        ({"faces": []}, "1 to 64 faces"),
        ({"faces": [{"strokes": []}] * 65}, "1 to 64 faces"),
    ],
)
def test_other_documents_are_refused(changes: dict[str, Any], why: str) -> None:
    document = {"format": "scfegan-edit", "version": 1, "faces": [{"strokes": []}]}
    with pytest.raises(DataError, match=why):
        edits.parse_edit(json.dumps(document | changes))


def test_too_long_a_document_is_refused_unread() -> None:
    with pytest.raises(DataError, match="longer than 8 MB"):
        edits.parse_face(" " * (edits.MAX_BYTES + 1))


def test_work_without_end_is_refused() -> None:
    heavy = [line([[32768, 32768, 255]] * 330_000, UNITS)]
    with pytest.raises(DataError, match="too much was drawn"):
        draw(*heavy, size_px=512)
    with pytest.raises(DataError, match="at most 2048"):
        draw(size_px=4096)
