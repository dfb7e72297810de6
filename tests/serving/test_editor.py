"""The editor a person's strokes go through."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image
from tiny import TINY, maps_of

from scfegan_ray import storage, tracking
from scfegan_ray.config import Config
from scfegan_ray.errors import CheckpointError, DataError, ModelError
from scfegan_ray.models import editing
from scfegan_ray.registry import download_weights, parts, register
from scfegan_ray.serving import loading
from scfegan_ray.serving.editor import FaceEditor
from scfegan_ray.training import checkpoint
from scfegan_ray.training.state import TrainingState

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (32, 48, 3), np.uint8)
MASK = np.zeros((32, 48), np.uint8)
MASK[8:20, 10:30] = 1
NOTHING = np.zeros((32, 48), np.uint8)
UNPAINTED = np.zeros((32, 48, 3), np.uint8)
OLD_VERSION = Path(__file__).parents[1] / "golden" / "version_0_1" / "model"


@pytest.fixture
def editor(tiny: Config) -> FaceEditor:
    return FaceEditor(TrainingState.build(tiny).ema, tiny)


def test_pixels_outside_the_mask_are_untouched(editor: FaceEditor) -> None:
    editor.set_image(IMAGE)
    result = editor.edit(MASK, NOTHING, UNPAINTED)
    assert result.dtype == np.uint8
    assert result.shape == IMAGE.shape
    assert np.array_equal(result[MASK == 0], IMAGE[MASK == 0])
    assert not np.array_equal(result[MASK == 1], IMAGE[MASK == 1])


def test_what_is_hidden_does_not_matter(editor: FaceEditor) -> None:
    editor.set_image(IMAGE)
    first = editor.edit(MASK, NOTHING, UNPAINTED)
    other = IMAGE.copy()
    other[MASK == 1] = 7
    editor.set_image(other)
    assert np.array_equal(first[MASK == 1], editor.edit(MASK, NOTHING, UNPAINTED)[MASK == 1])


def test_sketch_color_and_seed_matter_only_in_the_hole(editor: FaceEditor) -> None:
    editor.set_image(IMAGE)
    plain = editor.edit(MASK, NOTHING, UNPAINTED)
    inside, outside = MASK.copy(), (1 - MASK).astype(np.uint8)
    red = UNPAINTED.copy()
    red[..., 0] = 255
    assert not np.array_equal(plain, editor.edit(MASK, inside, UNPAINTED))
    assert not np.array_equal(plain, editor.edit(MASK, NOTHING, red))
    assert not np.array_equal(plain, editor.edit(MASK, NOTHING, UNPAINTED, seed=1))
    assert np.array_equal(plain, editor.edit(MASK, outside, red * outside[..., None]))
    assert np.array_equal(plain, editor.edit(MASK, NOTHING, UNPAINTED))


MAPS = {
    "bool": MASK.astype(bool),
    "0 and 255": MASK * np.uint8(255),
    "with a channel": MASK[..., None],
    "int64": MASK.astype(np.int64),
    "uint16": MASK.astype(np.uint16) * 255,
    "float32": MASK.astype(np.float32),
    "float64, soft": MASK * 0.25,
    "float16, with a channel": MASK.astype(np.float16)[..., None],
    "a list": MASK.tolist(),
    "torch": torch.from_numpy(MASK * np.uint8(255)),
    "PIL 1": Image.fromarray(MASK.astype(bool)),
    "PIL L": Image.fromarray(MASK * np.uint8(255)),
    "PIL RGB": Image.fromarray(np.repeat(MASK[..., None] * np.uint8(255), 3, axis=2)),
}


@pytest.mark.parametrize("given", MAPS.values(), ids=MAPS.keys())
def test_mask_and_sketch_may_be_of_any_kind_that_says_what_is_marked(editor: FaceEditor, given: Any) -> None:
    editor.set_image(IMAGE)
    assert np.array_equal(editor.edit(MASK, MASK, UNPAINTED), editor.edit(given, given, UNPAINTED))


def test_palette_counts_by_its_colors(editor: FaceEditor) -> None:
    inverted = Image.fromarray((1 - MASK).astype(np.uint8), "L").convert("P")
    inverted.putpalette([255, 255, 255, 0, 0, 0])  # the hole has index 0, and is white
    editor.set_image(IMAGE)
    assert np.array_equal(editor.edit(MASK, NOTHING, UNPAINTED), editor.edit(inverted, NOTHING, UNPAINTED))


def test_image_and_color_may_be_pictures_or_fractions(editor: FaceEditor) -> None:
    editor.set_image(IMAGE)
    expected = editor.edit(MASK, NOTHING, IMAGE)
    for image in (Image.fromarray(IMAGE), IMAGE.astype(np.int64), IMAGE / 255, (IMAGE / 255).astype(np.float32)):
        editor.set_image(image)
        assert np.array_equal(expected, editor.edit(MASK, NOTHING, image))


def test_pictures_become_upright_rgb(editor: FaceEditor) -> None:
    def shown(picture: Image.Image) -> np.ndarray:
        editor.set_image(picture)
        return editor.edit(NOTHING, NOTHING, UNPAINTED)

    gray = Image.fromarray(IMAGE[..., 0])
    assert np.array_equal(shown(gray), np.repeat(IMAGE[..., :1], 3, axis=2))
    few = Image.fromarray(IMAGE).quantize(16)
    assert np.array_equal(shown(few), np.asarray(few.convert("RGB")))
    clear = Image.fromarray(np.dstack([IMAGE, np.where(MASK, 0, 255).astype(np.uint8)]))
    assert np.array_equal(shown(clear), np.where(MASK[..., None], 255, IMAGE))
    lying = Image.fromarray(np.rot90(IMAGE).copy())
    lying.getexif()[0x0112] = 6  # to be turned clockwise by who shows it
    lying.info["exif"] = lying.getexif().tobytes()
    assert np.array_equal(shown(lying), IMAGE)


def test_transparent_paint_is_none(editor: FaceEditor) -> None:
    editor.set_image(IMAGE)
    half = np.zeros((32, 48), np.uint8)
    half[:, :20] = 1
    layer = Image.fromarray(np.dstack([IMAGE, half * np.uint8(255)]))
    assert np.array_equal(editor.edit(MASK, NOTHING, layer), editor.edit(MASK, NOTHING, IMAGE * half[..., None]))


def test_the_editor_keeps_its_own_copy_of_the_image(editor: FaceEditor) -> None:
    image = IMAGE.copy()
    editor.set_image(image)
    image[:] = 0
    assert np.array_equal(editor.edit(NOTHING, NOTHING, UNPAINTED), IMAGE)


@pytest.mark.parametrize(
    ("image", "named"),
    [
        (IMAGE[:30], "sides divisible by 4"),
        (IMAGE.astype(np.float32), r"image is float32 .* values from 0 to 255; give uint8, or floats in \[0, 1\]"),
        (np.full(IMAGE.shape, np.nan), "image is float64 .* with NaN"),
        (IMAGE.astype(np.int32) - 1, "image is int32 .* values from -1 to 254; give uint8"),
        (IMAGE.astype(bool), "image is bool .* give uint8"),
        (np.dstack([IMAGE, IMAGE[..., 0]]), r"\(32, 48, 4\); give shape \(H, W, 3\)"),
        (IMAGE.transpose(2, 0, 1), r"\(3, 32, 48\)"),
        (IMAGE.astype(np.complex64), "image is ndarray of complex64"),
        ("face.png", "image is str .* give a uint8 array or a PIL image"),
        (None, "image is NoneType"),
        ([[1], [1, 2]], "image is no array"),
        (Image.new("F", (48, 32)), "image is a PIL image of mode F"),
        (Image.new("I;16", (48, 32)), "image is a PIL image of mode I;16"),
        (IMAGE[..., 0], r"\(32, 48\)"),
        (IMAGE[:0], "48x0"),
    ],
)
def test_image_that_does_not_fit_is_named(editor: FaceEditor, image: np.ndarray, named: str) -> None:
    with pytest.raises(DataError, match=named):
        editor.set_image(image)


def test_maps_that_do_not_fit_are_named(editor: FaceEditor) -> None:
    with pytest.raises(DataError, match="call set_image first"):
        editor.edit(MASK, NOTHING, UNPAINTED)
    editor.set_image(IMAGE)
    with pytest.raises(DataError, match="mask is uint8 of shape"):
        editor.edit(MASK[:8], NOTHING, UNPAINTED)
    with pytest.raises(DataError, match="sketch is float64 .* with values from 0 to 255; give uint8, or floats in"):
        editor.edit(MASK, MASK.astype(np.float64) * 255, UNPAINTED)
    with pytest.raises(DataError, match="color is uint8 of shape"):
        editor.edit(MASK, NOTHING, NOTHING)
    with pytest.raises(DataError, match="color is uint8 of shape .* of the image's 32x48"):
        editor.edit(MASK, NOTHING, UNPAINTED[:8])
    with pytest.raises(DataError, match="mask is float64 .* with NaN"):
        editor.edit(np.where(MASK, 1, np.nan), NOTHING, UNPAINTED)
    with pytest.raises(DataError, match="mask is float64 .* values from 0 to inf"):
        editor.edit(np.where(MASK, np.inf, 0), NOTHING, UNPAINTED)
    with pytest.raises(DataError, match="mask is int64 .* values from -1 to 0"):
        editor.edit(-MASK.astype(np.int64), NOTHING, UNPAINTED)
    with pytest.raises(DataError, match="mask is a PIL image of mode RGBA; give one of mode L: image.convert"):
        editor.edit(Image.new("RGBA", (48, 32)), NOTHING, UNPAINTED)
    with pytest.raises(DataError, match="mask is bool of shape"):
        editor.edit(Image.new("1", (32, 48)), NOTHING, UNPAINTED)


def edit(editor: FaceEditor) -> np.ndarray:
    editor.set_image(IMAGE)
    return editor.edit(MASK, MASK, UNPAINTED)


@pytest.fixture
def run(tiny: Config, tmp_path: Path) -> tuple[Path, list[np.ndarray]]:
    """Make a run with two checkpoints; its folder, and an edit by each."""
    folder, edits = tmp_path / "runs" / "my run", []
    for seed, seen in ((0, 8), (1, 16)):
        state = TrainingState.build(replace(tiny, seed=seed))
        place = folder / "checkpoints" / f"checkpoint-{seen:010d}"
        place.mkdir(parents=True)
        checkpoint.write(checkpoint.capture(state, tiny), place)
        edits.append(edit(FaceEditor(state.ema, tiny)))
    (folder / "run.json").write_text("{}")
    (folder / "checkpoints" / "checkpoint-0000000024").mkdir()  # without meta.json it is none
    return folder, edits


def test_run_or_checkpoints_mean_the_newest_one(run: tuple[Path, list[np.ndarray]], monkeypatch: Any) -> None:
    folder, (older, newer) = run
    assert not np.array_equal(older, newer)
    monkeypatch.chdir(folder.parent)
    for uri in (folder, str(folder), f"{folder}/", folder / "checkpoints", "my run", Path("my run/checkpoints")):
        assert np.array_equal(edit(FaceEditor.from_uri(uri)), newer), uri
    assert np.array_equal(edit(FaceEditor.from_uri(folder / "checkpoints" / "checkpoint-0000000008")), older)
    assert loading.load_generator(folder).name == "my run-16"


def test_run_may_be_in_an_object_store(
    run: tuple[Path, list[np.ndarray]], s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    folder, (_, newer) = run
    place = f"s3://lab/{tmp_path.name}"
    for name in storage.list_files(str(folder)):
        storage.write_bytes(storage.join(place, name), (folder / name).read_bytes())
    for uri in (place, Path(place), f"{place}/checkpoints/"):
        assert np.array_equal(edit(FaceEditor.from_uri(uri)), newer), uri


def test_folder_that_is_no_model_is_named(run: tuple[Path, list[np.ndarray]], tmp_path: Path) -> None:
    folder, _ = run
    with pytest.raises(CheckpointError, match=r"nothing is no checkpoint.*: nothing is there; give the folder of one"):
        FaceEditor.from_uri(tmp_path / "nothing")
    with pytest.raises(
        CheckpointError, match=r"runs is no checkpoint \(meta.json\), no run .* MLflow \(MLmodel\); give"
    ):
        FaceEditor.from_uri(folder.parent)
    with pytest.raises(CheckpointError, match=r"run.json' is no folder"):
        FaceEditor.from_uri(folder / "run.json")
    with pytest.raises(CheckpointError, match="'' is no folder"):
        FaceEditor.from_uri("")
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(CheckpointError, match="my run has no checkpoint yet"):
        FaceEditor.from_uri(folder)


@pytest.fixture
def version(tracked: Config) -> tuple[str, str, np.ndarray]:
    """Register a model; its URI, the registry's, and an edit by it."""
    generator = TrainingState.build(tracked).ema
    example = maps_of(tracked)
    run_id = tracking.start_run(tracked, "tiny", tags={})
    uri = register(generator, tracked, run_id, weights_sha256="a", tags={}, example=example)
    return uri, tracking.tracking_uri(tracked), edit(FaceEditor(generator, tracked))


