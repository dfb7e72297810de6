"""Which code runs: a digest of its source, and its revision where that can be known."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import subprocess
from pathlib import Path

PACKAGE = Path(__file__).parent

REVISION_VARIABLE = "SCFEGAN_REVISION"
"""Environment variable that names the revision where code is shipped without its repository, as in an image."""

_UNKNOWN = "unknown"
_LONGEST_REVISION = 200
# Set by git for its hooks, these would name the repository of whoever starts this process.
_OF_ANOTHER_REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX")


def source_sha256(package: Path = PACKAGE) -> str:
    """Digest a package's source: its .py files by their relative paths.

    Where the package lies, times and modes of files, and line ends do not matter.

    Args:
        package: its folder.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, path in sorted((path.relative_to(package).as_posix(), path) for path in package.rglob("*.py")):
        source = path.read_bytes().replace(b"\r\n", b"\n")
        digest.update(f"{name}\0{len(source)}\0".encode() + source)
    return digest.hexdigest()


def git_revision(package: Path = PACKAGE) -> str:
    """Return the revision of the code that runs.

    It is what `SCFEGAN_REVISION` says; else the commit of the git checkout that the package belongs to, with `-dirty`
    where files of the package differ from it; else the commit that the package was installed from
    (`pip install git+https://…`); else `unknown`.

    Args:
        package: its folder.
    """
    given = " ".join(os.environ.get(REVISION_VARIABLE, "").split())
    return given[:_LONGEST_REVISION] or _of_checkout(package) or _of_installation(package) or _UNKNOWN


def _of_checkout(package: Path) -> str | None:
    # A virtual environment may lie in the checkout of something else, which does not know its files.
    if not _git(package, "ls-files", "--", "__init__.py"):
        return None
    revision = _git(package, "rev-parse", "--verify", "HEAD")
    if not revision:
        return None
    # What cannot be asked counts as changed.
    return f"{revision}-dirty" if _git(package, "status", "--porcelain", "--", ".") != "" else revision


def _git(package: Path, *arguments: str) -> str | None:
    """Ask git about a folder; None where it cannot answer."""
    environment = {name: value for name, value in os.environ.items() if name not in _OF_ANOTHER_REPOSITORY}
    command = ["git", "--no-optional-locks", "-C", str(package), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10, env=environment)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip()


def _of_installation(package: Path) -> str | None:
    """Return the commit that pip noted, where its note is of this very folder."""
    for distribution in importlib.metadata.distributions(name="scfegan-ray"):
        note = distribution.read_text("direct_url.json")
        if note and Path(str(distribution.locate_file(package.name))).resolve() == package.resolve():
            commit: str | None = json.loads(note).get("vcs_info", {}).get("commit_id")
            return commit
    return None
