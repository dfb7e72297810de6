"""The page as a folder that edits in the browser alone: no server computes, and photographs never leave the machine.

Any web server of files may serve it: `python -m http.server --bind 127.0.0.1 --directory FOLDER`.

| file | holds |
| --- | --- |
| `index.html`, `page/` | the page, as `jobs/edit.py` serves it |
| `model.onnx`, `model.json` | the model, and what the page wants to know of it |
| `onnxruntime/` | ONNX Runtime Web (MIT), which runs it |
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import urllib.request
from importlib import resources
from pathlib import Path
from typing import Any

from scfegan_ray import cache, storage
from scfegan_ray.config import Config
from scfegan_ray.errors import ConfigError, ModelError
from scfegan_ray.serving import current, edits, export, loading
from scfegan_ray.serving.options import ServingConfig

RUNTIME = "onnxruntime-web"
"""Package of npm, by Microsoft, under the MIT license."""
RUNTIME_VERSION = "1.30.0"
RUNTIME_SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
RUNTIME_FILES = (
    "ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm",
)  # fmt: skip
REGISTRY_VARIABLE = "NPM_CONFIG_REGISTRY"
_REGISTRY = "https://registry.npmjs.org"
_ASK_SECONDS, _FETCH_SECONDS = 20, 120
_MOST_BYTES = 1 << 27

_LAST = "index.html"
_WRITTEN = {_LAST, "page", "model.onnx", "model.json", "onnxruntime"}

_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; style-src 'self'; "
    "script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; connect-src 'self'"
)


def write(config: Config, folder: str, *, model: str = "") -> dict[str, Any]:
    """Write the folder, whole or not at all.

    Args:
        config: names the registry.
        folder: a new one on this machine; one that this function wrote is replaced.
        model: as in `current.choose`.

    Returns:
        folder: absolute URI; model_uri; bytes: of the model.

    Raises:
        ModelError: there is no such model, or ONNX Runtime Web cannot be had.
        ConfigError: an extra that writes ONNX is not installed; or the folder is not here, or holds something else.
        StorageError: it cannot be written.
    """
    place = storage.absolute(folder)
    if not storage.is_local(place):
        raise ConfigError(f"--static {folder} is not on this machine; write it here, and copy it there")
    there = {file.name for file in Path(place).iterdir()} if Path(place).is_dir() else set()
    if not there <= _WRITTEN or (there and _LAST not in there) or Path(place).is_file():
        raise ConfigError(f"--static {folder} holds something else; give a new folder")
    uri, limits = current.choose(config, model), ServingConfig()
    runtime = _runtime()
    with storage.new_folder(place, last=_LAST) as scratch:
        made = export.export(config, uri, str(scratch / "model.onnx"))
        facts: dict[str, Any] = export.facts_of(scratch / "model.onnx")
        facts |= {
            "name": loading.name_of(facts["model_uri"]),
            "size_px": int(facts["size_px"]),
            "noise_probability": float(facts["noise_probability"]),
            "limits": {
                "upload_bytes": limits.max_upload_mb << 20,
                "megapixels": limits.max_megapixels,
                "edit_bytes": edits.MAX_BYTES,
            },
        }
        (scratch / "model.json").write_text(json.dumps(facts, indent=2))
        page = resources.files("scfegan_ray.serving") / "page"
        (scratch / "page").mkdir()
        for file in page.iterdir():
            (scratch / "page" / file.name).write_bytes(file.read_bytes())
        (scratch / "onnxruntime").mkdir()
        for name, content in runtime.items():
            (scratch / "onnxruntime" / name).write_bytes(content)
        (scratch / "index.html").write_text(_index((scratch / "page" / "index.html").read_text()))
        (scratch / "page" / "index.html").unlink()
    return {"folder": place, "model_uri": made["model_uri"], "bytes": made["bytes"]}


def _index(text: str) -> str:
    """Return the page that has its model beside it."""
    policy = f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    head, body = text.split("<head>", 1)
    return head.replace("<html", '<html data-backend="static"', 1) + f"<head>\n  {policy}" + body


def _runtime() -> dict[str, bytes]:
    """Return the files of ONNX Runtime Web, fetched once from the registry of npm.

    Raises:
        ModelError: it cannot be fetched, checked or stored.
    """
    path = cache.cache_dir() / f"{RUNTIME}-{RUNTIME_VERSION}.tgz"
    try:
        content = cache.kept(path, lambda content: _digest(content) == RUNTIME_SHA512, lambda: _fetch(path))
    except OSError as error:
        raise ModelError(f"cannot keep {RUNTIME} in {path.parent} ({error}); {cache.CURE}") from error
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        found = {name: archive.extractfile(f"package/dist/{name}") for name in RUNTIME_FILES}
        return {name: file.read() for name, file in found.items() if file is not None}


def _digest(content: bytes) -> str:
    """Return the checksum as npm writes it."""
    return base64.b64encode(hashlib.sha512(content).digest()).decode()


def _registry() -> str:
    """Return the registry that npm is configured for, where there is an npm."""
    given = os.environ.get(REGISTRY_VARIABLE)
    npm = None if given else shutil.which("npm")
    if npm:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            asked = [npm, "config", "get", "registry"]
            given = subprocess.run(asked, capture_output=True, text=True, timeout=_ASK_SECONDS, check=True).stdout
    return (given or "").strip().rstrip("/") or _REGISTRY


def _fetch(path: Path) -> bytes:
    registry = _registry()
    url = f"{registry}/{RUNTIME}/-/{RUNTIME}-{RUNTIME_VERSION}.tgz"
    try:
        with urllib.request.urlopen(url, timeout=_FETCH_SECONDS) as answer:
            content: bytes = answer.read(_MOST_BYTES)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{RUNTIME} {RUNTIME_VERSION} cannot be fetched from {storage.without_secrets(registry)} "
            f"({' '.join(str(error).split())}); set {REGISTRY_VARIABLE} to a registry of npm that can be reached, or "
            f"bring the package to {path} by hand"
        ) from error
    if _digest(content) != RUNTIME_SHA512:
        raise ModelError(
            f"what {storage.without_secrets(registry)} gives for {RUNTIME} {RUNTIME_VERSION} is another file; ask its "
            "owner, or bring the package to "
            f"{path} by hand"
        )
    return content
