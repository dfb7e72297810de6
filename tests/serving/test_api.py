"""Edits by HTTP, as the page and scripts ask for them, and as strangers would."""

from __future__ import annotations

import base64
import concurrent.futures
import io
import json
import signal
import socket
import sys
import threading
import time
import urllib.parse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from numpy.typing import NDArray
from PIL import Image
from servers import Editing

from scfegan_ray import faces
from scfegan_ray.config import Config, StorageConfig
from scfegan_ray.data import align
from scfegan_ray.errors import ConfigError, ModelError
from scfegan_ray.serving import api, edits, replay, server
from scfegan_ray.serving.current import CurrentModel
from scfegan_ray.serving.editor import FaceEditor
from scfegan_ray.serving.options import ServingConfig
from scfegan_ray.serving.photograph import Photograph
from scfegan_ray.serving.replay import edit_photograph

PORTRAIT = faces.draw_face(0, 7, 96).image
HOLE = {"kind": "line", "layer": "mask", "width": 20000, "points": [20000, 30000, 255, 40000, 30000, 255]}
LINE = {"kind": "line", "layer": "sketch", "width": 1, "points": [20000, 30000, 255, 40000, 34000, 255]}
RED = {"kind": "polygon", "layer": "color", "color": "#c81020", "points": [0, 0, 32768, 0, 32768, 65536, 0, 65536]}
FACE = {"seed": 5, "strokes": [HOLE, LINE, RED]}


def png(pixels: NDArray[np.uint8], form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def pixels_of(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)))


CROP = png(faces.draw_face(0, 7, 32).image)


@pytest.fixture
def no_faces(monkeypatch: pytest.MonkeyPatch) -> None:
    class Finder:
        def find(self, image: NDArray[np.uint8]) -> list[align.Face]:
            return []

    monkeypatch.setattr(align, "FaceFinder", Finder)


def test_model_is_told(serving: Editing, model_folder: Path) -> None:
    answer = serving.session.get(f"{serving.url}api/model").json()
    assert answer["size_px"] == 32
    assert answer["model_uri"] == str(model_folder)
    assert answer["limits"] == {"upload_bytes": 2 << 20, "megapixels": 1.0, "edit_bytes": edits.MAX_BYTES}


@pytest.mark.parametrize("found", ["none", "some", "failed"])
def test_photograph_is_looked_at(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str, serving: Editing
) -> None:
    class Finder:
        def __init__(self) -> None:
            if found == "failed":
                raise ModelError("no network")

        def find(self, image: NDArray[np.uint8]) -> list[align.Face]:
            if found == "none":
                return []
            return [
                align.Face(align.Square(48.0, 48.0, 96.5, 0.001), 0.9),
                align.Face(align.Square(24.0, 48.0, 30.0, 0.2), 0.8, "too small"),
            ]

    monkeypatch.setattr(align, "FaceFinder", Finder)
    tools = api._Tools()
    if found == "none":  # one that is square was cut out around a face, though perhaps a drawn one
        assert tools.find(PORTRAIT) == ([align.Face(align.Square(48.0, 48.0, 96.0, 0.0), 0.0)], "")
    faces_found, message = tools.find(PORTRAIT if found == "some" else PORTRAIT[:, 8:])
    assert bool(faces_found) is (found == "some")
    assert (
        message
        == {
            "none": "no face was found; drag the square onto one",
            "some": "",
            "failed": "faces cannot be looked for: no network",
        }[found]
    )
    if found == "some":  # one that fills the photograph already is taken as it is
        assert [face.square for face in faces_found] == [
            align.Square(48.0, 48.0, 96.0, 0.0), align.Square(24.0, 48.0, 30.0, 0.2)
        ]  # fmt: skip


def test_one_face_finder_looks_at_one_photograph_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Finder:
        busy = False

        def find(self, image: NDArray[np.uint8]) -> list[align.Face]:
            assert not self.busy
            self.busy = True
            time.sleep(0.05)
            self.busy = False
            return []

    monkeypatch.setattr(align, "FaceFinder", Finder)
    tools = api._Tools()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(tools.find, [PORTRAIT] * 8))


