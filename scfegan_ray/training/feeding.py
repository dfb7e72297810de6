"""Where training examples are made, and what of the cluster that may take."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Literal

import ray

from scfegan_ray import cache, nodes, room
from scfegan_ray.config import Config
from scfegan_ray.data.dataset import DatasetInfo
from scfegan_ray.data.ray_feed import FEWEST_CPUS, Budget


def choose(config: Config, dataset: DatasetInfo, window_images: int) -> tuple[Literal["local", "ray"], str]:
    """Return where examples are made, and why.

    Args:
        config: of the run.
        dataset: that it learns from.
        window_images: of its order.
    """
    if config.data.feed != "auto":
        return config.data.feed, _cost(config.data.feed, dataset, window_images)
    able = set(nodes.able(worker_resources(config)))
    resources = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    others = sum(found.get("CPU", 0.0) for node, found in resources.items() if node not in able)
    if not able or others < config.train.num_workers:
        return "local", "no other nodes have cores to spare"
    cores = min(
        resources[node].get("CPU", 0.0) / max(1.0, resources[node].get("GPU", config.train.num_workers / len(able)))
        for node in able
    )
    wanted = 1 + config.train.loader_processes
    if cores < wanted:
        return "ray", f"{cores:g} cores beside each worker are fewer than {wanted}, and other nodes have {others:g}"
    num_bytes = local_bytes(dataset, window_images)
    question = functools.partial(_available_bytes, cache.cache_dir(), dataset.copy_name)
    there = min(nodes.ask(question, sorted(able)), default=0)
    if there < num_bytes:
        return "ray", f"a worker's disk has {there / 1e9:.3g} GB free, its copies take up to {num_bytes / 1e9:.3g} GB"
    return "local", f"{cores:g} cores beside each worker are enough"


def local_bytes(dataset: DatasetInfo, window_images: int) -> int:
    """Return how many bytes the copies of a dataset take at most on a machine that makes examples."""
    if not window_images:
        return dataset.most_bytes
    # Both windows begin and end within a shard.
    images = 2 * window_images + 2 * math.ceil(dataset.num_images / dataset.num_shards)
    return min(dataset.most_bytes, dataset.most_bytes * images // dataset.num_images)


def worker_resources(config: Config) -> dict[str, float]:
    """Return what Ray reserves for each worker."""
    return {"CPU": config.train.cpus_per_worker} | ({"GPU": 1} if config.train.use_gpu else {})


def fewest_cpus(config: Config, num_workers: int) -> float:
    """Return how many CPUs some workers of a run take, and their feed at least."""
    feed = FEWEST_CPUS if config.data.feed == "ray" else 0.0
    return num_workers * (config.train.cpus_per_worker + feed)


def budget(config: Config, num_workers: int) -> Budget:
    """Return what the feed of each worker may take.

    Args:
        config: of the run.
        num_workers: that it has now.

    Raises:
        ConfigError: the workers leave nothing.
    """
    found = Budget(
        num_workers=num_workers,
        cpus_per_worker=config.train.cpus_per_worker,
        num_trials=max(1, config.tune.max_concurrent_trials),
        fewest=max(1, config.train.loader_processes) if config.train.wait_for_nodes else 0,
    )
    found.now()
    return found


def _cost(feed: str, dataset: DatasetInfo, window_images: int) -> str:
    size = local_bytes(dataset, window_images) / 1e9
    if feed == "local":
        return f"as asked for; each machine with a worker copies up to {size:.3g} GB"
    what = f"windows of {window_images} images" if window_images else "a permutation of all images"
    return f"as asked for; each machine that makes examples copies up to {size:.3g} GB, for {what}"


def _available_bytes(folder: Path, name: str) -> float:
    """Return the bytes that are free here, and those of the copies that are there already."""
    there = sum(file.stat().st_size for file in (folder / "prepared").glob(f"{name}.*arrow"))
    return room.free_bytes(folder) + there
