"""What very many images cost the processes that must know of all of them, by shards of the smallest pictures."""

from __future__ import annotations

import itertools
import json
import logging
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from scfegan_ray import faces
from scfegan_ray.benchmarks import step
from scfegan_ray.config import Config
from scfegan_ray.data import plan as planning
from scfegan_ray.data import prepare
from scfegan_ray.data.codecs import encode_row
from scfegan_ray.data.dataset import write_shard
from scfegan_ray.data.examples import TrainingExamples
from scfegan_ray.data.rows import PreparedDataset
from scfegan_ray.progress import Progress

logger = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")

_SIZE_PX, _SHARD_IMAGES, _WINDOW_IMAGES = 16, 1000, 4096
_EXAMPLES = (1_000, 20_000)
"""After which a worker's memory is looked at."""


def run(config: Config) -> dict[str, Any]:
    """Measure, log a table, and keep nothing; takes some 300 bytes of disk an image meanwhile.

    Args:
        config: `data.num_embedded` says how many images.

    Returns:
        By driver (of a preparation whose shards are all there): prepare_seconds, peak_gb. By worker (a process that
        makes examples, in windows of 4,096 images): ready_seconds until its first example on a machine that has none of
        the dataset, again_seconds on one that has its index, and memory_gb by how many examples it has made.
    """
    with tempfile.TemporaryDirectory(prefix="scfegan-benchmark-") as scratch:
        data = replace(
            config.data,
            source="embedded",
            size_px=_SIZE_PX,
            shard_images=_SHARD_IMAGES,
            prepared=f"{scratch}/prepared",
            max_images=None,
            sketch=replace(config.data.sketch, detector="opencv"),
        )
        config = replace(config, data=data, model=replace(config.model, num_downsamples=2))
        _write_shards(config)
        found = {
            "images": config.data.num_embedded,
            "driver": json.loads(step.in_a_process("rows.drive", config, failure="the driver failed", trains=False)),
            "worker": json.loads(step.in_a_process("rows.work", config, failure="a worker failed")),
        }
    logger.info("%d images in shards of %d", found["images"], _SHARD_IMAGES)
    for part in ("driver", "worker"):
        logger.info("%s: %s", part, ", ".join(f"{name} {value}" for name, value in found[part].items()))
    return found


def _write_shards(config: Config) -> None:
    """Write what a preparation would; the pictures are the same everywhere."""
    plan = planning.make_plan(config)
    settled = planning.settle(config.data, plan, None).sketch
    drawn = faces.draw_face(0, 0, _SIZE_PX)
    row = encode_row(
        "", drawn.image, drawn.image[..., 0] * 0, drawn.image.clip(1), None, np.asarray(drawn.eyes, np.float32)
    )
    progress = Progress("write", total=plan.num_shards, unit="shards", log=logger.info)
    for number in range(plan.num_shards):
        # Digests differ by the key alone; nobody compares them with the pictures.
        rows = [row | {"key": key} for key in plan.keys_of(number).to_pylist()]
        write_shard(
            plan.uri,
            number,
            rows,
            settings=plan.settings,
            settled={"detector": settled.detector, "precision": settled.precision},
            refused=[],
        )
        progress.update(number + 1)


def drive(config_json: str) -> str:
    """Finish a preparation whose shards are all there, in this process; return JSON of what it took."""
    config = Config.from_dict(json.loads(config_json))
    _, seconds = _timed(lambda: prepare.prepare(config))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return json.dumps({"prepare_seconds": round(seconds, 1), "peak_gb": round(peak / 1e9, 2)})


def work(config_json: str) -> str:
    """Make examples in this process; return JSON of what it took."""
    config = Config.from_dict(json.loads(config_json))
    assert config.data.prepared is not None

    def ready(cache: str) -> TrainingExamples:
        dataset = PreparedDataset.open(str(config.data.prepared), Path(cache), whole=False)
        examples = TrainingExamples(dataset, config.masks, config.seed, _WINDOW_IMAGES)
        examples.at(0)
        return examples

    with tempfile.TemporaryDirectory() as cache:
        first, ready_seconds = _timed(lambda: ready(cache))
        del first
        examples, again_seconds = _timed(lambda: ready(cache))
        memory = {}
        for before, count in itertools.pairwise((0, *_EXAMPLES)):
            for position in range(before, count):
                examples.at(position)
            memory[str(count)] = round(_memory_bytes() / 1e9, 3)
    return json.dumps(
        {"ready_seconds": round(ready_seconds, 1), "again_seconds": round(again_seconds, 1), "memory_gb": memory}
    )


def _memory_bytes() -> int:
    """Return the memory of this process that it shares with no other, without what it maps of files."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024


def _timed(call: Callable[[], ResultT]) -> tuple[ResultT, float]:
    began = time.perf_counter()
    return call(), time.perf_counter() - began
