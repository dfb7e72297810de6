"""What the editor's server adds to the network's own work, for one client and for eight, and what it remembers."""

from __future__ import annotations

import gc
import io
import json
import logging
import statistics
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import requests
import torch
from PIL import Image

from scfegan_ray import faces
from scfegan_ray.config import Config
from scfegan_ray.models import editing
from scfegan_ray.models.generator import Generator
from scfegan_ray.serving import server
from scfegan_ray.serving.edits import UNITS
from scfegan_ray.serving.options import ServingConfig

logger = logging.getLogger(__name__)

_ROUNDS = 9
_CLIENTS = 8
_EDITS_EACH = 3
_MOST_SESSIONS, _SESSION_SECONDS = 1000, 600
_STROKES = 500
_PATIENCE_SECONDS = 600
_PHOTOGRAPH_PX = (1024, 768)
_MB = 1 << 20


def run(config: Config, options: ServingConfig) -> dict[str, Any]:
    """Serve a network whose weights are drawn, and time it.

    Args:
        config: `data.size_px`, and `model`.
        options: of the server; its port does not matter.

    Returns:
        forward_ms: the network alone, float32, on a batch of one, median; edit: through the API, with few strokes and
        with 500, `over_forward` being the median of the ratios of neighboring measurements; clients: 8 that edit at
        once; sessions: memory of the process before and after so many, in MB, each a photograph, its crop, an edit and
        an export, from the tenth on: a thousand, or as many as ten minutes allow.
    """
    size_px = config.data.size_px
    torch.manual_seed(0)
    generator = Generator(config.model).eval()
    with tempfile.TemporaryDirectory(prefix="scfegan-") as scratch:
        _write(generator, config, Path(scratch))
        began = time.monotonic()
        running = server.start(
            config,
            replace(
                options, host="127.0.0.1", port=0, max_waiting_per_client=_CLIENTS, runtime="torch", precision="float32"
            ),
            model=scratch,
        )
        started = time.monotonic() - began
        try:
            client = _Client(running.url, size_px)
            client.edit(_strokes(3))
            result: dict[str, Any] = {
                "size_px": size_px,
                "threads": torch.get_num_threads(),
                "start_seconds": round(started, 2),
                "first_edit_seconds": round(time.monotonic() - began, 2),
            }
            logger.info("%s", result)
            for measure in (
                lambda: _one_client(generator, client, size_px),
                lambda: {"clients": _many_clients(generator, running.url, size_px)},
                lambda: {"sessions": _sessions(client)},
            ):
                part = measure()
                logger.info("%s", part)
                result |= part
        finally:
            running.close()
    return result


class _Client:
    def __init__(self, url: str, size_px: int) -> None:
        self._url, self._session = url, requests.Session()
        self._crop = _png(faces.draw_face(0, 7, size_px).image)
        face = Image.fromarray(faces.draw_face(0, 8, _PHOTOGRAPH_PX[1]).image)
        self._photograph = _png(np.asarray(face.resize(_PHOTOGRAPH_PX)))

    def edit(self, face: str) -> float:
        """Return how long an edit took, in seconds."""
        began = time.perf_counter()
        self._post("edits", {"crop": self._crop}, {"face": face})
        return time.perf_counter() - began

    def session(self, face: str) -> None:
        """Do what a person does."""
        photograph = {"photograph": self._photograph}
        square = {"x": 0.5, "y": 0.375, "side": 0.5, "angle": 0.1}
        self._post("crops", photograph, {"square": json.dumps(square)})
        self._post("edits", {"crop": self._crop}, {"face": face})
        edit = {"format": "scfegan-edit", "version": 1, "faces": [{"square": square, **json.loads(face)}]}
        self._post("exports", photograph, {"edit": json.dumps(edit), "format": "jpeg"})

    def _post(self, path: str, files: dict[str, bytes], fields: dict[str, str]) -> None:
        answer = self._session.post(f"{self._url}api/{path}", files=files, data=fields, timeout=_PATIENCE_SECONDS)
        answer.raise_for_status()


