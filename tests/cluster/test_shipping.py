"""What `ray job submit --working-dir .` sends to a cluster."""

from __future__ import annotations

import zipfile
from pathlib import Path

from ray._private.runtime_env.packaging import create_package
from running import ROOT

MOST_BYTES = 5_000_000


def test_it_is_small_and_has_what_jobs_need_and_no_more(tmp_path: Path) -> None:
    package = tmp_path / "package.zip"
    create_package(str(ROOT), package, include_gitignore=True, excludes=[".git"])  # as Ray's client calls it
    assert package.stat().st_size < MOST_BYTES
    with zipfile.ZipFile(package) as archive:
        files = {name for name in archive.namelist() if not name.endswith("/")}
    sources = {str(file.relative_to(ROOT)) for folder in ("jobs", "scfegan_ray") for file in (ROOT / folder).rglob("*")}
    wanted = {name for name in sources if name.endswith((".py", ".jinja", ".json"))}
    assert wanted <= files
    assert {Path(name).parts[0] for name in files} <= {
        *("jobs", "scfegan_ray", "pyproject.toml", "README.md"),
        *(".gitignore", ".rayignore"),
    }
    assert not any(name.endswith(".png") for name in files)
