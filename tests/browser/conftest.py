"""Chromium, the real server with a small untrained model, and what no page may do."""

from __future__ import annotations

import contextlib
import io
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import uvicorn
from numpy.typing import NDArray
from PIL import Image

from scfegan_ray import faces, presets
from scfegan_ray.data import align
from scfegan_ray.models.generator import Generator
from scfegan_ray.serving import api
from scfegan_ray.serving.current import CurrentModel, ServedModel
from scfegan_ray.serving.editor import FaceEditor
from scfegan_ray.serving.loading import LoadedModel
from scfegan_ray.serving.options import ServingConfig

SIZE_PX = 64
WAIT_MS = 20_000


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "browser":
            item.add_marker(pytest.mark.browser)


def png(pixels: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="session")
def face() -> dict[str, Any]:
    """A photograph that is all of one face, as Playwright takes files."""
    return {"name": "face.png", "mimeType": "image/png", "buffer": png(faces.draw_face(0, 1036, 128).image)}


@pytest.fixture(scope="session")
def pair() -> dict[str, Any]:
    """A photograph of two faces side by side."""
    pixels = np.hstack([faces.draw_face(0, number, 128).image for number in (7, 1036)])
    return {"name": "pair.png", "mimeType": "image/png", "buffer": png(pixels)}


def _find(_: object, pixels: NDArray[np.uint8]) -> tuple[list[align.Face], str]:
    """Stand for the detector, whose weights are fetched: one face for each square of a row."""
    high = pixels.shape[0]
    squares = [align.Square(high * (at + 0.5), high / 2, float(high), 0.0) for at in range(pixels.shape[1] // high)]
    return [align.Face(square, 1.0) for square in squares], ""


# Of one module each, so that neither the stand-in nor Playwright's event loop, which lives in the main thread, is there
# in the tests of others: a signal amid that loop ends the process.
@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Serve the editor."""
    config = presets.preset("quickstart")
    assert config.data.size_px == SIZE_PX
    torch.manual_seed(0)
    loaded = LoadedModel("models:/tiny/1", "tiny-1", Generator(config.model), config)
    editor = FaceEditor(loaded.generator, config)
    served = ServedModel(loaded, "CC0-1.0", editor, editor)
    current = cast(CurrentModel, SimpleNamespace(model=served))
    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as listening:
        patch.setattr(api._Tools, "find", _find)
        app = api.create_app(current, ServingConfig())
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start Chromium: the system's, or Playwright's own."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        found = shutil.which("chromium")
        try:
            started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"no Chromium here: {str(error).splitlines()[0]}")
        yield started
        started.close()


@dataclass
class Opened:
    """A page, and what it did that it must not."""

    page: Any
    faults: list[str] = field(default_factory=list)

    def goto(self, url: str) -> None:
        self.page.goto(url)
        self.page.wait_for_selector("body[data-ready]")

    def open(self, photograph: dict[str, Any], place: str = "face") -> None:
        self.page.set_input_files("#file", photograph)
        self.page.wait_for_selector(f"body[data-place={place}]")
        if place == "face":
            self.page.wait_for_selector("#stage:not(.loading)")

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Return where in the window a point of the square is; both from 0 to 1."""
        box = self.page.locator("#world").bounding_box()
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    def draw(self, *points: tuple[float, float], button: str = "left") -> None:
        self.page.mouse.move(*self.point(*points[0]))
        self.page.mouse.down(button=button)
        for x, y in points[1:]:
            self.page.mouse.move(*self.point(x, y), steps=4)
        self.page.mouse.up(button=button)

    def act(self, name: str) -> None:
        """Push the button of an action."""
        self.page.locator(f"[data-act={name}]:visible").first.click()

    def says(self, text: str) -> str:
        """Wait until the status has a text; return all that it says then."""
        self.page.locator("#status", has_text=text).wait_for()
        said: str = self.page.locator("#status").inner_text()
        return said

    def status_kind(self) -> str:
        """Return what the status is: an error, waiting, or neither."""
        kind: str = self.page.locator("#status").get_attribute("data-kind") or ""
        return kind

    def layer(self, name: str) -> NDArray[np.uint8]:
        """Return the pixels of a layer, once they are drawn: (S, S, 4) uint8."""
        values = self.page.evaluate(
            """async (name) => {
                await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
                const canvas = document.getElementById(`layer-${name}`);
                const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
                return [...data];
            }""",
            name,
        )
        return np.array(values, np.uint8).reshape(SIZE_PX, SIZE_PX, 4)

    def count(self, name: str) -> int:
        """Return how many pixels of a layer are marked."""
        return int((self.layer(name)[..., 3] > 0).sum())

    def wait_for_marks(self, name: str) -> None:
        """Wait until an empty layer has marked pixels."""
        self.page.wait_for_function(
            """(name) => {
                const canvas = document.getElementById(`layer-${name}`);
                const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
                return data.some((value, at) => at % 4 === 3 && value > 0);
            }""",
            arg=name,
        )

    def saved(self, act: str) -> bytes:
        """Save something; return the file."""
        self.page.locator("#save-button").click()
        with self.page.expect_download() as download:
            self.act(act)
        return download.value.path().read_bytes()


def _pretend(page: Any, size_px: int) -> None:
    """Let the page believe that the model is larger."""

    def model(route: Any) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json={**answer.json(), "size_px": size_px})

    page.route("**/api/model", model)
    crop = png(np.zeros((size_px, size_px, 3), np.uint8))
    page.route("**/api/crops", lambda route: route.fulfill(body=crop, content_type="image/png"))


@pytest.fixture
def opened(browser: Any, url: str) -> Iterator[Callable[..., Opened]]:
    """Give windows; none may log an error, or ask anybody but the server."""
    with contextlib.ExitStack() as stack:
        windows: list[Opened] = []

        def open_window(init_script: str = "", size_px: int = SIZE_PX, **options: Any) -> Opened:
            context = browser.new_context(
                **{"viewport": {"width": 1280, "height": 800}, "locale": "en-US", "reduced_motion": "reduce", **options}
            )
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(WAIT_MS)
            window = Opened(page)
            windows.append(window)

            def logged(message: Any) -> None:
                if message.type == "error":
                    window.faults.append(message.text)

            def asked(request: Any) -> None:
                if not request.url.startswith((url, "data:", f"blob:{url}")):
                    window.faults.append(f"asked {request.url}")

            page.add_init_script(init_script)
            if size_px != SIZE_PX:
                _pretend(page, size_px)
            page.on("console", logged)
            page.on("pageerror", lambda error: window.faults.append(str(error)))
            page.on("request", asked)
            window.goto(url)
            return window

        yield open_window
        assert [fault for window in windows for fault in window.faults] == []
