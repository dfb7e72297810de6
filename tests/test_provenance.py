"""Which code runs: the digest of its source, and its revision."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from scfegan_ray import provenance


def git(folder: Path, *arguments: str) -> str:
    settings = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *settings, "-C", folder, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def make_package(folder: Path) -> Path:
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_bytes(b"")
    (folder / "inner" / "a.py").write_bytes(b"x = 1\ny = 2\n")
    return folder


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a package in a checkout of its own, committed."""
    monkeypatch.delenv(provenance.REVISION_VARIABLE, raising=False)
    checkout = tmp_path / "checkout"
    package = make_package(checkout / "scfegan_ray")
    git(checkout, "init", "-q")
    git(checkout, "add", ".")
    git(checkout, "commit", "-q", "-m", "first")
    return package


def test_digest_is_of_names_and_source_alone(tmp_path: Path) -> None:
    here = make_package(tmp_path / "here")
    digest = provenance.source_sha256(here)
    # sha256 of "__init__.py", 0, "0", 0, "inner/a.py", 0, "12", 0, "x = 1\ny = 2\n"
    assert digest == "aea90c43523abbf6279942f0195b633bf7cfef3776a4e706468b1965d68df5a4"
    there = make_package(tmp_path / "another place" / "there")
    (there / "inner" / "a.py").write_bytes(b"x = 1\r\ny = 2\r\n")
    os.utime(there / "inner" / "a.py", (0, 0))
    (there / "__pycache__").mkdir()
    (there / "__pycache__" / "a.pyc").write_bytes(b"1")
    (there / "notes.txt").touch()
    assert provenance.source_sha256(there) == digest

    others = []
    (there / "inner" / "a.py").write_bytes(b"x = 1\ny = 3\n")
    others.append(provenance.source_sha256(there))
    (there / "inner" / "a.py").rename(there / "a.py")
    others.append(provenance.source_sha256(there))
    (there / "b.py").touch()
    others.append(provenance.source_sha256(there))
    assert len({digest, *others}) == 4


def test_digest_of_this_package() -> None:
    assert re.fullmatch("[0-9a-f]{64}", provenance.source_sha256())


def test_revision_of_a_checkout_says_whether_it_was_changed(package: Path) -> None:
    head = git(package, "rev-parse", "HEAD")
    assert re.fullmatch("[0-9a-f]{40}", head)
    assert provenance.git_revision(package) == head
    (package.parent / "notes.txt").touch()
    assert provenance.git_revision(package) == head, "other files are not the code"
    (package / "inner" / "new.py").touch()
    assert provenance.git_revision(package) == f"{head}-dirty"
    (package / "inner" / "new.py").unlink()
    (package / "inner" / "a.py").write_text("x = 2\n")
    assert provenance.git_revision(package) == f"{head}-dirty"


def test_a_checkout_that_holds_an_environment_is_not_the_code(package: Path) -> None:
    site = package.parent / ".venv" / "lib" / "site-packages"
    installed = make_package(site / "scfegan_ray")
    assert provenance.git_revision(installed) == "unknown"
    (package.parent / ".gitignore").write_text(".venv\n")
    assert provenance.git_revision(installed) == "unknown"


def test_a_hook_of_another_repository_is_not_the_code(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = git(package, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(package / "nowhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(package / "nowhere" / "index"))
    assert provenance.git_revision(package) == head


def test_revision_where_code_is_shipped_alone(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = tmp_path / "image" / "scfegan_ray"
    shutil.copytree(package, shipped)
    assert provenance.git_revision(shipped) == "unknown"
    monkeypatch.setenv("SCFEGAN_REVISION", " v1.2-3\n")
    assert provenance.git_revision(shipped) == "v1.2-3"
    assert provenance.git_revision(package) == "v1.2-3", "who names one knows better"
    monkeypatch.setenv("SCFEGAN_REVISION", "  ")
    assert provenance.git_revision(shipped) == "unknown"


def test_revision_of_an_installation_from_a_repository(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site-packages"
    shutil.copytree(package, site / "scfegan_ray")
    note = site / "scfegan_ray-0.1.0.dist-info"
    note.mkdir()
    (note / "METADATA").write_text("Metadata-Version: 2.1\nName: scfegan-ray\nVersion: 0.1.0\n")
    url = {"url": "https://example.org/x.git", "vcs_info": {"vcs": "git", "commit_id": "c" * 40}}
    (note / "direct_url.json").write_text(json.dumps(url))
    monkeypatch.syspath_prepend(site)
    assert provenance.git_revision(site / "scfegan_ray") == "c" * 40
    other = make_package(tmp_path / "other" / "scfegan_ray")
    assert provenance.git_revision(other) == "unknown", "the note is of another folder"


def test_without_git_the_revision_is_unknown(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert provenance.git_revision(package) == "unknown"