def _one_client(generator: Generator, client: _Client, size_px: int) -> dict[str, Any]:
    forward = _Forward(generator, size_px)
    times: dict[str, list[float]] = {"forward": [], "few": [], "many": []}
    few, many = _strokes(3), _strokes(_STROKES)
    for _ in range(_ROUNDS):  # in turn, so that what else the machine does falls on all
        times["forward"].append(forward())
        times["few"].append(client.edit(few))
        times["many"].append(client.edit(many))
    found: dict[str, Any] = {"forward_ms": _ms(times["forward"])}
    for name, label in (("few", "edit"), ("many", f"edit_of_{_STROKES}_strokes")):
        ratios = [one / own for one, own in zip(times[name], times["forward"], strict=True)]
        found[label] = {"ms": _ms(times[name]), "over_forward": round(statistics.median(ratios), 3)}
    return found


def _many_clients(generator: Generator, url: str, size_px: int) -> dict[str, Any]:
    waits: list[float] = []
    face = _strokes(3)

    def work() -> None:
        own = _Client(url, size_px)
        ready.wait()
        for _ in range(_EDITS_EACH):
            waits.append(own.edit(face))

    ready = threading.Barrier(_CLIENTS)
    threads = [threading.Thread(target=work) for _ in range(_CLIENTS)]
    before = [_Forward(generator, size_px)() for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    forward = statistics.median([*before, *(_Forward(generator, size_px)() for _ in range(3))])
    return {
        "number": _CLIENTS,
        "edits": len(waits),
        "median_over_forward": round(statistics.median(waits) / forward, 2),
        "longest_over_forward": round(max(waits) / forward, 2),
    }


def _sessions(client: _Client) -> dict[str, Any]:
    face = _strokes(20)
    until = time.monotonic() + _SESSION_SECONDS
    count = 0
    for _ in range(10):
        client.session(face)
    gc.collect()
    before = _memory_mb()
    while count < _MOST_SESSIONS and time.monotonic() < until:
        client.session(face)
        count += 1
        if count % 100 == 0:
            logger.info("%s sessions: %.0f MB", count, _memory_mb())
    gc.collect()
    return {"number": count, "memory_mb": [round(before), round(_memory_mb())]}


class _Forward:
    def __init__(self, generator: Generator, size_px: int) -> None:
        self._generator = generator
        self._packed = torch.zeros(1, 9, size_px, size_px)

    def __call__(self) -> float:
        began = time.perf_counter()
        with torch.no_grad():
            self._generator(self._packed)
        return time.perf_counter() - began


def _strokes(count: int) -> str:
    rng = np.random.default_rng(0)
    strokes: list[dict[str, Any]] = []
    for at in range(count):
        way = np.cumsum(rng.integers(-UNITS // 100, UNITS // 100, (30, 2)), axis=0)
        points = np.clip(way + rng.integers(UNITS // 4, 3 * UNITS // 4, 2), 0, UNITS)
        layer = ("mask", "sketch", "color")[at % 3]
        stroke = {"kind": "line", "layer": layer, "width": (UNITS // 10, UNITS // 200, UNITS // 40)[at % 3]}
        stroke["points"] = np.c_[points, np.full(len(points), 255)].ravel().tolist()
        strokes.append(stroke | ({"color": "#b4825a"} if layer == "color" else {}))
    return json.dumps({"strokes": strokes})


def _write(generator: Generator, config: Config, folder: Path) -> None:
    (folder / "MLmodel").write_text("")
    artifacts = folder / "artifacts"
    artifacts.mkdir()
    editing.write_weights(generator, config, artifacts)


def _png(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _ms(seconds: list[float]) -> float:
    return round(1000 * statistics.median(seconds), 1)


def _memory_mb() -> float:
    """Return what this process holds, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / _MB
