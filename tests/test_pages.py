"""What the pages say is so: links, paths, flags, commands, code, and the map of modules."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from running import ROOT
from tiny import TINY
from untrained import write_model

from scfegan_ray import cli, faces, presets
from scfegan_ray.config import Config, flatten
from scfegan_ray.evaluation.options import MeasuringConfig
from scfegan_ray.models.generator import Generator
from scfegan_ray.planning.options import ClusterConfig
from scfegan_ray.serving import server
from scfegan_ray.serving.editor import FaceEditor
from scfegan_ray.serving.options import ServingConfig

FOLDERS = ("cluster", "jobs", "scfegan_ray", "tests")
PAGES = [ROOT / "README.md", *sorted(page for folder in FOLDERS for page in (ROOT / folder).rglob("README.md"))]
PACKAGE = ROOT / "scfegan_ray"
JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("*.py"))
SETTINGS = flatten(Config().to_dict())

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return language and text of the fenced blocks, lines that end with a backslash joined."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [(language, re.sub(r"\\\n\s*", "", text)) for language, text in found]


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def spans(page: Path) -> list[str]:
    """Return what stands in backticks, on one line or two."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def code(page: Path) -> Iterator[str]:
    yield from spans(page)
    for language, text in blocks(page):
        if language != "diff":
            yield from text.splitlines()


def arguments_of(job: str) -> type[cli.Arguments]:
    name = f"job_{job}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "jobs" / f"{job}.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    kind: type[cli.Arguments] = getattr(sys.modules[name], "Arguments", cli.Arguments)
    return kind


@pytest.fixture(scope="module")
def flags() -> set[str]:
    """Return every flag of every job."""
    own = {
        "config" if field == "file" else field  # a field of that name holds all settings
        for job in JOBS
        for field in arguments_of(job).__dataclass_fields__
        if field not in ("preset", "config", "measuring", "cluster", "serving")
    }
    own |= {field.name for field in fields(MeasuringConfig)}
    own |= {field.name for field in fields(ServingConfig)}
    own |= {f"cluster.{field.name}" for field in fields(ClusterConfig)}
    names = own | set(SETTINGS)
    no = {f"{block}{dot}no_{last}" for block, dot, last in (name.rpartition(".") for name in names)}
    return {f"--{name.replace('_', '-')}" for name in names | no | {"help"}}


def test_top_page_is_for_the_first_ten_minutes() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@each_page
def test_lines_are_short(page: Path) -> None:
    assert [line for line in page.read_text().splitlines() if len(line) > 120 and not line.startswith("|")] == []


def slugs(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not link.startswith("https://"):
            name, _, fragment = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), link
            assert not fragment or fragment in slugs(target), link


@each_page
def test_paths_exist(page: Path) -> None:
    for text in code(page):
        for name in re.findall(rf"(?<![\w./<])(?:{'|'.join(FOLDERS)})/[\w./-]+", text):
            assert (ROOT / name.rstrip(".")).exists(), name
    for name in spans(page):
        if re.fullmatch(r"[\w/]+\.(py|md|yaml)", name):
            assert any((place / name).exists() for place in (ROOT, page.parent)), name


@each_page
def test_settings_exist(page: Path) -> None:
    sections = {name.partition(".")[0] for name in SETTINGS if "." in name}
    for name in spans(page):
        if re.fullmatch(rf"({'|'.join(sections)})\.[a-z_.]+", name) and not name.endswith(".py"):
            assert name in SETTINGS, name


@each_page
def test_flags_are_the_jobs(page: Path, flags: set[str]) -> None:
    for text in code(page):
        if text.startswith("--") or text.partition(" ")[0] in presets.PRESETS:
            for flag in re.findall(r"--[a-z][\w.-]*", text):
                known = any(one.startswith(flag) for one in flags) if flag.endswith(".") else flag in flags
                assert known, flag


@each_page
def test_commands_are_understood(page: Path) -> None:
    for text in code(page):
        command = re.search(r"\bjobs/(\w+)\.py\b(.*)", text)
        if command is not None:
            arguments = [word for word in shlex.split(command[2], comments=True) if word != "…"]
            if arguments[-1:] == ["--data.source"]:
                arguments.append("/path/to/faces")
            kind = arguments_of(command[1])
            assert isinstance(cli.parse("", kind, arguments), kind), "else it exits with 2"


@pytest.mark.parametrize("page", PAGES[:1] + [ROOT / "jobs" / "README.md"], ids=["README.md", "jobs/README.md"])
def test_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = presets.preset("quickstart")
    torch.manual_seed(0)
    editor = FaceEditor(Generator(config.model), config)
    monkeypatch.setattr(FaceEditor, "from_uri", lambda uri: editor)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    face, marked = faces.draw_face(0, 0, 64).image, np.zeros((64, 64), np.uint8)
    marked[20:40, 20:40] = 1
    given = {"photograph": face, "mask": marked, "sketch": marked, "color": face}
    [text] = [text for language, text in blocks(page) if language == "python" and "http:" not in text]
    exec(compile(text, page, "exec"), given)
    edited = given["edited"]
    assert edited.shape == face.shape and edited.dtype == np.uint8


def test_script_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [text] = [text for _, text in blocks(ROOT / "jobs" / "README.md") if "import requests" in text]
    monkeypatch.chdir(tmp_path)
    face = faces.draw_face(0, 0, 128).image
    Image.fromarray(face).save("photograph.jpg")
    running = server.start(Config(), ServingConfig(port=0), model=str(write_model(TINY, tmp_path / "model")))
    try:
        exec(compile(text.replace("http://127.0.0.1:7860/", running.url), "jobs/README.md", "exec"), {})
    finally:
        running.close()
    before, after = (np.asarray(Image.open(name)) for name in ("photograph.jpg", "edited.png"))
    changed = (before != after).any(axis=2)
    assert changed.any()
    assert not changed[:70].any()


def groups() -> list[list[str]]:
    """Return the modules of the package as the map lists them."""
    text = (PACKAGE / "README.md").read_text().partition("## Map")[2].partition("```\n")[2].partition("```")[0]
    found, folder = [], ""
    for line in text.splitlines():
        names = re.split(r" {2,}", line.strip())[0].split()
        if line.startswith(" "):
            found.append([f"{folder}{name}" for name in names])
        elif names[0].endswith("/"):
            folder = names[0].replace("/", ".")
        else:
            found.append(names)
    return found


def imports(path: Path) -> set[str]:
    """Return the modules of this package that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "scfegan_ray":
            inner = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            names |= {str(name).removeprefix("scfegan_ray").removeprefix(".") for name in inner}
    return names


def test_map_has_every_module_once_and_imports_point_up() -> None:
    modules = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py"
    }
    order = {name: at for at, group in enumerate(groups()) for name in group}
    assert sorted(name for group in groups() for name in group) == sorted(modules)
    for name, path in modules.items():
        for other in imports(path) & order.keys():
            assert order[other] <= order[name], f"{name} imports {other}"
