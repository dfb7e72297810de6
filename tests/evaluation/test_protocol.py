"""A protocol's name stands for its holes, brushes and noise, to the last pixel."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scfegan_ray import config, faces
from scfegan_ray.data import colors, parsing
from scfegan_ray.errors import ConfigError
from scfegan_ray.evaluation.protocol import HOLES, Protocol

FREEFORM = Protocol(images="drawn", size_px=64, holes="freeform")


@pytest.fixture(scope="module")
def row() -> dict[str, Any]:
    face = faces.draw_face(0, 0, 64)
    return {
        "key": "embedded/0/0000000",
        "image": face.image,
        "sketch": np.eye(64, dtype=np.uint8),
        "color": colors.make_color_map(face.image, face.labels, config.ColorConfig()),
        "hair": parsing.hair_region(face.labels),
        "eyes": np.asarray(face.eyes, np.float32),
    }


def drawn(protocol: Protocol, row: dict[str, Any]) -> str:
    example = protocol.example(row)
    parts = (example["mask"], example["noise"], example["color"].any(axis=2))
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:12]


DIGESTS = {
    "freeform": "bf509588c795",
    "thin": "948f8f77620d",
    "thick": "2fdbed9e2672",
    "eyes": "f03526f638ce",
    "hair": "e0b23d9f1afc",
    "full": "b74aa310bece",
    "wobbly": "bf509588c795",
}


def test_names() -> None:
    assert Protocol(images="celebahq", size_px=256, holes="freeform").name == "celebahq_256_freeform_v1"
    with pytest.raises(ConfigError, match="no holes called 'round'; give one of freeform, thin"):
        Protocol(images="faces", size_px=64, holes="round")


@pytest.mark.parametrize("holes", HOLES)
def test_version_1_draws_what_it_always_drew(holes: str, row: dict[str, Any]) -> None:
    assert drawn(replace(FREEFORM, holes=holes), row) == DIGESTS[holes]


@pytest.mark.parametrize("holes", HOLES)
def test_strokes_stay_in_the_hole(holes: str, row: dict[str, Any]) -> None:
    example = replace(FREEFORM, holes=holes).example(row)
    hole = example["mask"] > 0
    assert hole.any()
    for name in ("sketch", "noise", "color"):
        assert not (example[name] * ~hole).any(), name
    assert example["color"].any()


def test_special_holes_cover_what_they_are_called(row: dict[str, Any]) -> None:
    masks = {name: replace(FREEFORM, holes=name).example(row)["mask"][..., 0] for name in HOLES}
    assert masks["full"].all()
    assert (masks["hair"] >= row["hair"]).all()
    assert masks["hair"].sum() < 1.5 * row["hair"].sum()
    for x, y in row["eyes"].reshape(2, 2):
        assert masks["eyes"][round(float(y)), round(float(x))] == 1
    assert 0.02 < masks["eyes"].mean() < 0.2
    assert replace(FREEFORM, holes="full").example(row)["color"].any(axis=2).all()


def test_thick_holes_are_broader_than_thin_ones(row: dict[str, Any]) -> None:
    def width(holes: str) -> float:
        """Area over length of the outline, of 20 holes."""
        found = []
        for number in range(20):
            mask = replace(FREEFORM, holes=holes).example(row | {"key": str(number)})["mask"][..., 0].astype(int)
            outline = np.abs(np.diff(mask, axis=0)).sum() + np.abs(np.diff(mask, axis=1)).sum()
            found.append(mask.sum() / outline)
        return float(np.mean(found))

    assert width("thin") < 0.7 * width("freeform") < 0.7 * width("thick")


def test_hair_is_wanted_only_for_holes_of_hair() -> None:
    assert FREEFORM.takes(None)
    hair = replace(FREEFORM, holes="hair")
    assert [hair.takes(area) for area in (None, 0.0, 0.005, 0.2)] == [False, False, False, True]


def test_another_image_gets_another_hole_and_the_same_one_the_same(row: dict[str, Any]) -> None:
    assert drawn(FREEFORM, row) == drawn(FREEFORM, row)
    assert drawn(FREEFORM, row) != drawn(FREEFORM, row | {"key": "other"})


def test_wobbly_strokes_lie_over_the_holes_of_freeform(row: dict[str, Any]) -> None:
    clean, wobbly = FREEFORM.example(row), replace(FREEFORM, holes="wobbly").example(row)
    for name in ("image", "mask", "noise"):
        assert np.array_equal(clean[name], wobbly[name])
    for name in ("sketch", "color"):
        assert not np.array_equal(clean[name], wobbly[name])
        assert not wobbly[name][wobbly["mask"][..., 0] == 0].any()
    assert hashlib.sha256(wobbly["sketch"].tobytes() + wobbly["color"].tobytes()).hexdigest()[:12] == "865e431bf15a"
