"""Where pasted faces are is known to a pixel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from scfegan_ray.benchmarks import alignment
from scfegan_ray.config import Config
from scfegan_ray.data import align
from scfegan_ray.errors import DataError


def test_a_pasted_face_is_where_it_is_said_to_be() -> None:
    y, x = np.mgrid[:256, :256]
    face = np.stack([x, y, np.full_like(x, 255)], axis=2).astype(np.uint8)
    dark = np.zeros((256, 256, 3), np.uint8)
    turned = set()
    for seed in range(5):
        picture, square = alignment.paste(face, dark, np.random.default_rng(seed))
        assert 160 <= square.side_px <= 640 and abs(square.angle) <= np.radians(30)
        assert all(700 <= length < 1400 for length in picture.shape[:2])
        cut = align.crop(picture, square, 256).astype(int)
        # But for its border, which blends into what is around it.
        assert np.abs(cut - face)[12:-12, 12:-12].max() < 6
        turned.add(square.angle > 0)
    assert turned == {True, False}


class Knowing:
    """Finds a face two hundredths of a side off in what is aligned, and in other pictures nothing but the first one."""

    def __init__(self) -> None:
        self.shown = 0

    def find(self, image: NDArray[np.uint8]) -> list[align.Face]:
        if image.shape[0] == image.shape[1] == 512:
            return [align.Face(align.Square(256 + 0.02 * 512, 256.0, 512.0, 0.0), 1.0)]
        self.shown += 1
        if self.shown > 1:
            return []
        _, square = PASTED[0]
        far = replace(square, center_x=square.center_x + square.side_px)
        return [align.Face(far, 1.0), align.Face(replace(square, side_px=square.side_px * 1.1), 0.5)]


PASTED: list[tuple[NDArray[np.uint8], align.Square]] = []


def test_errors_are_fractions_of_the_side(tiny: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    paste = alignment.paste

    def remember(*what: object) -> tuple[NDArray[np.uint8], align.Square]:
        PASTED.append(paste(*what))  # type: ignore[arg-type]
        return PASTED[-1]

    PASTED.clear()
    monkeypatch.setattr(alignment, "paste", remember)
    monkeypatch.setattr(align, "FaceFinder", Knowing)
    config = replace(tiny, data=replace(tiny.data, max_images=3))
    found = alignment.run(config)
    assert (found["num_photographs"], found["num_missed"], found["num_aligned"]) == (3, 2, 3)
    # Each corner moves outwards by a twentieth of the diagonal.
    assert found["corners"]["median"] == pytest.approx(0.05 * np.sqrt(2))
    assert found["unmoved"] == pytest.approx({"median": 0.02, "p95": 0.02, "most": 0.02})
    assert found["seconds"] > 0

    monkeypatch.setattr(Knowing, "find", lambda *_: [])
    with pytest.raises(DataError, match="no face is found in embedded; give aligned photographs"):
        alignment.run(config)
