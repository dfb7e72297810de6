"""cluster/Dockerfile: what it says, and its RUN lines in a bare Debian."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import ROOT

FILE = ROOT / "cluster" / "Dockerfile"

SATISFIED = """
import sys, tomllib
from importlib.metadata import version
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
print(sys.version_info[:2] in [(3, 11)] and "3.11" in SpecifierSet(project["requires-python"]))
wanted = [Requirement(line) for line in project["dependencies"]]
print([f"{one.name} {version(one.name)}" for one in wanted if not one.specifier.contains(version(one.name))])
import cv2, mlflow, ray, torch, scfegan_ray
"""


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions, each with what follows it."""
    lines = [line for line in FILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", "", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line]  # type: ignore[misc]


def test_versions_stand_in_pyproject_alone() -> None:
    names = [re.split(r"[\[<>=]", line)[0] for line in project()["dependencies"]]
    for kind, rest in instructions():
        if kind == "RUN":
            assert not any(re.search(rf"\b{re.escape(name)}\s*[<>=~]", rest) for name in names), rest
    assert instructions()[0] == ("FROM", "debian:12-slim"), "its Python is 3.11"


def test_what_is_copied_is_there_and_not_left_out() -> None:
    ignored = FILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    for kind, rest in instructions():
        if kind == "COPY":
            owner, source, _ = rest.split()
            assert owner == "--chown=ray:ray"
            assert (ROOT / source).exists()
            assert f"!{source}" in ignored


def project() -> dict[str, list[str]]:
    values: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return values


def pip_settings() -> tuple[dict[str, str], dict[str, Path]]:
    """Return what pip is told here, as variables, and the local places that these name: place there -> place here.

    An image that is built elsewhere knows nothing of it; but a machine may reach packages in no other way.
    """
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    variables: dict[str, str] = {}
    places: dict[str, Path] = {}
    for name, value in re.findall(r"^(?:\w+|:env:)\.([\w-]+)='(.*)'$", listed.stdout, re.MULTILINE):
        words = []
        for word in value.split():
            here = Path(word.removeprefix("file://"))
            if here.is_absolute() and here.is_file():  # Debian's own certificates lie where these do
                places[f"/mnt/{name}"] = here
                word = f"/mnt/{name}"
            elif here.is_absolute() and here.is_dir():  # an index points to files beside it
                place = here.parent if word.startswith("file://") else here
                places[str(place)] = place
            words.append(word)
        variables[f"PIP_{name.upper().replace('-', '_')}"] = " ".join(words)
    return variables, places


class Debian:
    """A bare Debian in a folder, in which commands run as `docker build` has them run."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._environment, self._places = pip_settings()
        self.user, self.folder = "root", "/"

    def set(self, name: str, value: str) -> None:
        self._environment[name] = value

    def copy(self, source: Path, target: str, owner: str) -> None:
        place = self._root / self.folder.lstrip("/") / target
        if source.is_dir():
            shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, place)
        self.run(f"chown -R {owner} {target}", user="root")

    def run(self, command: str, user: str | None = None) -> str:
        """Run a command by the shell, in a namespace that takes its processes and mounts away at its end."""
        user = user or self.user
        mounts = ["mount -t proc proc proc", "mount --rbind /dev dev"]
        for there, here in self._places.items():
            mounts += [f"mkdir -p .{there}" if here.is_dir() else f"touch .{there}"]
            mounts += [f"mount --bind {here} .{there}"]
        inner = 'cd "$1" && exec sh -c "$2"'
        outer = f'set -e; {"; ".join(mounts)}; exec chroot --userspec={user} . sh -c \'{inner}\' sh "$1" "$2"'
        alone = ("setpriv", "--pdeathsig", "KILL", "unshare", "-m", "-p", "-f", "--kill-child")
        home = "/root" if user == "root" else f"/home/{user}"
        done = subprocess.run(
            [*alone, "bash", "-c", outer, "bash", self.folder, command],
            cwd=self._root,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": home, "LANG": "C.UTF-8"} | self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{(done.stdout + done.stderr)[-4000:]}"
        return done.stdout


@pytest.fixture
def debian() -> Iterator[Debian]:
    """Make a bare Debian 12, which is what debian:12-slim is made of."""
    if os.getuid() != 0 or shutil.which("debootstrap") is None:
        pytest.skip("wants root and debootstrap (Debian: apt-get install debootstrap)")
    with tempfile.TemporaryDirectory(prefix="debian-", ignore_cleanup_errors=True) as folder:
        made = subprocess.run(
            ["setpriv", "--pdeathsig", "KILL", "debootstrap", "--variant=minbase", "bookworm", folder],
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 0, (made.stdout + made.stderr)[-2000:]
        os.chmod(folder, 0o755)
        shutil.copy("/etc/resolv.conf", f"{folder}/etc/resolv.conf")
        yield Debian(Path(folder))


@pytest.mark.cluster
@pytest.mark.network
@pytest.mark.timeout(3000)
def test_its_lines_run_in_a_bare_debian(debian: Debian) -> None:
    for kind, rest in instructions():
        if kind == "RUN":
            debian.run(rest)
        elif kind == "ENV":
            debian.set(*rest.split("=", 1))
        elif kind == "COPY":
            owner, source, target = rest.split()
            debian.copy(ROOT / source, target, owner.removeprefix("--chown="))
        elif kind == "USER":
            debian.user = rest
        elif kind == "WORKDIR":
            debian.folder = rest
        else:
            assert kind == "FROM", kind
    assert debian.run(f"python -c '{SATISFIED}'").splitlines() == ["True", "[]"]