@pytest.mark.usefixtures("no_faces")
def test_photograph_crop_edit_and_export(serving: Editing, model_folder: Path) -> None:
    photograph = png(np.tile(PORTRAIT, (1, 2, 1)))
    seen = serving.post("photographs", {"photograph": photograph}, {}).json()
    assert (seen["width"], seen["height"], seen["faces"]) == (192, 96, [])
    assert "no face was found" in seen["message"]
    kind, _, preview = seen["preview"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert pixels_of(base64.b64decode(preview)).shape == (96, 192, 3)

    square = {"x": 0.75, "y": 0.25, "side": 0.5, "angle": 0.0}  # the right half
    crop = serving.post("crops", {"photograph": photograph}, {"square": square})
    assert crop.headers["Content-Type"] == "image/png"
    opened = Photograph.decode(photograph, max_megapixels=1)
    where = edits.Square(**square)
    assert np.array_equal(pixels_of(crop.content), opened.crop(where, 32))

    edited = serving.post("edits", {"crop": crop.content}, {"face": FACE})
    assert urllib.parse.unquote(edited.headers["X-Model-Uri"]) == str(model_folder)  # whose name is no ASCII
    editor = FaceEditor.from_uri(model_folder)
    maps = edits.rasterize(edits.parse_face(json.dumps(FACE)), 32)
    editor.set_image(opened.crop(where, 32))
    expected = editor.edit(maps.mask, maps.sketch, maps.color, 5)
    assert np.array_equal(pixels_of(edited.content), expected)

    document = {"format": "scfegan-edit", "version": 1, "faces": [{"square": square, **FACE}]}
    saved = serving.post("exports", {"photograph": photograph}, {"edit": document, "format": "png"})
    assert saved.headers["Content-Disposition"] == 'attachment; filename="edited.png"'
    edit = edits.parse_edit(json.dumps(document))
    assert saved.content == edit_photograph(editor, opened, edit, "png")
    before, after = pixels_of(photograph), pixels_of(saved.content)
    assert np.array_equal(after[:, :96], before[:, :96])
    assert (after[:, 96:] != before[:, 96:]).any()
    assert serving.post("exports", {"photograph": photograph}, {"edit": document, "format": "jpeg"}).content[:2] == (
        b"\xff\xd8"
    )


def test_variants_differ_by_seed(serving: Editing) -> None:
    answer = serving.post("variants", {"crop": CROP}, {"face": FACE, "seeds": [5, 6]}).json()
    first, second = (pixels_of(base64.b64decode(one)) for one in answer["pictures"])
    assert np.array_equal(first, pixels_of(serving.post("edits", {"crop": CROP}, {"face": FACE}).content))
    assert not np.array_equal(first, second)


def ask_for_batch(serving: Editing, crops: int, faces: list[dict[str, Any]]) -> requests.Response:
    """Send so many crops, each a bit brighter than the last."""
    files = [("crops", png(pixels_of(CROP) // 2 + 10 * at)) for at in range(crops)]
    data = [("faces", json.dumps(face)) for face in faces]
    return requests.post(f"{serving.url}api/batches", files=files, data=data, timeout=60)


def test_batch_is_as_edits_one_by_one(serving: Editing) -> None:
    asked = [FACE, {**FACE, "seed": 9}, FACE]
    answer = ask_for_batch(serving, 3, asked)
    pictures = [base64.b64decode(one) for one in answer.json()["pictures"]]
    assert len(set(pictures)) == 3
    for at, (picture, face) in enumerate(zip(pictures, asked, strict=True)):
        crop = png(pixels_of(CROP) // 2 + 10 * at)
        assert picture == serving.post("edits", {"crop": crop}, {"face": face}).content
    for num_crops, num_faces in ((2, 1), (1, 2), (9, 9)):
        refused = ask_for_batch(serving, num_crops, [FACE] * num_faces)
        assert refused.status_code in (400, 422)
        assert "\n" not in refused.json()["error"]
    assert ask_for_batch(serving, 2, [FACE]).json()["error"] == "2 crops and 1 faces; give one face for each crop"


def test_maps_are_taken_as_strokes_are(serving: Editing) -> None:
    maps = edits.rasterize(edits.parse_face(json.dumps(FACE)), 32)
    files = {"crop": CROP, "mask": png(maps.mask * 255), "sketch": png(maps.sketch * 255), "color": png(maps.color)}
    answer = serving.post("maps", files, {"seed": "5"})
    assert answer.content == serving.post("edits", {"crop": CROP}, {"face": FACE}).content


def test_guides_are_strokes(serving: Editing) -> None:
    answer = serving.post("guides", {"crop": CROP}, {}).json()
    maps = edits.rasterize(edits.parse_face(json.dumps(answer)), 32)
    assert maps.sketch.any()
    assert (maps.color.any(axis=2)).all()


def test_api_is_documented(serving: Editing) -> None:
    described = serving.session.get(f"{serving.url}api/openapi.json").json()
    paths = {"model", "photographs", "crops", "guides", "edits", "variants", "batches", "maps", "exports"}
    assert set(described["paths"]) == {f"/api/{name}" for name in paths}


BAD = [
    ("edits", {"crop": CROP}, {"face": "{"}, 422, "no JSON"),
    ("edits", {"crop": CROP}, {}, 422, "body.face"),
    ("edits", {}, {"face": FACE}, 422, "body.crop"),
    ("edits", {"crop": png(PORTRAIT)}, {"face": FACE}, 422, "megapixels"),
    ("edits", {"crop": png(PORTRAIT[:20, :20])}, {"face": FACE}, 422, "20x20 pixels"),
    ("edits", {"crop": b"text"}, {"face": FACE}, 422, "not a readable image"),
    ("variants", {"crop": CROP}, {"face": FACE, "seeds": "[1"}, 422, "seeds is no JSON list"),
    ("variants", {"crop": CROP}, {"face": FACE, "seeds": list(range(9))}, 422, "1 to 8"),
    ("variants", {"crop": CROP}, {"face": FACE, "seeds": [-1]}, 422, "the seed is -1"),
    ("maps", {"crop": CROP, "mask": CROP, "sketch": CROP, "color": CROP}, {"seed": "-1"}, 422, "body.seed"),
    ("photographs", {"photograph": b""}, {}, 422, "empty file"),
    ("photographs", {"photograph": b"GIF89a"}, {}, 422, "not a readable image"),
    ("photographs", {"photograph": bytes(11 << 20)}, {}, 413, "larger than 11 MB"),
    ("crops", {"photograph": png(PORTRAIT)}, {"square": {"side": 0}}, 422, "outside any photograph"),
    ("exports", {"photograph": png(PORTRAIT)}, {"edit": {}}, 422, "no edit"),
    ("exports", {"photograph": png(PORTRAIT)}, {"edit": {}, "format": "svg"}, 422, "body.format"),
    ("nothing", {}, {"a": "b"}, 404, "Not Found"),
]


@pytest.mark.parametrize(("path", "files", "fields", "status", "why"), BAD, ids=[f"{one[0]}-{one[4]}" for one in BAD])
def test_bad_requests_are_one_line(
    serving: Editing, path: str, files: dict[str, bytes], fields: dict[str, Any], status: int, why: str
) -> None:
    answer = serving.post(path, files, fields)
    assert answer.status_code == status
    assert why in answer.json()["error"]
    assert "\n" not in answer.json()["error"]
    assert serving.session.get(f"{serving.url}api/health").ok


def test_a_bomb_is_refused_from_its_header(serving: Editing) -> None:
    stream = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(stream, "PNG")
    began = time.monotonic()
    answer = serving.post("photographs", {"photograph": stream.getvalue()}, {})
    assert (answer.status_code, answer.json()["error"]) == (422, "more than 1 megapixels")
    assert time.monotonic() - began < 5


def test_long_strokes_are_refused(serving: Editing) -> None:
    long = {"strokes": [{**HOLE, "points": [1, 2, 3] * 700_000}]}
    answer = serving.post("edits", {"crop": CROP}, {"face": long})
    assert answer.status_code == 422
    answer = serving.post("edits", {"crop": CROP}, {"face": " " * (9 << 20)})
    assert answer.status_code in (400, 413)
    assert "error" in answer.json()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
    ],
)
def test_another_page_cannot_drive_the_editor(serving: Editing, headers: dict[str, str], status: int) -> None:
    for path in ("edits", "photographs"):
        answer = serving.post(path, {"crop": CROP, "photograph": CROP}, {"face": FACE}, headers=headers)
        assert answer.status_code == status
    own = {"Origin": serving.url.rstrip("/")}
    assert serving.post("edits", {"crop": CROP}, {"face": FACE}, headers=own).ok


def test_the_page_may_be_opened_from_elsewhere_but_not_framed(serving: Editing) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    answer = serving.session.get(serving.url, headers=link)
    assert answer.status_code == 200
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    framed = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    assert serving.session.get(f"{serving.url}api/model", headers=framed).status_code == 403


def raw(url: str, request: bytes, *, wait: float = 10.0) -> bytes:
    """Send bytes as they stand, and return what comes back until the end."""
    address = urllib.parse.urlsplit(url)
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=wait) as link:
        link.sendall(request)
        got = b""
        while more := link.recv(65536):
            got += more
        return got


@pytest.mark.parametrize(
    "path",
    [
        "/page/../api.py",
        "/page/%2e%2e/api.py",
        "/page/..%2fapi.py",
        "/page//etc/passwd",
        "/page/%00",
        "/../../etc/passwd",
    ],
)
def test_no_other_file_is_served(serving: Editing, path: str) -> None:
    got = raw(serving.url, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
    assert got.split(b" ")[1] in (b"404", b"400", b"405")
    assert b"import" not in got
    assert b"root:" not in got


def test_who_sends_slowly_is_not_waited_for(serving: Editing) -> None:
    head = b"POST /api/photographs HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: 1000\r\n"
    kind = b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
    began = time.monotonic()
    assert b"408" in raw(serving.url, head + kind).split(b"\r\n")[0]
    assert time.monotonic() - began < 8


def test_more_than_was_announced_is_not_read(serving: Editing) -> None:
    head = b"POST /api/photographs HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n"
    kind = b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    start = b'--x\r\nContent-Disposition: form-data; name="photograph"; filename="a"\r\n\r\n'
    chunk = start + bytes(12 << 20)
    try:
        got = raw(serving.url, head + kind + b"%x\r\n" % len(chunk) + chunk + b"\r\n0\r\n\r\n")
    except ConnectionError:
        got = b"413"  # who goes on sending may miss the answer
    assert b"413" in got.split(b"\r\n")[0]
    assert serving.session.get(f"{serving.url}api/health").ok


class Slow:
    """An editor whose edits end when they are told to."""

    def __init__(self) -> None:
        self.ends, self.began = threading.Event(), 0

    def work(self) -> None:
        self.began += 1
        assert self.ends.wait(20)


def slow_edits(monkeypatch: pytest.MonkeyPatch) -> Slow:
    """Let each edit wait until it is told to end."""
    slow, original = Slow(), FaceEditor.edit

    def edit(self: FaceEditor, *maps: Any, **more: Any) -> NDArray[np.uint8]:
        slow.work()
        return original(self, *maps, **more)

    monkeypatch.setattr(FaceEditor, "edit", edit)
    return slow


def test_queue_is_bounded_and_in_order(serving: Editing, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = slow_edits(monkeypatch)

    def ask() -> requests.Response:
        return requests.post(
            f"{serving.url}api/edits", files={"crop": CROP}, data={"face": json.dumps(FACE)}, timeout=60
        )

    with concurrent.futures.ThreadPoolExecutor(9) as pool:
        asked = [pool.submit(ask) for _ in range(9)]  # one more than a client may
        done, waiting = concurrent.futures.wait(asked, 30, concurrent.futures.FIRST_COMPLETED)
        (refused,) = [one.result() for one in done]
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) >= 1
        assert "try again" in refused.json()["error"]
        assert requests.get(f"{serving.url}api/model", timeout=10).ok  # what needs no model is answered
        slow.ends.set()
        assert all(one.result().ok for one in waiting)
    assert slow.began == 8
    assert ask().ok


def test_who_wants_one_picture_does_not_wait_for_several_of_others(
    serving: Editing, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, seeds, fill = slow_edits(monkeypatch), [], replay.fill

    def noted(editor: FaceEditor, crop: NDArray[np.uint8], face: edits.FaceEdit) -> Any:
        seeds.append(face.seed)
        return fill(editor, crop, face)

    monkeypatch.setattr(replay, "fill", noted)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        asked = [
            pool.submit(serving.post, "variants", {"crop": CROP}, {"face": FACE, "seeds": [1, 2, 3]}),
            pool.submit(ask_for_batch, serving, 3, [{**FACE, "seed": seed} for seed in (4, 5, 6)]),
        ]
        while slow.began < 1:
            time.sleep(0.01)
        time.sleep(0.5)
        asked.append(pool.submit(serving.post, "edits", {"crop": CROP}, {"face": {**FACE, "seed": 9}}))
        time.sleep(0.5)
        slow.ends.set()
        assert all(one.result().ok for one in asked)
    assert sorted(seeds) == [1, 2, 3, 4, 5, 6, 9]
    assert seeds.index(9) == 2


def test_who_has_gone_is_not_worked_for(serving: Editing, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = slow_edits(monkeypatch)

    def ask(timeout: float) -> requests.Response:
        return requests.post(
            f"{serving.url}api/edits", files={"crop": CROP}, data={"face": json.dumps(FACE)}, timeout=timeout
        )

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, 60)
        while slow.began < 1:
            time.sleep(0.01)
        with pytest.raises(requests.Timeout):
            ask(0.5)
        time.sleep(0.5)
        slow.ends.set()
        assert first.result().ok
    assert ask(60).ok
    assert slow.began == 2


def test_a_token_is_wanted_where_others_can_reach_it(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(Config(), storage=StorageConfig(path=str(tmp_path)))
    options = ServingConfig(host="0.0.0.0", port=0)
    with pytest.raises(ConfigError, match="set SCFEGAN_TOKEN"):
        server.token_of(options)
    running = server.start(config, options, model=str(model_folder))
    address = urllib.parse.urlsplit(running.url)
    token = urllib.parse.parse_qs(address.query)["token"][0]
    url = f"http://127.0.0.1:{address.port}/"
    try:
        assert len(token) > 20
        for path in ("", "api/model", "page/main.js", "?token=wrong"):
            answer = requests.get(url + path, timeout=10)
            assert answer.status_code == 401
            assert token not in answer.text
        assert requests.get(f"{url}api/health", timeout=10).ok
        assert requests.get(f"{url}api/model", headers={"Authorization": f"Bearer {token}"}, timeout=10).ok
        with requests.Session() as session:
            opened = session.get(f"{url}?token={token}", timeout=10)
            assert opened.url == url  # the token does not stay in the address
            assert session.get(f"{url}api/model", timeout=10).ok
            cookie = opened.history[0].headers["Set-Cookie"]
            assert "HttpOnly" in cookie
            assert "SameSite=Strict" in cookie
            other = {"Origin": "http://evil.example"}
            assert session.get(f"{url}api/model", headers=other, timeout=10).status_code == 403
    finally:
        running.close()
    monkeypatch.setenv("SCFEGAN_TOKEN", "mine & only")
    assert server.url_of(options, 1, server.token_of(options)).endswith(":1/?token=mine%20%26%20only")


def test_a_port_in_use_is_said(serving: Editing, model_folder: Path) -> None:
    port = urllib.parse.urlsplit(serving.url).port or 0
    with pytest.raises(ConfigError, match=f"cannot listen at 127.0.0.1 port {port}"):
        server.start(Config(), ServingConfig(port=port), model=str(model_folder))


@pytest.mark.parametrize(
    "wrong", [{"port": 70000}, {"max_upload_mb": 0}, {"poll_seconds": 0.0}, {"replicas": -1}, {"max_waiting": 0}]
)
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ServingConfig(**wrong)


@pytest.mark.parametrize(("interrupted_after", "most_seconds"), [([0.3], 30.0), ([0.3, 0.8], 4.0)])
def test_ctrl_c_amid_an_edit_is_waited_for_until_the_loop_has_ended(
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    interrupted_after: list[float],
    most_seconds: float,
) -> None:
    config = replace(Config(), storage=StorageConfig(path=str(tmp_path)))
    running = server.start(config, ServingConfig(port=0, runtime="torch", precision="float32"), model=str(model_folder))
    slow = slow_edits(monkeypatch)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(
            requests.post, f"{running.url}api/edits", files={"crop": CROP}, data={"face": json.dumps(FACE)}, timeout=60
        )
        while not slow.began:
            time.sleep(0.01)
        for seconds in interrupted_after:
            threading.Timer(seconds, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT]).start()
        began = time.monotonic()
        running.wait()  # five seconds for the answer, unless Ctrl-C comes once more
        assert time.monotonic() - began < most_seconds
        assert running._thread.ident not in sys._current_frames()
        slow.ends.set()
        assert asked.result().json() == {"error": "the editor has ended; start it again"}
    time.sleep(0.2)
    assert "Event loop is closed" not in caplog.text
    assert "Traceback" not in capfd.readouterr().err


def test_ctrl_c_as_it_starts_leaves_no_server(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def follow(self: CurrentModel) -> None:
        raise KeyboardInterrupt

    def servers() -> set[int | None]:
        return {one.ident for one in threading.enumerate() if one.name == "scfegan-server"}

    monkeypatch.setattr(CurrentModel, "follow", follow)
    before = servers()
    config = replace(Config(), storage=StorageConfig(path=str(tmp_path)))
    with pytest.raises(KeyboardInterrupt):
        server.start(config, ServingConfig(port=0), model=str(model_folder))
    time.sleep(0.1)  # the thread has done its work, and is about to be gone
    assert servers() == before
