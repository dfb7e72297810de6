"""What the package says of itself."""

from __future__ import annotations

import tomllib
from importlib.metadata import metadata

from running import ROOT


def test_license_is_named_in_project_installation_and_readme() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == metadata("scfegan-ray")["License-Expression"] == "Apache-2.0"
    assert "(SPDX: `Apache-2.0`)" in (ROOT / "README.md").read_text()
