"""What is listed, what goes, and what stays because somebody uses it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from running import ROOT

from scfegan_ray import cache, cleaning, storage
from scfegan_ray.config import Config
from scfegan_ray.errors import DataError
from scfegan_ray.weights import HED_WEIGHTS

LONG_AGO = time.time() - 7 * 24 * 3600


@pytest.fixture(autouse=True)
def _own_ray_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "ray-files"))


def put(place: Path, content: bytes = b"1234567890", when: float = LONG_AGO) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)
    for one in (place, place.parent, place.parent.parent):
        os.utime(one, (when, when))
    return place


def dataset(folder: Path, fingerprint: str | None, when: float = LONG_AGO) -> Path:
    put(folder / "data" / "part-00000.parquet", when=when)
    if fingerprint:
        put(folder / "dataset.json", json.dumps({"fingerprint": fingerprint}).encode(), when)
    return folder


def names(lines: list[dict[str, Any]]) -> list[str]:
    return sorted(Path(line["place"]).name for line in lines)


def test_only_what_no_run_needs_goes(tiny: Config) -> None:
    root = Path(tiny.storage.path)
    dataset(root / "prepared" / "used", "aa")
    dataset(root / "prepared" / "of-a-trial", "bb")
    dataset(root / "prepared" / "unused", "cc")
    dataset(root / "prepared" / "fresh", "dd", time.time())
    dataset(root / "prepared" / "begun-today", None, time.time())
    dataset(root / "prepared" / "begun-long-ago", None)
    put(root / "prepared" / "thesis" / "chapter.tex")
    put(root / "mine" / "run.json", b'{"data_fingerprint": "aa"}')
    put(root / "search" / "trial-1" / "run.json", b'{"data_fingerprint": "bb"}')
    before = sorted(root.rglob("*"))
    listed = cleaning.clean(tiny, delete=False)
    assert sorted(root.rglob("*")) == before, "listing changes nothing"
    assert names(listed["unused"]) == ["begun-long-ago", "unused"] and listed["deleted"] == []
    assert listed["unused_bytes"] == 10 + 10 + len('{"fingerprint": "cc"}')
    reasons = {Path(line["place"]).name: line["reason"] for line in listed["kept"]}
    assert reasons["used"] == "run mine was trained on it"
    assert reasons["of-a-trial"] == "run search/trial-1 was trained on it"
    assert reasons["thesis"] == "it holds other files"
    done = cleaning.clean(tiny, delete=True)
    assert names(done["deleted"]) == names(listed["unused"]) and done["deleted_bytes"] == listed["unused_bytes"]
    assert sorted(os.listdir(root / "prepared")) == ["begun-today", "fresh", "of-a-trial", "thesis", "used"]
    assert cleaning.clean(tiny, delete=True)["deleted"] == []


def test_damaged_record_of_a_run_stops_it(tiny: Config) -> None:
    root = Path(tiny.storage.path)
    dataset(root / "prepared" / "perhaps-used", "aa")
    put(root / "mine" / "run.json", b"{")
    with pytest.raises(DataError, match=r"mine/run\.json is damaged .*; delete that run's folder"):
        cleaning.clean(tiny, delete=True)
    assert (root / "prepared" / "perhaps-used").exists()


def test_links_are_not_followed(tiny: Config, tmp_path: Path) -> None:
    precious = dataset(tmp_path / "precious", "aa")
    folder = Path(tiny.storage.path, "prepared")
    folder.mkdir(parents=True)
    (folder / "link").symlink_to(precious)
    inside = dataset(folder / "unused", "bb")
    (inside / "data" / "part-00001.parquet").symlink_to(precious / "dataset.json")
    for one in (inside / "data", inside / "data" / "part-00001.parquet"):
        os.utime(one, (LONG_AGO, LONG_AGO), follow_symlinks=False)
    done = cleaning.clean(tiny, delete=True)
    assert [line["reason"] for line in done["kept"]] == ["a link"] and names(done["deleted"]) == ["unused"]
    assert (precious / "dataset.json").exists() and (precious / "data" / "part-00000.parquet").exists()


def test_copies_that_are_held_stay(tiny: Config, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    held = put(folder / "prepared" / "aa.arrow")
    put(folder / "prepared" / "bb.arrow")
    put(folder / "prepared" / "bb.arrow.lock", b"")
    put(folder / "prepared" / ".cc.arrow.0.part")
    put(folder / "prepared" / "tmpabcd1234")
    put(folder / Path(HED_WEIGHTS.member).name)
    put(folder / "letter.txt")
    handle = cache.hold(held)
    done = cleaning.clean(tiny, delete=True)
    os.close(handle)
    assert names(done["kept"]) == ["aa.arrow"] and done["kept"][0]["reason"] == "in use by a process"
    assert done["deleted_bytes"] == 40
    left = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert left == ["letter.txt", "prepared/aa.arrow"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root makes files of somebody else")
def test_other_peoples_files_stay(tiny: Config, tmp_path: Path) -> None:
    copy = put(tmp_path / "cache" / "prepared" / "aa.arrow")
    session = put(tmp_path / "ray-files" / "ray" / "session_1" / "log").parent
    folder = dataset(Path(tiny.storage.path, "prepared", "theirs"), "aa")
    for place in (copy, session, folder):
        os.chown(place, 65534, 65534)
    done = cleaning.clean(tiny, delete=True)
    assert {line["reason"] for line in done["kept"]} == {"another user's"} and len(done["kept"]) == 3
    assert copy.exists() and session.exists() and folder.exists()


def test_sessions_of_living_rays_stay(tiny: Config, tmp_path: Path) -> None:
    folder = tmp_path / "ray-files" / "ray"
    alive = f"session_2026-11-25_alive_{os.getpid()}"  # as in Ray's own names: another run of this test has another
    put(folder / "session_2026-11-25_dead_7" / "logs")
    put(folder / alive / "logs")
    os.utime(folder / alive, (LONG_AGO, LONG_AGO))
    (folder / "session_latest").symlink_to(alive)
    argument = f"--session-dir={folder}/{alive}"
    command = [sys.executable, "-c", "print(flush=True); input()", argument]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as living:
        assert living.stdout is not None and living.stdout.readline(), "its arguments are shown from now on"
        done = cleaning.clean(tiny, delete=True)
        assert names(done["deleted"]) == ["session_2026-11-25_dead_7"]
        assert [line["reason"] for line in done["kept"]] == ["a living Ray's"]
        living.kill()
    assert names(cleaning.clean(tiny, delete=True)["deleted"]) == [alive]


def test_in_an_object_store(s3: dict[str, str], tiny: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cleaning, "_YOUNG_SECONDS", 0.0)
    root = "s3://lab/cleaning/runs"
    for name in ("used", "unused"):
        storage.write_bytes(f"{root}/prepared/{name}/data/part-00000.parquet", b"1234567890")
        storage.write_bytes(f"{root}/prepared/{name}/dataset.json", json.dumps({"fingerprint": name}).encode())
    storage.write_bytes(f"{root}/mine/run.json", b'{"data_fingerprint": "used"}')
    config = Config(storage=type(tiny.storage)(path=root))
    assert cleaning.clean(config, delete=False)["unused_bytes"] == 10 + len('{"fingerprint": "unused"}')
    assert names(cleaning.clean(config, delete=True)["deleted"]) == ["unused"]
    assert storage.list_files(f"{root}/prepared") == ["used/data/part-00000.parquet", "used/dataset.json"]


def test_job_lists_and_deletes_only_when_told(tmp_path: Path, ray_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", ray_folder)  # a job refuses one that is too long for Ray's sockets
    unused = dataset(tmp_path / "runs" / "prepared" / "unused", "aa")
    command = [sys.executable, str(ROOT / "jobs" / "clean.py"), "--storage.path", str(tmp_path / "runs")]
    said = json.loads(subprocess.run(command, check=True, capture_output=True).stdout.splitlines()[-1])
    assert names(said["unused"]) == ["unused"] and unused.exists()
    said = json.loads(subprocess.run([*command, "--delete"], check=True, capture_output=True).stdout.splitlines()[-1])
    assert names(said["deleted"]) == ["unused"] and not unused.exists()
