"""How fast preparation is, stage by stage, in one process and on Ray, and how fast training loads what it made."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from scfegan_ray.config import Config
from scfegan_ray.data import align, examples, masks, prepare, sketches, sources
from scfegan_ray.data.rows import PreparedDataset
from scfegan_ray.errors import DataError

logger = logging.getLogger(__name__)

_STAGE_IMAGES = 96
_SHARDS_PER_CORE = 8
_PIPELINE_SECONDS = 30.0
_ALL_IN_ONE = "all stages, one process"
_LOADING_SECONDS = 3.0
_LOADING_BATCH = 16


def run(
    config: Config, *, session: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
) -> dict[str, Any]:
    """Measure on the first photographs of a source, log a table, and keep nothing.

    The machine's own ups and downs would spoil a comparison of figures from different minutes: the stages and the
    whole in one process are measured before the Ray pipeline and after it, and averaged.

    Args:
        config: `data` as for a preparation; `data.max_images` says how many photographs the pipeline gets, half a
            minute's work where it is unset.
        session: Ray must run within it.

    Returns:
        images_per_second by name of the stage; pipeline_share: the pipeline's figure over what all cores could do by
        the stages'; and peak_memory_bytes of all processes while the pipeline ran, where the system tells.
    """
    data = replace(config.data, sketch=sketches.settle(config.data.sketch))
    source, listing = sources.open_source(data, config.seed, outputs=(config.storage.path,))
    if isinstance(source, sources.RawPhotographs):
        data = replace(data, align=align.settle(data.align))
    seconds: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="scfegan-benchmark-") as scratch:
        maker = prepare.ShardMaker(data, source, f"{scratch}/one", {})
        maker.set_up(*prepare.STAGES)
        keys = [key for key in listing.keys[:_STAGE_IMAGES].to_pylist() if _can_be_used(maker, key)]
        _time_stages(maker, keys, data.shard_images, seconds)
        with session():
            num_cores = prepare.num_cores()
            enough = int(_PIPELINE_SECONDS * num_cores * len(keys) / seconds[_ALL_IN_ONE][0])
            num_images = min(data.max_images or enough, len(listing.keys))
            # As many shards for each core, so that none waits for another at the end: that is no matter of speed.
            per_core = max(_SHARDS_PER_CORE, -(-num_images // (num_cores * data.shard_images)))
            data = replace(
                data,
                prepared=f"{scratch}/ray",
                max_images=num_images,
                shard_images=-(-num_images // (num_cores * per_core)),
            )
            with _peak_memory() as peak:
                started = time.perf_counter()
                made = prepare.prepare(replace(config, data=data))
                whole_seconds = time.perf_counter() - started
        _time_stages(maker, keys, config.data.shard_images, seconds)
        loading = _time_loading(config, f"{scratch}/ray", Path(scratch, "cache"))
    per_image = {name: sum(values) / (len(values) * len(keys)) for name, values in seconds.items()}
    in_one = per_image.pop(_ALL_IN_ONE)
    by_stages = num_cores / sum(per_image.values())
    reached = made.num_made / made.busy_seconds
    rates = {name: 1 / value for name, value in per_image.items()}
    rates |= {
        _ALL_IN_ONE: 1 / in_one,
        f"{num_cores} cores by the stages": by_stages,
        f"Ray pipeline, {num_cores} cores": reached,
        "Ray pipeline with its start and end": made.num_made / whole_seconds,
    }
    rates |= {f"training, one core: {name}": rate for name, rate in loading.items()}
    logger.info("%d images at %d px from %s", made.num_made, data.size_px, source.name)
    for name, rate in rates.items():
        logger.info("%-58s %8.1f images/s %8.2f ms", name, rate, 1000 / rate)
    logger.info("the pipeline reaches %.2f of what %d cores can do by the stages", reached / by_stages, num_cores)
    if peak:
        logger.info("peak memory of all its processes: %.2f GiB", max(peak) / 2**30)
    return {
        "images": made.num_made,
        "size_px": data.size_px,
        "images_per_second": rates,
        "pipeline_share": reached / by_stages,
        "peak_memory_bytes": max(peak, default=None),
    }


def _can_be_used(maker: prepare.ShardMaker, key: str) -> bool:
    try:
        faces, _ = maker.load(key)
    except DataError:
        return False
    return bool(faces)


def _time_stages(maker: prepare.ShardMaker, keys: list[str], per_shard: int, seconds: dict[str, list[float]]) -> None:
    """Add to each stage's list how long it took for all keys."""
    started = time.perf_counter()

    def stop(name: str) -> None:
        nonlocal started
        seconds[name].append(time.perf_counter() - started)
        started = time.perf_counter()

    named = [face for key in keys for face in maker.load(key)[0]]
    loaded = [face for _, face in named]
    stop("read, decode, resize, label")
    chunks = [loaded[at : at + prepare.CHUNK_IMAGES] for at in range(0, len(loaded), prepare.CHUNK_IMAGES)]
    drawn = np.concatenate([maker.draw(maker.detect(maker.equalize(chunk))) for chunk in chunks])
    stop("sketch")
    painted = [maker.color(face) for face in loaded]
    stop("color")
    rows = [maker.encode(*face, *maps) for face, *maps in zip(named, drawn, painted, strict=True)]
    stop("encode")
    for number, at in enumerate(range(0, len(rows), per_shard)):
        maker.write(number, rows[at : at + per_shard], [])
    stop("write")
    for number, at in enumerate(range(0, len(keys), per_shard)):
        maker.make(number, keys[at : at + per_shard])
    stop(_ALL_IN_ONE)


