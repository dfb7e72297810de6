"""The benchmark of evaluations: everything is timed, and nothing is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import torch
from pretrained import alexnet

from scfegan_ray.benchmarks import evaluation
from scfegan_ray.config import Config
from scfegan_ray.evaluation.options import MeasuringConfig


def test_each_measurement_has_a_rate(tiny: Config, tmp_path: Path) -> None:
    torch.save(alexnet(), weights := tmp_path / "alexnet.pth")
    threads = torch.get_num_threads(), cv2.getNumThreads()
    try:
        measuring = MeasuringConfig(identity="none", lpips=str(weights))
        rates = evaluation.run(replace(tiny, data=replace(tiny.data, size_px=32)), measuring)["images_per_second"]
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])
    assert set(rates) == {
        "generator", "psnr and l1", "ssim", "flip", "seam", "sketch", "color", "conditions", "telea", "lpips",
        "all conditions",
    }  # fmt: skip
    assert min(rates.values()) == rates["all conditions"]
    assert list(tmp_path.iterdir()) == [weights]
