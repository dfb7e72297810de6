"""What the package says of itself."""

from __future__ import annotations

import fnmatch
import tomllib
from importlib.metadata import metadata

from running import ROOT


def test_license_is_named_in_project_installation_and_readme() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == metadata("scfegan-ray")["License-Expression"] == "Apache-2.0"
    assert "(SPDX: `Apache-2.0`)" in (ROOT / "README.md").read_text()


def test_installation_takes_all_files_of_the_package() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    patterns = [f"{package.replace('.', '/')}/{name}" for package, names in declared.items() for name in names]
    files = [path.relative_to(ROOT) for path in (ROOT / "scfegan_ray").rglob("*") if path.is_file()]
    others = [str(file) for file in files if file.suffix != ".py" and "__pycache__" not in file.parts]
    assert "scfegan_ray/data/report.html.jinja" in others
    assert [file for file in others if not any(fnmatch.fnmatch(file, pattern) for pattern in patterns)] == []
