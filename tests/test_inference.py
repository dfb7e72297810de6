"""The editor a person's strokes go through."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scfegan_ray.config import Config
from scfegan_ray.errors import CheckpointError, DataError
from scfegan_ray.inference import FaceEditor
from scfegan_ray.training import checkpoint
from scfegan_ray.training.state import TrainingState

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (32, 48, 3), np.uint8)
MASK = np.zeros((32, 48), np.uint8)
MASK[8:20, 10:30] = 1
NOTHING = np.zeros((32, 48), np.uint8)
UNPAINTED = np.zeros((32, 48, 3), np.uint8)


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


def test_masks_may_be_bool_or_255_or_have_a_channel(editor: FaceEditor) -> None:
    editor.set_image(IMAGE)
    plain = editor.edit(MASK, NOTHING, UNPAINTED)
    for mask in (MASK.astype(bool), MASK * np.uint8(255), MASK[..., None]):
        assert np.array_equal(plain, editor.edit(mask, NOTHING, UNPAINTED))


def test_the_editor_keeps_its_own_copy_of_the_image(editor: FaceEditor) -> None:
    image = IMAGE.copy()
    editor.set_image(image)
    image[:] = 0
    assert np.array_equal(editor.edit(NOTHING, NOTHING, UNPAINTED), IMAGE)


@pytest.mark.parametrize(
    ("image", "named"),
    [
        (IMAGE[:30], "sides divisible by 4"),
        (IMAGE.astype(np.float32), "float32"),
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
    with pytest.raises(DataError, match="sketch is float64"):
        editor.edit(MASK, NOTHING.astype(np.float64), UNPAINTED)
    with pytest.raises(DataError, match="color is uint8 of shape"):
        editor.edit(MASK, NOTHING, NOTHING)


def test_checkpoint_can_be_edited_with(tiny: Config, tmp_path: Path) -> None:
    state = TrainingState.build(tiny)
    checkpoint.write(checkpoint.capture(state, tiny), tmp_path)
    loaded, direct = FaceEditor.from_uri(str(tmp_path)), FaceEditor(state.ema, tiny)
    for editor in (loaded, direct):
        editor.set_image(IMAGE)
    assert np.array_equal(loaded.edit(MASK, MASK, UNPAINTED), direct.edit(MASK, MASK, UNPAINTED))
    with pytest.raises(CheckpointError):
        FaceEditor.from_uri(str(tmp_path / "nothing"))