def _time_loading(config: Config, uri: str, cache: Path) -> dict[str, float]:
    """Return images per second, on one thread, of what a training worker does for each image."""
    dataset = PreparedDataset.open(uri, cache)
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    rows = [dataset.row(at) for at in range(min(64, len(dataset)))]

    made = examples.TrainingExamples(dataset, config.masks, config.seed)

    def hole(at: int) -> None:
        row = rows[at % len(rows)]
        masks.draw_mask(row["image"].shape[0], row["eyes"], row["hair"], config.masks, rng)

    def batch(at: int) -> None:
        positions = range(at * _LOADING_BATCH, (at + 1) * _LOADING_BATCH)
        examples.stack([made.at(place) for place in positions])

    return {
        "decode": _rate(lambda at: dataset.row(at % len(dataset))),
        "draw the hole": _rate(hole),
        "decode, hole, brush, noise, stack": _rate(batch) * _LOADING_BATCH,
    }


def _rate(work: Callable[[int], object]) -> float:
    """Return calls per second."""
    work(0)
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < _LOADING_SECONDS:
        done += 1
        work(done)
    return done / (time.perf_counter() - started)


@contextlib.contextmanager
def _peak_memory(every_seconds: float = 8.0) -> Iterator[list[int]]:
    """Collect, while the context lasts, the memory of this process and its descendants, shared pages counted once.

    Seldom and once at the end: the system holds each process still while it counts its pages.
    """
    samples: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(every_seconds):
            samples.append(_tree_bytes())
        samples.append(_tree_bytes())

    watcher = threading.Thread(target=watch, daemon=True)
    if Path("/proc/self/smaps_rollup").exists():
        watcher.start()
    try:
        yield samples
    finally:
        over.set()
        if watcher.ident is not None:
            watcher.join()


def _tree_bytes() -> int:
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                # The name in parentheses may itself hold spaces and parentheses.
                parents[int(entry)] = int(Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[1])
    tree, grew = {os.getpid()}, True
    while grew:
        more = {child for child, parent in parents.items() if parent in tree} - tree
        tree, grew = tree | more, bool(more)
    total = 0
    for process in tree:
        with contextlib.suppress(OSError):
            for line in Path("/proc", str(process), "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total
