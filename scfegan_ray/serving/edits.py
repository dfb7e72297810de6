"""An edit as a document: what a person drew, as strokes and not as pixels; and the maps that a model is given of it.

An edit is JSON. It fits a photograph of any size and a model of any size, and the same document gives the same maps,
bit by bit, in this module and in the page's `rasterize.js`: both compute with integers alone. In short:

```
{"format": "scfegan-edit", "version": 1, "model": "models:/scfegan-generator/1",
 "faces": [{"square": {"x": 0.5, "y": 0.4, "side": 0.6, "angle": 0.0}, "seed": 0, "strokes": [
    {"kind": "line", "layer": "mask", "width": 6000, "points": [20000, 30000, 255, 24000, 30000, 255]},
    {"kind": "line", "layer": "color", "color": "#b4825a", "width": 900, "points": [21000, 30000, 128]},
    {"kind": "polygon", "layer": "mask", "erase": true, "points": [0, 0, 9000, 0, 9000, 9000]},
    {"kind": "bucket", "layer": "color", "color": "#c01e32", "points": [22000, 30000]},
    {"kind": "map", "layer": "sketch", "size": 64, "runs": [0, 4000, 1, 96]},
    {"kind": "clear", "layer": "sketch"}]}]}
```

| kind | marks |
| --- | --- |
| `line` | what a round brush covers along a path of points `x, y, pressure`; `width` is its diameter at pressure 255 |
| `polygon` | what a closed path of points `x, y` winds around |
| `bucket` | what is connected with one point by its sides and has its value; in color the hole alone, up to lines |
| `map` | pixels of a picture of `size` times `size`, row by row as runs `value, count`; 0 marks nothing; in color, 1 is
the first of `colors` |
| `clear` | all of the layer |

Coordinates and widths are in `UNITS` a side of the face's square, from its upper left corner; what lies beyond the
square is cut off. A stroke with `erase` takes away what it marks. Later strokes lie above earlier ones.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from scfegan_ray.errors import DataError

FORMAT, VERSION = "scfegan-edit", 1

UNITS = 1 << 16
"""Units that a side of the square has."""

LAYERS = ("mask", "sketch", "color")
KINDS = {"line": 3, "polygon": 2, "bucket": 2, "map": 0, "clear": 0}
"""Kinds of strokes, with how many numbers each of its points has."""

MAX_BYTES = 8 << 20
MAX_FACES = 64
MAX_STROKES = 20_000
MAX_NUMBERS = 1_000_000
MAX_SIZE_PX = 2048
"""What a document may hold: its length, faces, strokes, numbers in all strokes, and the side of its maps."""

MAX_ROWS = 1 << 25
"""Rows of pixels that the brushes of one face may cover, each point counted by itself."""

MAX_PRESSURE = 255

_FINE = 16
# Steps per pixel; a pixel's center lies half of them from its edge.
_HALF = _FINE // 2

_ROWS_AT_ONCE = 1 << 20
_POINTS_AT_ONCE = 1 << 10
# What memory is taken for at a time: a point covers at most as many rows as there are.

_MAX_SEED = 2**53 - 1
# What JavaScript counts to.
_MAX_TEXT = 1000


@dataclass(frozen=True, slots=True)
class Square:
    """Where a face lies, relative to the upright photograph's width, so that a smaller copy has the same.

    Attributes:
        x: of the center, from the left edge.
        y: of the center, from the upper edge, in widths, too.
        side: of the square.
        angle: of its upper edge from the x axis, clockwise, in radians.
    """

    x: float = 0.5
    y: float = 0.5
    side: float = 1.0
    angle: float = 0.0


@dataclass(frozen=True, slots=True)
class Stroke:
    """One of a document's strokes, see the module.

    Attributes:
        layer: one of `LAYERS`.
        kind: one of `KINDS`.
        erase: it takes away.
        value: what it marks pixels with: 1, 1, 1 in mask and sketch; red, green and blue in color, never black, which
            means unpainted.
        width: of a line, in units.
        points: of a line, polygon or bucket; (number, numbers of a point) int64.
        size: side of a map, in pixels.
        runs: of a map; (number, 2) int64: value, count.
        colors: of a map; (number, 3) uint8.
    """

    layer: str
    kind: str
    erase: bool
    value: tuple[int, int, int]
    width: int
    points: NDArray[np.int64]
    size: int
    runs: NDArray[np.int64]
    colors: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class FaceEdit:
    """What was drawn on one face.

    Attributes:
        square: where it lies.
        seed: of the noise.
        strokes: from the first to the last.
    """

    square: Square
    seed: int
    strokes: tuple[Stroke, ...]


@dataclass(frozen=True, slots=True)
class Edit:
    """A document.

    Attributes:
        model: URI of the version that it was drawn with; empty where it does not say.
        faces: at least one.
    """

    model: str
    faces: tuple[FaceEdit, ...]


@dataclass(frozen=True, slots=True)
class Maps:
    """What a model is given of an edit.

    Attributes:
        mask: (S, S) uint8 in {0, 1}; 1 marks pixels to fill.
        sketch: (S, S) uint8 in {0, 1}; 1 marks lines.
        color: (S, S, 3) uint8 RGB; black means unpainted.
    """

    mask: NDArray[np.uint8]
    sketch: NDArray[np.uint8]
    color: NDArray[np.uint8]


def parse_edit(text: str | bytes) -> Edit:
    """Read a document; it may come from a stranger.

    Raises:
        DataError: it is no edit, or larger than one may be; the text says where.
    """
    given = _decode(text)
    _object(given, "the edit", "format", "version", "model", "faces", "photograph")
    if given.get("format") != FORMAT:
        raise DataError(f'this is no edit: its format is {given.get("format")!r:.80}, not "{FORMAT}"')
    if given.get("version") != VERSION:
        raise DataError(f"an edit of version {given.get('version')!r:.80}; this program reads version {VERSION}")
    model = given.get("model", "")
    if not isinstance(model, str) or len(model) > _MAX_TEXT:
        raise DataError("the edit's model is no URI")
    faces = given.get("faces")
    if not isinstance(faces, list) or not 0 < len(faces) <= MAX_FACES:
        raise DataError(f"the edit has no list of 1 to {MAX_FACES} faces")
    budget = _Budget()
    return Edit(model, tuple(_face(face, f"face {at}", budget) for at, face in enumerate(faces)))


def parse_face(text: str | bytes) -> FaceEdit:
    """Read what was drawn on one face: an entry of a document's `faces`.

    Raises:
        DataError: it is none, or larger than one may be.
    """
    return _face(_decode(text), "the face", _Budget())


def parse_square(text: str | bytes) -> Square:
    """Read where a face lies: the `square` of one of a document's faces.

    Raises:
        DataError: it is none.
    """
    return _square(_decode(text), "the face")


def with_seed(face: FaceEdit, seed: object) -> FaceEdit:
    """Return what was drawn on a face with other noise.

    Raises:
        DataError: the seed is none.
    """
    return dataclasses.replace(face, seed=_integer(seed, "the seed", 0, _MAX_SEED))


def rasterize(face: FaceEdit, size_px: int) -> Maps:
    """Draw strokes at the size of a model.

    Args:
        face: whose strokes.
        size_px: side of the maps, 1 to `MAX_SIZE_PX`.

    Raises:
        DataError: it would take too long.
    """
    if not 0 < size_px <= MAX_SIZE_PX:
        raise DataError(f"maps of {size_px} pixels a side; at most {MAX_SIZE_PX}")
    layers = {layer: np.zeros((size_px, size_px, 3 if layer == "color" else 1), np.uint8) for layer in LAYERS}
    rows = 0
    for layer, strokes in _by_layer(face.strokes):
        target = layers[layer]
        # Brushes of one value may be laid down at once; in which order does not show.
        for (kind, erase, value), same in groupby(strokes, lambda one: (one.kind, one.erase, one.value)):
            marks = (0,) * target.shape[2] if erase else value[: target.shape[2]]
            if kind == "line":
                for shapes in _batches(same, size_px):
                    rows += sum(shape.rows for shape in shapes)
                    if rows > MAX_ROWS:
                        raise DataError("too much was drawn with too large brushes; clear what is covered")
                    _cover(shapes, target, marks)
                continue
            for one in same:
                if kind == "map":
                    _lay_map(one, target)
                else:
                    target[_mark(one, layers, size_px)] = marks
    return Maps(layers["mask"][..., 0], layers["sketch"][..., 0], layers["color"])


def _by_layer(strokes: Sequence[Stroke]) -> Iterator[tuple[str, list[Stroke]]]:
    """Yield strokes layer by layer, which do not touch each other; but a bucket of color looks at all of them."""
    waiting: dict[str, list[Stroke]] = {layer: [] for layer in LAYERS}
    for stroke in strokes:
        if stroke.kind == "bucket" and stroke.layer == "color":
            for layer in ("mask", "sketch"):
                yield layer, waiting[layer]
                waiting[layer] = []
            yield "color", [*waiting["color"], stroke]
            waiting["color"] = []
        else:
            waiting[stroke.layer].append(stroke)
    yield from waiting.items()


@dataclass(frozen=True, slots=True)
class _Path:
    """Points of brushes one after the other.

    Attributes:
        points: (number, 3) int64: x, y, pressure.
        widths: (number,) int64, at pressure 255.
        joined: (number - 1,) bool: the brush goes on from a point to the next one.
    """

    points: NDArray[np.int64]
    widths: NDArray[np.int64]
    joined: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shapes:
    """What a brush is made of: (number,) int64 each, in fine steps; and the rows of pixels that each may cover."""

    x: NDArray[np.int64]
    y: NDArray[np.int64]
    first: NDArray[np.int64]
    rows_each: NDArray[np.int64]

    @property
    def rows(self) -> int:
        return int(self.rows_each.sum())

    def spans(self, at: NDArray[np.int64], row: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return first and last pixel of shapes in rows."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class _Discs(_Shapes):
    """Round ends."""

    radius: NDArray[np.int64]

    def spans(self, at: NDArray[np.int64], row: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return first and last pixel of discs in rows."""
        away = row * _FINE + _HALF - self.y[at]
        half = np.sqrt(self.radius[at] ** 2 - away**2).astype(np.int64)  # exact: below 2 ** 52
        return -(-(self.x[at] - half - _HALF) // _FINE), (self.x[at] + half - _HALF) // _FINE


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bars(_Shapes):
    """What lies between two ends, as wide as the mean of both."""

    dx: NDArray[np.int64]
    dy: NDArray[np.int64]
    reach: NDArray[np.int64]

    def spans(self, at: NDArray[np.int64], row: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return first and last pixel of bars in rows: 0 <= along <= length ** 2, and |across| <= reach."""
        dx, dy, reach = self.dx[at], self.dy[at], self.reach[at]
        away = row * _FINE + _HALF - self.y[at]
        # Both are linear in the pixel's x: along = dx * x + dy * away, across = dy * x - dx * away.
        least, most = _bounds(dx, dy * away, np.zeros_like(dx), dx * dx + dy * dy)
        other_least, other_most = _bounds(dy, -dx * away, -reach, reach)
        least, most = np.maximum(least, other_least), np.minimum(most, other_most)
        offset = self.x[at] - _HALF
        return -(-(least + offset) // _FINE), (most + offset) // _FINE


_FAR = 1 << 40


def _bounds(
    slope: NDArray[np.int64], start: NDArray[np.int64], least: NDArray[np.int64], most: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the integers x, from first to last, for which least <= slope * x + start <= most."""
    low, high = least - start, most - start
    low, high = np.where(slope < 0, -high, low), np.where(slope < 0, -low, high)
    steep = np.maximum(np.abs(slope), 1)
    flat_and_out = (slope == 0) & ((low > 0) | (high < 0))
    first = np.where(slope == 0, np.where(flat_and_out, _FAR, -_FAR), -(-low // steep))
    last = np.where(slope == 0, np.where(flat_and_out, -_FAR, _FAR), high // steep)
    return first, last


def _fine(points: NDArray[np.int64], size_px: int) -> NDArray[np.int64]:
    return (points * (size_px * _FINE)) >> 16


def _row_range(
    least: NDArray[np.int64], most: NDArray[np.int64], size_px: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first row whose pixels' centers lie between, and how many there are."""
    first = np.maximum(-(-(least - _HALF) // _FINE), 0)
    last = np.minimum((most - _HALF) // _FINE, size_px - 1)
    return first, np.maximum(last - first + 1, 0)


def _brush(path: _Path, size_px: int) -> tuple[_Discs, _Bars]:
    x, y = _fine(path.points[:, :2], size_px).T
    # At least one pixel wide, so that no line has gaps.
    radius = np.maximum(path.widths * size_px * _HALF * path.points[:, 2] // (UNITS * MAX_PRESSURE), _HALF)
    first, rows_each = _row_range(y - radius, y + radius, size_px)
    discs = _Discs(x=x, y=y, first=first, rows_each=rows_each, radius=radius)
    dx, dy, mean = np.diff(x), np.diff(y), (radius[1:] + radius[:-1]) >> 1
    reach = _integer_root(mean * mean * (dx * dx + dy * dy))  # of at most 2 ** 62.2
    low, high = np.minimum(y[1:], y[:-1]) - mean, np.maximum(y[1:], y[:-1]) + mean
    first, rows_each = _row_range(low, high, size_px)
    rows_each[~path.joined | ((dx == 0) & (dy == 0))] = 0
    return discs, _Bars(x=x[:-1], y=y[:-1], first=first, rows_each=rows_each, dx=dx, dy=dy, reach=reach)


def _integer_root(squares: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the largest integers whose squares are no larger; the computer's root of large ones is rounded."""
    root = np.sqrt(squares).astype(np.int64)
    root -= root * root > squares
    root += (root + 1) ** 2 <= squares
    return root


def _paths(strokes: Iterable[Stroke]) -> Iterator[_Path]:
    """Yield the points of brushes, of all strokes in a row, some at a time."""
    several = list(strokes)
    lengths = [len(one.points) for one in several]
    points = np.concatenate([one.points for one in several])
    widths = np.repeat([one.width for one in several], lengths)
    joined = np.ones(len(points), np.bool_)
    joined[np.cumsum(lengths) - 1] = False
    for start in range(0, len(points), _POINTS_AT_ONCE):
        end = start + _POINTS_AT_ONCE
        yield _Path(points[start : end + 1], widths[start : end + 1], joined[start : min(end, len(points) - 1)])


def _batches(strokes: Iterable[Stroke], size_px: int) -> Iterator[list[_Shapes]]:
    """Yield the shapes of brushes, several at once, but not more than memory is to be taken for."""
    shapes: list[_Shapes] = []
    rows = 0
    for path in _paths(strokes):
        for shape in _brush(path, size_px):
            if rows and rows + shape.rows > _ROWS_AT_ONCE:
                yield shapes
                shapes, rows = [], 0
            shapes.append(shape)
            rows += shape.rows
    yield shapes


def _cover(shapes: Sequence[_Shapes], target: NDArray[np.uint8], value: Sequence[int]) -> None:
    """Mark what shapes cover together."""
    size_px = target.shape[0]
    pieces = []
    for shape in shapes:
        ends = np.cumsum(shape.rows_each)
        at = np.repeat(np.arange(len(ends)), shape.rows_each)
        row = np.arange(len(at)) + (shape.first - ends + shape.rows_each)[at]
        first, last = shape.spans(at, row)
        first, last = np.maximum(first, 0), np.minimum(last, size_px - 1)
        seen = first <= last
        pieces.append((row[seen], first[seen], last[seen]))
    rows, firsts, lasts = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    if not len(rows):
        return
    top, left = rows.min(), firsts.min()
    height, width = rows.max() + 1 - top, lasts.max() + 1 - left
    line = (rows - top) * (width + 1) - left
    # How many spans begin at a pixel, less those that ended before it.
    steps = np.bincount(line + firsts, minlength=height * (width + 1))
    steps -= np.bincount(line + lasts + 1, minlength=height * (width + 1))
    covered = steps.reshape(height, width + 1).cumsum(axis=1)[:, :-1] > 0
    target[top : top + height, left : left + width][covered] = value


def _mark(stroke: Stroke, layers: Mapping[str, NDArray[np.uint8]], size_px: int) -> NDArray[np.bool_]:
    """Return what a polygon, a bucket or a clearing marks: (S, S) bool."""
    if stroke.kind == "polygon":
        return _wound_around(_fine(stroke.points, size_px), size_px)
    if stroke.kind == "clear":
        return np.ones((size_px, size_px), np.bool_)
    x, y = _fine(stroke.points[0], size_px) // _FINE
    if not (0 <= x < size_px and 0 <= y < size_px):
        return np.zeros((size_px, size_px), np.bool_)
    here = layers[stroke.layer]
    alike = (here == here[y, x]).all(axis=2)
    if stroke.layer == "color":
        alike &= (layers["mask"][..., 0] == 1) & (layers["sketch"][..., 0] == 0)
    _, parts = cv2.connectedComponents(alike.astype(np.uint8), connectivity=4)
    marked: NDArray[np.bool_] = alike & (parts == parts[y, x])
    return marked


def _wound_around(points: NDArray[np.int64], size_px: int) -> NDArray[np.bool_]:
    """Return the pixels whose centers a closed path winds around: (S, S) bool."""
    winding = np.zeros((size_px, size_px + 1), np.int32)
    ends = np.roll(points, -1, axis=0)
    for (x0, y0), (x1, y1) in zip(points.tolist(), ends.tolist(), strict=True):
        sign = 1 if y1 > y0 else -1
        if sign < 0:
            x0, y0, x1, y1 = x1, y1, x0, y0
        # Of rows whose centers lie in [y0, y1).
        rows = np.arange(max(-(-(y0 - _HALF) // _FINE), 0), min((y1 - _HALF - 1) // _FINE, size_px - 1) + 1)
        down = y1 - y0
        crossing = (x0 - _HALF) * down + (x1 - x0) * (rows * _FINE + _HALF - y0)
        if down:
            winding[rows, np.clip(-(-crossing // (_FINE * down)), 0, size_px)] += sign
    inside: NDArray[np.bool_] = winding[:, :-1].cumsum(axis=1) != 0
    return inside


def _lay_map(stroke: Stroke, target: NDArray[np.uint8]) -> None:
    size_px = target.shape[0]
    values = np.repeat(stroke.runs[:, 0], stroke.runs[:, 1]).reshape(stroke.size, stroke.size)
    nearest = (2 * np.arange(size_px) + 1) * stroke.size // (2 * size_px)
    values = values[np.ix_(nearest, nearest)]
    marked = values > 0
    if stroke.erase:
        target[marked] = 0
    elif stroke.layer == "color":
        target[marked] = stroke.colors[values[marked] - 1]
    else:
        target[marked] = 1


class _Budget:
    """What is left of what a document may hold."""

    def __init__(self) -> None:
        self._strokes, self._numbers = MAX_STROKES, MAX_NUMBERS

    def take(self, strokes: int, numbers: int) -> None:
        self._strokes -= strokes
        self._numbers -= numbers
        if self._strokes < 0:
            raise DataError(f"the edit has more than {MAX_STROKES} strokes")
        if self._numbers < 0:
            raise DataError(f"the edit's strokes have more than {MAX_NUMBERS} numbers")


def _decode(text: str | bytes) -> dict[str, Any]:
    if len(text) > MAX_BYTES:
        raise DataError(f"the edit is longer than {MAX_BYTES >> 20} MB")
    try:
        given = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the edit is no JSON: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(given, dict):
        raise DataError("the edit is no JSON object")
    return given


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _object(given: object, where: str, *names: str) -> dict[str, Any]:
    """Return a JSON object that has no others than some keys."""
    if not isinstance(given, dict):
        raise DataError(f"{where} is no JSON object")
    unknown = sorted(given.keys() - set(names))
    if unknown:
        raise DataError(f"{where} has an unknown {unknown[0]!r:.80}; known are {', '.join(names)}")
    return given


def _face(given: object, where: str, budget: _Budget) -> FaceEdit:
    found = _object(given, where, "square", "seed", "strokes")
    strokes = found.get("strokes")
    if not isinstance(strokes, list):
        raise DataError(f"{where} has no list of strokes")
    budget.take(len(strokes), 0)
    return FaceEdit(
        square=_square(found.get("square", {}), where),
        seed=_integer(found.get("seed", 0), f"{where}: seed", 0, _MAX_SEED),
        strokes=tuple(_stroke(stroke, f"{where}, stroke {at}", budget) for at, stroke in enumerate(strokes)),
    )


def _square(given: object, where: str) -> Square:
    found = _object(given, f"{where}: the square", "x", "y", "side", "angle")
    numbers = [found.get(name, default) for name, default in dataclasses.asdict(Square()).items()]
    if not all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in numbers):
        raise DataError(f"{where}: the square's x, y, side and angle are not four numbers")
    x, y, side, angle = map(float, numbers)
    # A photograph may be a few times as high as wide.
    if not (abs(x) <= 16 and abs(y) <= 16 and 1e-4 <= side <= 16 and abs(angle) <= math.tau):
        raise DataError(f"{where}: the square lies outside any photograph; its numbers are relative to the width")
    return Square(x, y, side, angle)


def _stroke(given: object, where: str, budget: _Budget) -> Stroke:
    found = _object(given, where, "layer", "kind", "erase", "color", "width", "points", "size", "runs", "colors")
    kind, layer, erase = found.get("kind"), found.get("layer"), found.get("erase", False)
    known = isinstance(kind, str) and isinstance(layer, str) and isinstance(erase, bool)
    if not known or kind not in KINDS or layer not in LAYERS:
        raise DataError(f"{where}: kind is one of {', '.join(KINDS)}, layer one of {', '.join(LAYERS)}, erase a bool")
    points = np.zeros((0, 2), np.int64)
    if KINDS[kind]:
        points = _numbers(found.get("points"), f"{where}: points", KINDS[kind], -UNITS, 2 * UNITS, budget)
        if len(points) == 0 or (kind == "bucket" and len(points) > 1):
            raise DataError(f"{where}: a bucket has one point, a line or polygon has some")
        if kind == "line" and not ((points[:, 2] > 0) & (points[:, 2] <= MAX_PRESSURE)).all():
            raise DataError(f"{where}: the pressure of a point is not from 1 to {MAX_PRESSURE}")
    size, runs = 0, np.zeros((0, 2), np.int64)
    colors = np.zeros((0, 3), np.uint8)
    if kind == "map":
        size = _integer(found.get("size"), f"{where}: size", 1, MAX_SIZE_PX)
        runs = _numbers(found.get("runs"), f"{where}: runs", 2, 0, MAX_SIZE_PX**2, budget)
        if int(runs[:, 1].sum()) != size * size:
            raise DataError(f"{where}: its runs are not {size}x{size} pixels long")
        if layer == "color" and not erase:
            palette = found.get("colors")
            if not isinstance(palette, list):
                raise DataError(f"{where}: a map of color has a list of colors")
            budget.take(0, len(palette))
            colors = np.array([_color(one, where) for one in palette], np.uint8).reshape(-1, 3)
            if len(runs) and runs[:, 0].max() > len(colors):
                raise DataError(f"{where}: its runs name more colors than it has")
    painted = layer == "color" and not erase and kind in ("line", "polygon", "bucket")
    return Stroke(
        layer=layer,
        kind=kind,
        erase=erase or kind == "clear",
        value=_color(found.get("color"), where) if painted else (1, 1, 1),
        width=_integer(found.get("width"), f"{where}: width", 1, UNITS) if kind == "line" else 0,
        points=points,
        size=size,
        runs=runs,
        colors=colors,
    )


def _color(given: object, where: str) -> tuple[int, int, int]:
    """Return red, green and blue; what a person calls black is the darkest color that is not unpainted."""
    try:
        if not isinstance(given, str) or len(given) != 7 or given[0] != "#":
            raise ValueError
        number = int(given[1:], 16) if given[1:].isalnum() else -1
        if number < 0:
            raise ValueError
    except ValueError:
        raise DataError(f'{where}: {given!r:.80} is no color; give one as "#c01e32"') from None
    return (number >> 16, number >> 8 & 255, number & 255) if number else (1, 1, 1)


def _integer(given: object, where: str, least: int, most: int) -> int:
    if not isinstance(given, int) or isinstance(given, bool) or not least <= given <= most:
        raise DataError(f"{where} is {given!r:.80}, no integer from {least} to {most}")
    return given


def _numbers(given: object, where: str, per_point: int, least: int, most: int, budget: _Budget) -> NDArray[np.int64]:
    if not isinstance(given, list) or len(given) % per_point:
        raise DataError(f"{where}: a list of integers, {per_point} for each, is wanted")
    budget.take(0, len(given))
    if not all(type(number) is int and least <= number <= most for number in given):
        raise DataError(f"{where}: not all are integers from {least} to {most}")
    return np.array(given, np.int64).reshape(-1, per_point)
