"""The page as a folder: what is written, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from scfegan_ray.config import Config, StorageConfig
from scfegan_ray.errors import ConfigError, ModelError
from scfegan_ray.serving import static


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return replace(Config(), storage=StorageConfig(path=str(tmp_path / "runs")))


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "_runtime", lambda: dict.fromkeys(static.RUNTIME_FILES, b"runtime"))


@pytest.mark.usefixtures("runtime")
def test_folder_holds_the_page_and_the_model(config: Config, model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a site"
    made = static.write(config, str(folder), model=str(model_folder))
    assert made == {
        "folder": str(folder),
        "model_uri": str(model_folder),
        "bytes": (folder / "model.onnx").stat().st_size,
    }
    assert {file.name for file in folder.iterdir()} == {"index.html", "page", "model.onnx", "model.json", "onnxruntime"}
    facts = json.loads((folder / "model.json").read_text())
    assert (facts["size_px"], facts["model_uri"]) == (32, str(model_folder))
    assert facts["name"].endswith(model_folder.name)
    index = (folder / "index.html").read_text()
    assert '<html data-backend="static"' in index
    assert "Content-Security-Policy" in index
    assert (folder / "page" / "static_worker.js").exists()
    assert (folder / "onnxruntime" / static.RUNTIME_FILES[0]).read_bytes() == b"runtime"
    (folder / "model.json").unlink()
    static.write(config, str(folder), model=str(model_folder))  # its own is replaced
    assert (folder / "model.json").exists()


@pytest.mark.usefixtures("runtime")
def test_what_is_not_its_own_is_not_replaced(config: Config, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    kept = tmp_path / "home" / "letter.txt"
    kept.write_text("dear")
    for place in (tmp_path / "home", kept):
        with pytest.raises(ConfigError, match="holds something else"):
            static.write(config, str(place), model=str(model_folder))
    assert kept.read_text() == "dear"
    with pytest.raises(ConfigError, match="not on this machine"):
        static.write(config, "s3://bucket/site", model=str(model_folder))
    with pytest.raises(ModelError, match=r"train\.py"):
        static.write(config, str(tmp_path / "site"))
    assert not (tmp_path / "site").exists()


def test_a_registry_that_does_not_answer_or_gives_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCFEGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(static.REGISTRY_VARIABLE, "http://user:secret@127.0.0.1:9/")
    with pytest.raises(ModelError, match="cannot be fetched from") as refused:
        static._runtime()
    assert "secret" not in str(refused.value)
    wrong = tmp_path / "registry" / static.RUNTIME / "-"
    wrong.mkdir(parents=True)
    (wrong / f"{static.RUNTIME}-{static.RUNTIME_VERSION}.tgz").write_bytes(b"another")
    monkeypatch.setenv(static.REGISTRY_VARIABLE, (tmp_path / "registry").as_uri())
    with pytest.raises(ModelError, match="another file"):
        static._runtime()
    assert not list((tmp_path / "cache").glob("*.tgz"))
