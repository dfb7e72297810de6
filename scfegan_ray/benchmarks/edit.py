"""How fast an edit is, by runtime, precision and size, and how far each is from torch in float32."""

from __future__ import annotations

import functools
import logging
from importlib import util
from typing import Any

import numpy as np
import torch

from scfegan_ray.benchmarks import step
from scfegan_ray.config import Config
from scfegan_ray.models.editing import EditingModel
from scfegan_ray.models.generator import Generator
from scfegan_ray.precision import has_bfloat16, name_of
from scfegan_ray.serving import runtimes

logger = logging.getLogger(__name__)


def run(config: Config) -> dict[str, Any]:
    """Measure whatever this machine can compute, of each size in turns in this process, log a table, and keep nothing.

    An edit is all from five uint8 maps on the device to the uint8 picture; weights are drawn at random, the hole is a
    quarter of the image, see `runtimes.sample`.

    Args:
        config: `model`, `seed`, `data.size_px` (half of it, too, where the model takes it), `train.use_gpu` and
            `train.threads_per_worker` are read.

    Returns:
        threads; edits: for each size, runtime and precision its size_px, runtime and precision, milliseconds (the
        median), ratio (to torch in float32 at that size), and max_difference from that in the hole, in levels of 255.
    """
    device = step.set_up(config)
    torch.manual_seed(config.seed)
    model = EditingModel(Generator(config.model)).eval().to(device)
    half = config.data.size_px // 2
    sizes = [*([half] if half % 2**config.model.num_downsamples == 0 else []), config.data.size_px]
    edits: list[dict[str, Any]] = []
    for size in sizes:
        maps = [torch.from_numpy(one).to(device) for one in runtimes.sample(size)]
        ready = {choice: runtimes.compiled(model, (size, size), device, choice) for choice in _choices(device)}
        work = {choice: functools.partial(edit, *maps) for choice, edit in ready.items()}
        seconds, results = step.in_turns(work, device)
        pictures = {choice: result.cpu().numpy().astype(int) for choice, result in results.items()}
        base = next(iter(ready))  # torch in float32
        for choice, value in seconds.items():
            difference = np.abs(pictures[choice] - pictures[base]).max()
            edits.append(
                {
                    "size_px": size,
                    "runtime": choice.runtime,
                    "precision": name_of(choice.dtype),
                    "milliseconds": 1000 * value,
                    "ratio": value / seconds[base],
                    "max_difference": int(difference),
                }
            )
    logger.info("an edit on %s, %d threads", device, torch.get_num_threads())
    for one in edits:
        logger.info("%4d px  %-8s  %-8s  %7.0f ms  %.2f of torch in float32, %d of 255 from it at most", *one.values())
    return {"threads": torch.get_num_threads(), "edits": edits}


def _choices(device: torch.device) -> list[runtimes.Choice]:
    """Return what can compute here, torch in float32 first."""
    dtypes = (torch.float32, torch.bfloat16) if has_bfloat16(device) else (torch.float32,)
    found = [runtimes.Choice("torch", dtype) for dtype in dtypes]
    if device.type == "cpu" and util.find_spec("openvino") is not None:
        found += [runtimes.Choice("openvino", dtype) for dtype in dtypes]
        if util.find_spec("nncf") is not None:
            found.append(runtimes.Choice("openvino", torch.int8))
    return found
