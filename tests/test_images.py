"""Layout, range and channel order, with values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scfegan_ray import images


def test_every_8_bit_value_survives_the_round_trip() -> None:
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).repeat(1, 1, 1, 3)
    assert torch.equal(images.to_uint8(images.to_model(values)), values)


def test_to_model_layout_and_range() -> None:
    pixels = torch.zeros(1, 2, 3, 3, dtype=torch.uint8)
    pixels[0, 1, 2] = torch.tensor([255, 0, 51])
    tensor = images.to_model(pixels)
    assert tensor.shape == (1, 3, 2, 3)
    assert tensor[0, :, 1, 2].tolist() == pytest.approx([1.0, -1.0, -0.6])


def test_out_of_range_is_clipped() -> None:
    assert images.to_uint8(torch.tensor([[[[-7.0]], [[7.0]]]])).flatten().tolist() == [0, 255]


def one_pixel_batch(mask: int) -> images.Batch:
    return images.Batch.from_uint8(
        image=torch.tensor([[[[255, 127, 0]]]], dtype=torch.uint8),
        mask=torch.tensor([[[[mask]]]], dtype=torch.uint8),
        sketch=torch.ones(1, 1, 1, 1, dtype=torch.uint8),
        color=torch.tensor([[[[0, 0, 0]]]], dtype=torch.uint8),
        noise=torch.ones(1, 1, 1, 1, dtype=torch.uint8),
    )


def test_input_inside_the_hole() -> None:
    # incomplete is 0, unpainted color is -1, the maps are kept.
    packed = one_pixel_batch(mask=1).generator_input()
    assert packed.flatten().tolist() == [0, 0, 0, 1, -1, -1, -1, 1, 1]


def test_input_outside_the_hole() -> None:
    # The image is seen; sketch, color, mask and noise are all 0.
    packed = one_pixel_batch(mask=0).generator_input().flatten().tolist()
    assert packed == pytest.approx([1, 127 / 127.5 - 1, -1, 0, 0, 0, 0, 0, 0])


def test_conditions_hold_no_noise() -> None:
    conditions = one_pixel_batch(mask=1).conditions().flatten().tolist()
    assert conditions == [1, 1, -1, -1, -1]


@pytest.mark.parametrize("mask", [0, 1])
def test_strokes_can_be_left_out(mask: int) -> None:
    batch = one_pixel_batch(mask)
    packed = batch.without_strokes().generator_input().flatten().tolist()
    # Incomplete 3, sketch, color 3 (-1 is unpainted, 0 outside the hole), mask, noise: only strokes differ.
    expected = batch.generator_input().flatten().tolist()
    expected[3:7] = [0, -1, -1, -1] if mask else [0, 0, 0, 0]
    assert packed == expected


def test_batch_without_strokes_is_what_nobody_drew_on() -> None:
    rng = np.random.default_rng(0)
    maps = {name: torch.from_numpy(rng.integers(0, 2, (2, 4, 4, 1), np.uint8)) for name in ("mask", "sketch", "noise")}
    pictures = {name: torch.from_numpy(rng.integers(1, 256, (2, 4, 4, 3), np.uint8)) for name in ("image", "color")}
    drawn = images.Batch.from_uint8(**maps, **pictures)
    nothing = {"sketch": torch.zeros_like(maps["sketch"]), "color": torch.zeros_like(pictures["color"])}
    blank = images.Batch.from_uint8(**(maps | pictures | nothing))
    assert torch.equal(drawn.without_strokes().generator_input(), blank.generator_input())
    assert not torch.equal(drawn.generator_input(), blank.generator_input())


def test_composite_takes_the_hole_from_the_generator() -> None:
    generated, truth = torch.full((1, 3, 1, 2), 0.5), torch.full((1, 3, 1, 2), -0.5)
    mask = torch.tensor([[[[1.0, 0.0]]]])
    assert images.composite(generated, truth, mask)[0, 0].tolist() == [[0.5, -0.5]]


def test_contact_sheet_places_pictures() -> None:
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 255
    sheet = images.contact_sheet([[red, np.full((8, 8), 7, np.uint8)]] * 2, ["a", "b"], 8)
    assert sheet.shape == (18 + 2 * 10 + 2, 2 * 10 + 2, 3)
    assert sheet[20, 4].tolist() == [255, 0, 0]
    assert sheet[20 + 10, 14].tolist() == [7, 7, 7]
