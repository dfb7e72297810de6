"""`jobs/edit.py` as a user runs it: it serves a registered version, replays an edit, and runs copies on a cluster."""

from __future__ import annotations

import contextlib
import io
import json
import re
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image
from running import Run, run, start
from servers import Editing, free_port

from scfegan_ray import faces
from scfegan_ray.config import Config, StorageConfig
from scfegan_ray.errors import ScFeganError
from scfegan_ray.serving.replay import replay

pytestmark = pytest.mark.ray

HOLE = {"kind": "line", "layer": "mask", "width": 20000, "points": [20000, 30000, 255, 40000, 30000, 255]}
FACE = {"seed": 5, "strokes": [HOLE]}


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("photograph") / "a face.png"
    Image.fromarray(faces.draw_face(0, 7, 96).image).save(file)
    return file


@contextlib.contextmanager
def served(whole: Run, folder: Path, *arguments: str) -> Iterator[tuple[Editing, dict[str, Any]]]:
    """Serve what a run registered, and end it as its user would."""
    runs = str(whole.folder / "runs")
    log = folder / "edit.log"
    with start("edit", "--storage.path", runs, *arguments, cwd=folder, log=log) as process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            assert line, log.read_text()
            answer: dict[str, Any] = json.loads(line)
            with requests.Session() as session:
                yield Editing(answer["url"], session), answer
            process.send_signal(signal.SIGINT)
            assert process.wait(120) == 0
        finally:
            process.kill()


@pytest.fixture(scope="module")
def document(whole: Run, photograph: Path) -> tuple[dict[str, Any], bytes]:
    """Draw by a server of one process; give the document and what it made of the photograph."""
    with served(whole, photograph.parent, "--port", "0") as (editing, answer):
        assert answer["model_uri"] == whole.result["model_uri"]
        assert "<html" in editing.session.get(answer["url"]).text
        document = {"format": "scfegan-edit", "version": 1, "model": answer["model_uri"], "faces": [FACE]}
        saved = editing.post("exports", {"photograph": photograph.read_bytes()}, {"edit": document})
        assert saved.ok, saved.text
        assert saved.headers["X-Model-Uri"] == whole.result["model_uri"]
    return document, saved.content


def test_replay_writes_the_same_bytes(
    whole: Run, photograph: Path, document: tuple[dict[str, Any], bytes], tmp_path: Path
) -> None:
    drawn, saved = document
    edit, out = tmp_path / "edit.json", tmp_path / "new folder" / "out.png"
    edit.write_text(json.dumps(drawn))
    done = run(
        "edit", "--storage.path", str(whole.folder / "runs"), "--replay", str(edit), str(photograph), str(out),
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"picture": str(out), "model_uri": whole.result["model_uri"]}
    assert out.read_bytes() == saved
    before, after = (np.asarray(Image.open(file)) for file in (photograph, io.BytesIO(saved)))
    assert (before != after).any()
    assert np.array_equal(before[:20], after[:20])


@pytest.mark.parametrize(
    ("edit", "photograph_name", "out", "why"),
    [
        ("{}", "", "out.png", "edit.json: this is no edit"),
        ("", "missing.jpg", "out.png", "cannot read"),
        ("", "edit.json", "out.png", "edit.json: not a readable image"),
        ("", "", "out.gif", "names no format; end it with one of .png, .jpg, .jpeg"),
        ("", "", "edit.json/out.png", "cannot write"),
    ],
)
def test_replay_says_what_is_wrong(
    whole: Run, photograph: Path, document: tuple[dict[str, Any], bytes], tmp_path: Path,
    edit: str, photograph_name: str, out: str, why: str,
) -> None:  # fmt: skip
    config = replace(Config(), storage=StorageConfig(path=str(whole.folder / "runs")))
    (tmp_path / "edit.json").write_text(edit or json.dumps(document[0]))
    source = tmp_path / photograph_name if photograph_name else photograph
    with pytest.raises(ScFeganError, match=re.escape(why)):
        replay(config, str(tmp_path / "edit.json"), str(source), str(tmp_path / out))
    assert not list(tmp_path.glob("out*"))


def test_any_copy_on_a_cluster_answers(
    whole: Run, photograph: Path, document: tuple[dict[str, Any], bytes], tmp_path: Path
) -> None:
    drawn, saved = document
    arguments = ("--port", str(free_port()), "--replicas", "2", "--cpus-per-replica", "0.5")
    with served(whole, tmp_path, *arguments) as (editing, answer):
        assert answer["model_uri"] == whole.result["model_uri"]
        for _ in range(6):
            got = editing.post("exports", {"photograph": photograph.read_bytes()}, {"edit": drawn})
            assert got.content == saved
        assert editing.post("exports", {"photograph": b"x"}, {"edit": drawn}).status_code == 422
        assert editing.post("edits", {}, {}, headers={"Origin": "http://evil.example"}).status_code == 403
