"""The page draws the same maps as the server, bit by bit."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from scfegan_ray.serving import edits

UNITS = edits.UNITS


def coordinate(rng: random.Random) -> int:
    """Return one inside or outside of the square, some of them on pixels' borders."""
    return rng.choice(
        [rng.randint(-UNITS, 2 * UNITS), rng.randint(0, UNITS), rng.randrange(-UNITS, 2 * UNITS, UNITS // 32)]
    )


def color(rng: random.Random) -> str:
    return f"#{rng.choice([0, 0x00FF00, rng.randrange(1 << 24)]):06x}"


def path(rng: random.Random, number: int) -> list[int]:
    """Return points of a line; some are equal, some lie straight above each other."""
    points: list[int] = []
    for _ in range(number):
        before = points[-3:]
        x, y = coordinate(rng), coordinate(rng)
        if before and rng.random() < 0.2:
            x, y = before[0], rng.choice([before[1], y])
        points += [x, y, rng.choice([255, rng.randint(1, 255)])]
    return points


def stroke(rng: random.Random) -> dict[str, Any]:
    layer = rng.choice(edits.LAYERS)
    made: dict[str, Any] = {"layer": layer, "kind": rng.choice(["line", "line", "line", "polygon", "bucket", "map"])}
    if rng.random() < 0.03:
        made["kind"] = "clear"
    if rng.random() < 0.25:
        made["erase"] = True
    if layer == "color":
        made["color"] = color(rng)
    if made["kind"] == "line":
        made["width"] = rng.choice([1, rng.randint(100, 6000), rng.randint(1, UNITS)])
        made["points"] = path(rng, rng.randint(1, 8))
    elif made["kind"] == "polygon":
        made["points"] = [coordinate(rng) for _ in range(2 * rng.randint(1, 9))]
    elif made["kind"] == "bucket":
        made["points"] = [rng.randint(-100, UNITS + 100), rng.randint(-100, UNITS + 100)]
    elif made["kind"] == "map":
        made["size"] = rng.choice([1, 7, 32, 64, 100])
        number, left = rng.randint(1, 4), made["size"] ** 2
        made["runs"] = []
        while left:
            count = rng.randint(1, min(left, 200))
            made["runs"] += [rng.randint(0, number), count]
            left -= count
        made["colors"] = [color(rng) for _ in range(number)]
    return made


def drawings(seed: int, number: int, sizes: list[int]) -> list[tuple[list[dict[str, Any]], int]]:
    rng = random.Random(seed)
    return [([stroke(rng) for _ in range(rng.randint(1, 14))], rng.choice(sizes)) for _ in range(number)]


def digest(strokes: list[dict[str, Any]], size_px: int) -> str:
    maps = edits.rasterize(edits.parse_face(json.dumps({"strokes": strokes})), size_px)
    return hashlib.sha256(b"".join(map.tobytes() for map in (maps.mask, maps.sketch, maps.color))).hexdigest()


DIGEST = """
    const { rasterize } = await import("/page/rasterize.js");
    const { Drawing } = await import("/page/history.js");
    const digest = async ({ mask, sketch, color }) => {
        const bytes = await crypto.subtle.digest("SHA-256", await new Blob([mask, sketch, color]).arrayBuffer());
        return [...new Uint8Array(bytes)].map((one) => one.toString(16).padStart(2, "0")).join("");
    };
"""


@pytest.mark.parametrize(("number", "sizes"), [(200, [32, 64, 77, 128, 256, 512]), (2, [2048])], ids=["usual", "large"])
def test_maps_are_those_of_the_server(opened: Callable[..., Any], number: int, sizes: list[int]) -> None:
    given = drawings(number, number, sizes)
    found = opened().page.evaluate(
        f"""async (drawings) => {{
            {DIGEST}
            const found = [];
            for (const [strokes, size] of drawings) found.push(await digest(rasterize(strokes, size)));
            return found;
        }}""",
        given,
    )
    differ = [at for at, (strokes, size) in enumerate(given) if digest(strokes, size) != found[at]]
    assert differ == []


def test_growing_undoing_and_redoing_leave_what_the_strokes_say(opened: Callable[..., Any]) -> None:
    given = drawings(1, 30, [64, 128])
    found = opened().page.evaluate(
        f"""async (drawings) => {{
            {DIGEST}
            const found = [];
            for (const [strokes, size] of drawings) {{
                const loaded = Math.floor(strokes.length / 3);
                const drawing = new Drawing(size, {{ seed: 0, strokes: strokes.slice(0, loaded) }}, () => {{}});
                for (const stroke of strokes.slice(loaded)) {{
                    if (stroke.kind !== "line") {{
                        drawing.add([stroke]);
                        continue;
                    }}
                    drawing.begin([{{ ...stroke, points: stroke.points.slice(0, 3) }}]);
                    for (let at = 3; at < stroke.points.length; at += 3) {{
                        drawing.extend([stroke.points.slice(at, at + 3)]);
                    }}
                    drawing.commit();
                }}
                const states = [await digest(drawing.layers)];
                for (let at = 0; at < strokes.length; at++) {{
                    drawing.undo();
                    states.push(await digest(drawing.layers));
                }}
                for (let at = 0; at < strokes.length; at++) drawing.redo();
                states.push(await digest(drawing.layers));
                found.push(states);
            }}
            return found;
        }}""",
        given,
    )
    for (strokes, size), states in zip(given, found, strict=True):
        shorter = [digest(strokes[:number], size) for number in range(len(strokes), -1, -1)]
        assert states == [*shorter, shorter[0]]


def test_page_reads_what_the_server_reads(opened: Callable[..., Any]) -> None:
    good = {"format": "scfegan-edit", "version": 1, "faces": [{"strokes": [s for s, _ in drawings(2, 1, [64])][0]}]}
    line = {"kind": "line", "layer": "mask", "width": 10, "points": [0, 0, 255]}

    def with_stroke(**changes: Any) -> dict[str, Any]:
        return {**good, "faces": [{"strokes": [{**line, **changes}]}]}

    bad = [
        [],
        {**good, "version": 2},
        {**good, "faces": []},
        {**good, "more": 1},
        {**good, "faces": [{"strokes": [], "seed": -1}]},
        {**good, "faces": [{"strokes": [], "square": {"side": 0}}]},
        with_stroke(kind="toString"),
        with_stroke(points=[0, 0, 0]),
        with_stroke(points=[0, 0]),
        with_stroke(points=[0.5, 0, 255]),
        with_stroke(points=[-UNITS - 1, 0, 255]),
        with_stroke(width=0),
        with_stroke(layer="color", color="red"),
        with_stroke(kind="map", size=2, runs=[1, 3]),
    ]
    texts = [json.dumps(one) for one in [good, *bad]]
    refused = opened().page.evaluate(
        """async (texts) => {
            const { parseEdit, DocumentError } = await import("/page/document.js");
            return texts.map((text) => {
                try {
                    parseEdit(text);
                    return false;
                } catch (error) {
                    if (!(error instanceof DocumentError)) throw error;
                    return true;
                }
            });
        }""",
        texts,
    )
    assert refused == [False] + [True] * len(bad)
    edits.parse_edit(texts[0])
    for text in texts[1:]:
        with pytest.raises(edits.DataError):
            edits.parse_edit(text)
