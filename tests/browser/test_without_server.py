"""The page without a server: the same edit, in the browser alone."""

from __future__ import annotations

import functools
import http.server
import io
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from untrained import write_model

from scfegan_ray import faces, presets
from scfegan_ray.config import StorageConfig
from scfegan_ray.errors import ModelError
from scfegan_ray.serving import edits, static
from scfegan_ray.serving.editor import FaceEditor
from scfegan_ray.serving.photograph import Photograph

HOLE = {"kind": "line", "layer": "mask", "width": 20000, "points": [24000, 46000, 255, 42000, 46000, 255]}
STROKES = [
    HOLE,
    {**HOLE, "layer": "sketch", "width": 1},
    {**HOLE, "layer": "color", "color": "#c01e32", "width": 3000},
]
EDIT_OF = """async ([edit, bytes]) => {
    const { StaticBackend } = await import(location.href + "page/static.js");
    const backend = new StaticBackend();
    await backend.model();
    const photograph = new Blob([new Uint8Array(bytes)], { type: "image/png" });
    const [face] = edit.faces;
    const filled = await backend.edit(await backend.crop(photograph, face.square), face);
    const saved = await backend.save(photograph, edit, "png");
    return Promise.all([filled, saved].map(async (one) => [...new Uint8Array(await one.arrayBuffer())]));
}"""


class _Files(http.server.SimpleHTTPRequestHandler):
    extensions_map = {**http.server.SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript"}

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(presets.preset("quickstart"), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def site(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve what `jobs/edit.py --static` writes, by a server of files."""
    try:
        static._runtime()
    except ModelError as error:
        pytest.skip(str(error))
    place = tmp_path_factory.mktemp("site")
    config = replace(presets.preset("quickstart"), storage=StorageConfig(path=str(place / "runs")))
    static.write(config, str(place / "site"), model=str(model))
    handler = functools.partial(_Files, directory=str(place / "site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.network
def test_browser_alone_gives_what_a_server_gives(
    browser: Any, site: str, model: Path, face: dict[str, Any], pair: dict[str, Any]
) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 800}, locale="en-US")
    page.set_default_timeout(60_000)
    asked: list[str] = []
    faults: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(site)
    page.wait_for_selector("body[data-ready]")
    page.set_input_files("#file", pair)
    page.wait_for_selector("body[data-place=overview]")  # one places the square oneself
    page.set_input_files("#file", face)
    page.wait_for_selector("body[data-place=face]")

    photograph = faces.draw_face(0, 1036, 128).image
    stream = io.BytesIO()
    Image.fromarray(photograph).save(stream, "PNG")
    square = {"x": 0.5, "y": 0.5, "side": 0.5, "angle": 0.0}  # of the model's size, in the middle
    edit = {"format": "scfegan-edit", "version": 1, "faces": [{"square": square, "seed": 3, "strokes": STROKES}]}
    filled, saved = (
        np.asarray(Image.open(io.BytesIO(bytes(data))).convert("RGB"))
        for data in page.evaluate(EDIT_OF, [edit, list(stream.getvalue())])
    )

    editor = FaceEditor.from_uri(model)
    document = edits.parse_edit(json.dumps(edit)).faces[0]
    maps = edits.rasterize(document, 64)
    crop = Photograph.decode(stream.getvalue(), max_megapixels=1).crop(document.square, 64)
    editor.set_image(crop)
    expected = editor.edit(maps.mask, maps.sketch, maps.color, 3)
    assert np.abs(filled.astype(int) - expected).max() <= 1
    whole = photograph.copy()
    whole[32:96, 32:96] = filled
    assert np.array_equal(saved, whole)
    assert [url for url in asked if not url.startswith((site, f"blob:{site}", "data:"))] == []
    assert faults == []
    page.close()