def folder_of(uri: str, registry: str) -> Path:
    """Return where the store has the files of a version."""
    stored = MlflowClient(registry).get_model_version_download_uri(*parts(uri))
    return Path(mlflow.artifacts.download_artifacts(artifact_uri=stored))


def test_the_program_of_a_version_is_not_downloaded(version: tuple[str, str, np.ndarray], tmp_path: Path) -> None:
    uri, registry, _ = version
    folder = download_weights(uri, registry, tmp_path)
    assert {path.name for path in folder.iterdir()} == {editing.WEIGHTS, editing.CONFIG}
    (folder_of(uri, registry) / "artifacts" / editing.WEIGHTS).unlink()
    with pytest.raises(ModelError, match="registered by version 0.1.0"):
        FaceEditor.from_uri(uri, tracking_uri=registry)


def test_version_and_its_downloaded_folder_can_be_edited_with(
    version: tuple[str, str, np.ndarray], tmp_path: Path
) -> None:
    uri, registry, expected = version
    stored = folder_of(uri, registry)
    before = sorted(path.name for path in stored.rglob("*"))
    assert np.array_equal(edit(FaceEditor.from_uri(uri, tracking_uri=registry)), expected)
    assert sorted(path.name for path in stored.rglob("*")) == before, "the store is only read"
    folder = tmp_path / "downloaded"
    shutil.copytree(stored, folder)
    (folder / "artifacts" / editing.PROGRAM).unlink()
    for place in (folder, str(folder)):
        assert np.array_equal(edit(FaceEditor.from_uri(place)), expected)


