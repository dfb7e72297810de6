"""What several processes and users of one machine share."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from running import run_code

from scfegan_ray import cache


def test_cache_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.cache_dir() == tmp_path / "cache"
    monkeypatch.setenv("SCFEGAN_CACHE", "near")
    assert cache.cache_dir() == tmp_path / "near", "a worker has another working directory"
    monkeypatch.delenv("SCFEGAN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache.cache_dir() == Path("/somewhere/scfegan_ray")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_have_the_permissions_of_any_other(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with cache.making(tmp_path / "new" / "a"), cache.new_file(tmp_path / "new" / "a") as aside:
            aside.write_bytes(b"1")
    finally:
        os.umask(before)
    assert (tmp_path / "new" / "a").stat().st_mode & 0o777 == mode
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o777 & ~umask
    assert (tmp_path / "new" / "a.lock").stat().st_mode & 0o777 == mode
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a", "a.lock"]


def test_failed_file_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(RuntimeError), cache.new_file(tmp_path / "a") as aside:
        aside.write_text("half")
        raise RuntimeError
    assert (tmp_path / "a").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_one_makes_a_file_while_the_others_wait(tmp_path: Path) -> None:
    at_work: list[int] = []
    most: list[int] = []

    def work() -> None:
        with cache.making(tmp_path / "a"):
            at_work.append(1)
            most.append(len(at_work))
            time.sleep(0.02)
            at_work.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]


def test_what_is_held_is_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    first, second = cache.hold(tmp_path / "a"), cache.hold(tmp_path / "a")
    os.close(first)
    assert cache.in_use(tmp_path / "a") and not cache.delete_unused(tmp_path / "a")
    assert (tmp_path / "a").exists()
    os.close(second)
    assert not cache.in_use(tmp_path / "a") and cache.delete_unused(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_what_is_being_made_is_not_deleted(tmp_path: Path) -> None:
    with cache.making(tmp_path / "a"):
        assert cache.in_use(tmp_path / "a") and not cache.delete_unused(tmp_path / "a")
    assert cache.delete_unused(tmp_path / "a")


_AS_NOBODY = """
import os
from pathlib import Path
from scfegan_ray import cache
os.setgid(65534); os.setuid(65534)
path = Path({path!r})
os.close(cache.hold(path))
with cache.making(path):
    print(cache.in_use(path))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_lock_that_another_user_made_can_be_taken(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    with cache.making(folder / "a"), cache.new_file(folder / "a") as aside:
        aside.write_bytes(b"1")
    for name in ("a", "a.lock"):
        (folder / name).chmod(0o644)
    folder.chmod(0o1777)
    for above in (tmp_path, *tmp_path.parents[:2]):
        above.chmod(0o755)
    assert run_code(_AS_NOBODY.format(path=str(folder / "a")), Path("/")) == "True"
    assert not cache.in_use(folder / "a")


def test_killed_process_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    code = (
        f"from pathlib import Path; from scfegan_ray import cache; p = Path({str(tmp_path / 'a')!r})\n"
        "cache.hold(p)\nwith cache.making(p):\n    print('held', flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        assert cache.in_use(tmp_path / "a")
        other.kill()
    assert not cache.in_use(tmp_path / "a")
