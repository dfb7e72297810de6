"""What each measurement of an evaluation costs, beside the network's own work, in one process on one thread."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch

from scfegan_ray import faces
from scfegan_ray.config import Config
from scfegan_ray.data.examples import stack
from scfegan_ray.evaluation import adherence, conditions, measure, networks, quality, references
from scfegan_ray.evaluation.options import AS_USUAL, MeasuringConfig
from scfegan_ray.evaluation.protocol import Protocol
from scfegan_ray.models.generator import Generator

logger = logging.getLogger(__name__)

_IMAGES = 8
_ROUNDS = 3


def run(config: Config, measuring: MeasuringConfig = AS_USUAL) -> dict[str, Any]:
    """Time everything on a few drawn faces, log a table, and keep nothing.

    Args:
        config: `data.size_px`, and `model`, whose weights are drawn.
        measuring: which networks measure, too.

    Returns:
        images_per_second: by name; "generator" is one pass of the network in float32, "all conditions" what an
        evaluation takes for a model, all measurements included.
    """
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    size = config.data.size_px
    protocol = Protocol(images="drawn", size_px=size, holes="freeform")
    rows = [_row(index, size) for index in range(_IMAGES)]
    batch = stack([protocol.example(row) for row in rows])
    truth, hole, lines = batch["image"], batch["mask"][..., 0] > 0, batch["sketch"][..., 0]
    filled = measure.reference_candidate(references.REFERENCES["painted_color"])(batch)
    model = measure.model_candidate(Generator(config.model), torch.device("cpu"))
    works: dict[str, Callable[[], object]] = {
        "generator": lambda: model(batch),
        "psnr and l1": lambda: (
            quality.psnr(filled, truth), quality.l1(filled, truth), quality.hole_psnr(filled, truth, hole),
            quality.hole_l1(filled, truth, hole),
        ),
        "ssim": lambda: quality.ssim(filled, truth, hole),
        "flip": lambda: quality.hole_flip(filled, truth, hole),
        "seam": lambda: quality.seam(filled, truth, hole),
        "sketch": lambda: [adherence.sketch_adherence(*one) for one in zip(filled, lines, hole, strict=True)],
        "color": lambda: [adherence.color_adherence(*one) for one in zip(filled, batch["color"], strict=True)],
        "conditions": lambda: [
            conditions.make(protocol.example(row), row, rows[0], protocol.rng(row["key"])) for row in rows
        ],
        "telea": lambda: measure.reference_candidate(references.REFERENCES["telea"])(batch),
    }  # fmt: skip
    if size >= quality.MS_SSIM_FROM_PX:
        works["ms_ssim"] = lambda: quality.ms_ssim(filled, truth)
    at_hand = networks.build(
        networks.read(measuring.lpips, measuring.inception),
        has_faces=networks.has_embedder(measuring.identity),
        device=torch.device("cpu"),
    )
    if embed := at_hand.faces:
        works["identity"] = lambda: [embed(one, row["eyes"]) for one, row in zip(filled, rows, strict=True)]
    if at_hand.lpips:
        works["lpips"] = lambda: at_hand.distance(filled, truth)
    if program := at_hand.inception:
        works["inception"] = lambda: program(filled)
    works["all conditions"] = lambda: measure.measure({"model": model}, rows, rows, protocol, at_hand)
    rates = {}
    for name, work in works.items():
        work()  # libraries get ready
        rates[name] = statistics.median(_rate(work) for _ in range(_ROUNDS))
        logger.info("%-15s %9.2f images/s", name, rates[name])
    return {"images_per_second": rates}


def _row(index: int, size_px: int) -> dict[str, Any]:
    """Return a drawn face as a row of a dataset, with its own colors and an outline of its edges."""
    face = faces.draw_face(0, index, size_px)
    return {
        "key": str(index),
        "image": face.image,
        "sketch": adherence.find_edges(face.image),
        "color": np.maximum(face.image, 1),
        "hair": None,
        "eyes": np.asarray(face.eyes, np.float32),
    }


def _rate(work: Callable[[], object]) -> float:
    """Return images per second of one call."""
    began = time.perf_counter()
    work()
    return _IMAGES / (time.perf_counter() - began)