def test_masks_of_255_mean_the_same_to_the_registered_program(version: tuple[str, str, np.ndarray]) -> None:
    uri, registry, _ = version
    mlflow.set_tracking_uri(registry)
    try:
        model = mlflow.pyfunc.load_model(uri)
    finally:
        mlflow.set_tracking_uri(None)
    image, mask = np.ascontiguousarray(IMAGE[:, :32]), np.ascontiguousarray(MASK[:, :32])
    editor = FaceEditor.from_uri(uri, tracking_uri=registry)
    editor.set_image(image)
    expected = editor.edit(mask, mask, image)
    for value in (1, 7, 255):
        plane = mask[None, ..., None] * np.uint8(value)
        filled = model.predict({"image": image[None], "mask": plane, "sketch": plane, "color": image[None]})
        assert np.array_equal(filled[0], expected), value
        assert np.array_equal(editor.edit(plane[0], plane[0], image), expected), value


class Payload:
    """Leaves a file where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


def arm(program: Path, payload: bytes) -> None:
    """Put a pickle into a program's archive where torch unpickles one."""
    with zipfile.ZipFile(program) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    settings = next(name for name in files if name.endswith("model_weights_config.json"))
    weights = json.loads(files[settings])
    for entry in weights["config"].values():
        entry["use_pickle"] = True
        files[settings.replace("model_weights_config.json", entry["path_name"])] = payload
    files[settings] = json.dumps(weights).encode()
    with zipfile.ZipFile(program, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


@pytest.mark.filterwarnings("ignore")
def test_hostile_version_runs_no_code(
    version: tuple[str, str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, registry, expected = version
    folder, trace = folder_of(uri, registry), tmp_path / "ran"
    payload, code = pickle.dumps(Payload(trace)), f"open({str(trace)!r}, 'w').close()\n"
    arm(folder / "artifacts" / editing.PROGRAM, payload)
    for name in ("python_model.pkl", "artifacts/config.pkl", "artifacts/generator.pt", "artifacts/model.pth"):
        (folder / name).write_bytes(payload)
    (folder / "code").mkdir()
    for name in ("served.py", "evil.py", "code/evil.py", "code/scfegan_ray.py", "code/__init__.py"):
        (folder / name).write_text(code)
    text = (folder / "MLmodel").read_text()
    text = text.replace("code: null", "code: code").replace("mlflow.pyfunc.loaders.code_model", "evil")
    (folder / "MLmodel").write_text(text)

    with pytest.raises(Exception):  # noqa: B017  whatever torch says of what a payload returns
        torch.export.load(folder / "artifacts" / editing.PROGRAM)
    assert trace.exists(), "the trap works"
    trace.unlink()

    assert np.array_equal(edit(FaceEditor.from_uri(uri, tracking_uri=registry)), expected)
    assert np.array_equal(edit(FaceEditor.from_uri(folder)), expected)
    (folder / "MLmodel").write_text("!!python/object/apply:pathlib.Path.touch [!!python/object:pathlib.Path {}]")
    assert np.array_equal(edit(FaceEditor.from_uri(folder)), expected)
    for name in (editing.WEIGHTS, editing.CONFIG):
        sound = (folder / "artifacts" / name).read_bytes()
        (folder / "artifacts" / name).write_bytes(payload)
        with pytest.raises(ModelError, match="cannot be used"):
            FaceEditor.from_uri(uri, tracking_uri=registry)
        (folder / "artifacts" / name).write_bytes(sound)
    assert not trace.exists()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make what a downloaded version consists of for `FaceEditor`; an export takes a second."""
    folder = tmp_path_factory.mktemp("exported")
    (folder / "artifacts").mkdir()
    (folder / "MLmodel").touch()
    editing.write(TrainingState.build(TINY).ema, TINY, folder / "artifacts")
    return folder


@pytest.fixture
def downloaded(exported: Path, tmp_path: Path) -> Path:
    """Return a copy of it that a test may damage."""
    return Path(shutil.copytree(exported, tmp_path / "model"))


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("model", "base_channels", 10**9),
        ("model", "base_channels", 10**30),
        ("model", "base_channels", 8),
        ("model", "base_channels", "4"),
        ("model", "base_channels", 4.5),
        ("model", "num_downsamples", 10**12),
        ("model", "num_downsamples", 3),
        ("model", "dilations", [2] * 100_000),
        ("model", "dilations", [0, 0, 0, 0]),
        ("model", "dilations", None),
        ("data", "size_px", -32),
        ("data", "size_px", "32"),
        ("masks", "noise_probability", float("nan")),
        ("masks", "noise_probability", "often"),
        ("masks", "nonsense", 1),
    ],
)
def test_absurd_config_is_refused(downloaded: Path, section: str, name: str, value: Any) -> None:
    file = downloaded / "artifacts" / editing.CONFIG
    config = json.loads(file.read_text())
    config[section][name] = value
    file.write_text(json.dumps(config))
    with pytest.raises(ModelError, match="cannot be used: .*; register it anew"):
        FaceEditor.from_uri(downloaded)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "7", "[" * 100_000, '{"model": []}'])
def test_config_that_is_none_is_refused(downloaded: Path, text: str) -> None:
    (downloaded / "artifacts" / editing.CONFIG).write_text(text)
    with pytest.raises(ModelError, match="cannot be used: .*; register it anew"):
        FaceEditor.from_uri(downloaded)


def test_weights_that_do_not_fit_are_refused(downloaded: Path) -> None:
    file = downloaded / "artifacts" / editing.WEIGHTS
    sound = editing.deserialize(file.read_bytes())
    first = next(iter(sound))
    for wrong in (
        {},
        {name: tensor for name, tensor in sound.items() if name != first},
        sound | {"more": torch.zeros(1)},
        sound | {first: sound[first][:1].clone()},
        sound | {first: sound[first].double()},
        sound | {first: sound[first].to(torch.int32)},
    ):
        editing.save_file(wrong, file)
        with pytest.raises(ModelError, match="cannot be used: .*; register it anew"):
            FaceEditor.from_uri(downloaded)


def test_version_of_the_first_format_is_refused_with_the_cure() -> None:
    with pytest.raises(
        ModelError,
        match=r"has no generator.safetensors: .* run the same training command again, which registers it anew",
    ):
        FaceEditor.from_uri(OLD_VERSION)


def test_moved_store_says_where_its_files_were_and_how_to_mend_it(
    version: tuple[str, str, np.ndarray], tmp_path: Path
) -> None:
    uri, registry, expected = version
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=r"no MLflow database at .*runs/mlflow.db; set MLFLOW_TRACKING_URI"):
        FaceEditor.from_uri(uri, tracking_uri=registry)
    assert not (tmp_path / "runs").exists(), "asking makes nothing"

    moved = f"sqlite:///{tmp_path}/elsewhere/mlflow.db"
    with pytest.raises(ModelError, match=f"are not at {tmp_path}/runs/mlartifacts/.* recorded them") as caught:
        FaceEditor.from_uri(uri, tracking_uri=moved)
    assert f"(ln -s {tmp_path}/elsewhere {tmp_path}/runs)" in str(caught.value)
    folder = str(caught.value).rpartition("give from_uri the folder ")[2]
    assert np.array_equal(edit(FaceEditor.from_uri(folder)), expected)
    (tmp_path / "runs").symlink_to(tmp_path / "elsewhere")
    assert np.array_equal(edit(FaceEditor.from_uri(uri, tracking_uri=moved)), expected)

    (tmp_path / "runs").unlink()
    shutil.rmtree(tmp_path / "elsewhere" / "mlartifacts")
    with pytest.raises(ModelError, match="bring them back there, or give from_uri the folder that holds .* MLmodel"):
        FaceEditor.from_uri(uri, tracking_uri=moved)


def test_registry_that_nobody_named_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"no MLflow database at {tmp_path}/mlflow.db; set MLFLOW_TRACKING_URI"):
        FaceEditor.from_uri("models:/scfegan-generator/1")
    (tmp_path / "broken.db").write_text("this is no database")
    with pytest.raises(ModelError, match="no model models:/scfegan-generator/1 at sqlite:"):
        FaceEditor.from_uri("models:/scfegan-generator/1", tracking_uri="sqlite:///broken.db")
    assert not (tmp_path / "mlflow.db").exists()


def test_checkpoint_can_be_edited_with(tiny: Config, tmp_path: Path) -> None:
    state = TrainingState.build(tiny)
    checkpoint.write(checkpoint.capture(state, tiny), tmp_path)
    loaded, direct = FaceEditor.from_uri(str(tmp_path)), FaceEditor(state.ema, tiny)
    for editor in (loaded, direct):
        editor.set_image(IMAGE)
    assert np.array_equal(loaded.edit(MASK, MASK, UNPAINTED), direct.edit(MASK, MASK, UNPAINTED))
    with pytest.raises(CheckpointError):
        FaceEditor.from_uri(str(tmp_path / "nothing"))
