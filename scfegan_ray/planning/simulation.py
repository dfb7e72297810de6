"""How long preparation and training take by the costs of one image: pure functions, no events, no chance.

An update takes what the slowest rank computes, then what of the gradients' way is not hidden behind the backward, then
the loop around it; a feed that makes images more slowly is waited for; checkpoints and evaluations are spread over all
updates. What it leaves out: other users of network and storage, restarts, and ranks that are slow for good.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from scfegan_ray.config import Config
from scfegan_ray.data.dataset import window_images
from scfegan_ray.data.trees import READ_AHEAD_FILES
from scfegan_ray.planning.costs import STAGES, Figure, gpus_find_edges
from scfegan_ray.planning.options import ClusterConfig

_BUCKET_BYTES = 25 * 2**20  # DDP's
_SMALL_SUMS = 3  # losses and what rank 0 asks, of both networks


@dataclass(frozen=True, slots=True)
class Shape:
    """Workers on nodes.

    Attributes:
        workers: all of them.
        nodes: that they are on.
    """

    workers: int
    nodes: int

    @classmethod
    def of(cls, workers: int, cluster: ClusterConfig) -> Shape:
        """Fill nodes one after another."""
        return cls(workers, -(-workers // cluster.workers_per_node))


@dataclass(frozen=True, slots=True)
class Preparation:
    """What it takes to prepare.

    Attributes:
        photographs: of the source.
        cpus: that prepare.
        hours: of the work.
        price: in dollars.
        bottleneck: the stage that takes longest; storage; or shards, where CPUs are more than those.
        dataset_bytes: of what is made.
    """

    photographs: int
    cpus: float
    hours: float
    price: float
    bottleneck: str
    dataset_bytes: float


@dataclass(frozen=True, slots=True)
class Training:
    """What it takes to train.

    Attributes:
        workers: ranks.
        nodes: that they are on.
        batch_size: of an update.
        parts: seconds of an update by what they go to.
        images_per_second: over all ranks.
        efficiency: share of what as many single workers would reach.
        feed_cpus: CPUs that make as many images as training takes.
        copy_hours: until every node has its copy of the dataset, or of a large one's first window.
        hours: of the whole run, with its start and the copy.
        price: of it, in dollars.
        bottleneck: the largest part.
        loss: the largest part beside updates themselves.
    """

    workers: int
    nodes: int
    batch_size: int
    parts: dict[str, float]
    images_per_second: float
    efficiency: float
    feed_cpus: float
    copy_hours: float
    hours: float
    price: float
    bottleneck: str
    loss: str


def expected_largest(number: int) -> float:
    """Return about how many standard deviations the largest of so many normal values lies above their mean.

    Blom's approximation; 0 for one value.
    """
    return NormalDist().inv_cdf((number - 0.375) / (number + 0.25)) if number > 1 else 0.0


def prepare(
    config: Config, cluster: ClusterConfig, figures: Mapping[str, Figure], photographs: int, shape: Shape
) -> Preparation:
    """Plan a preparation: by the CPU nodes where there are any, before workers are paid for, else by the workers' CPUs.

    Where GPUs find the edges (`costs.gpus_find_edges`) the other stages take the same nodes' CPUs meanwhile.
    """
    uses_gpus = gpus_find_edges(config, cluster)
    cpus, hourly = _preparing(config, cluster, figures, shape, uses_gpus)
    stages = {name: figures[f"prepare: {name}"].value / 1000 for name in STAGES}
    share = figures["prepare: share that Ray's pipeline reaches"].value
    on_cpus = {name: seconds for name, seconds in stages.items() if not (uses_gpus and name == "sketch")}
    shards = math.ceil(photographs / config.data.shard_images)
    takes = {"CPUs": math.ceil(shards / cpus) * config.data.shard_images * sum(on_cpus.values()) / share}
    if uses_gpus:
        takes["sketch"] = photographs * stages["sketch"] / shape.workers
    if config.data.source.startswith("s3://"):
        wait = figures["prepare: wait for one object"].value / 1000 * cluster.objects_per_photograph
        takes["storage"] = photographs * wait / READ_AHEAD_FILES / cpus
    slowest = max(takes, key=lambda name: takes[name])
    bottleneck = slowest
    if slowest == "CPUs":
        bottleneck = "shards" if shards < cpus else max(on_cpus, key=lambda name: on_cpus[name])
    hours = (takes[slowest] + figures["start"].value) / 3600
    return Preparation(
        photographs=photographs,
        cpus=cpus,
        hours=hours,
        price=hours * hourly,
        bottleneck="edges" if bottleneck == "sketch" else bottleneck,
        dataset_bytes=photographs * figures["row of the dataset"].value,
    )


def _preparing(
    config: Config, cluster: ClusterConfig, figures: Mapping[str, Figure], shape: Shape, uses_gpus: bool
) -> tuple[float, float]:
    """Return the CPUs that prepare, and what they cost an hour."""
    if cluster.cpu_nodes and not uses_gpus:
        return cluster.cpu_nodes * cluster.cpus_per_cpu_node, cluster.cpu_nodes * figures[
            "price of a CPU node's hour"
        ].value
    return _worker_cpus(config, cluster) * shape.workers, shape.workers * figures["price of a worker's hour"].value


def _worker_cpus(config: Config, cluster: ClusterConfig) -> float:
    return cluster.cpus_per_worker if config.train.use_gpu else config.train.cpus_per_worker


def exchange_seconds(figures: Mapping[str, Figure], shape: Shape) -> float:
    """Return how long the gradients take to all ranks and back, as sums around a ring: 2 (n - 1) / n times their bytes.

    Between nodes each node's network carries that once; messages add their latency, in a tree.
    """
    if shape.workers == 1:
        return 0.0
    size = 1e6 * figures["gradients"].value
    if shape.nodes == 1:
        rate = figures["network within a node"].value
    else:
        rate = figures["network of a node"].value * figures["gradients: share of the network's rate"].value
    hops = 2 * math.ceil(math.log2(shape.nodes)) if shape.nodes > 1 else 0
    messages = math.ceil(size / _BUCKET_BYTES) + _SMALL_SUMS
    on_its_way = 2 * (shape.workers - 1) / shape.workers * 8 * size / (1e9 * rate)
    return on_its_way + messages * hops * figures["network: one message"].value / 1000


def update_parts(
    config: Config, cluster: ClusterConfig, figures: Mapping[str, Figure], shape: Shape, batch_size: int
) -> dict[str, float]:
    """Return the seconds of an update by what they go to, without checkpoints and evaluations."""
    images = math.ceil(batch_size / shape.workers)
    speed = cluster.gpu_speed if config.train.use_gpu else 1.0 * config.train.cpus_per_worker
    share = figures["update: share that a worker reaches"].value
    update = images * figures["update: one image"].value / 1000 / speed / share
    making = figures["feed: decode, hole, brush, noise, stack"].value / 1000
    if not config.train.use_gpu:
        update += images * making / config.train.cpus_per_worker  # the same cores do both
    launching = figures["update: calls"].value * figures["update: one call"].value / 1000
    computing = max(update, launching)
    slowest = computing * figures["update: variation"].value * expected_largest(shape.workers)
    hidden = figures["gradients: share of an update that hides them"].value * computing
    sent = exchange_seconds(figures, shape)
    last_bucket = sent * min(1.0, _BUCKET_BYTES / (1e6 * figures["gradients"].value))
    parts = {
        "update": update,
        "launching": computing - update,
        "slowest rank": slowest,
        "gradients": max(sent - hidden, last_bucket),
        "loop": figures["update: loop around it"].value / 1000,
    }
    feeding = 0.0
    if config.train.use_gpu:
        feeding = batch_size / feed_rate(config, cluster, figures, shape)
        if cluster.cpu_nodes:
            per_node = batch_size / shape.nodes * figures["feed: example on its way"].value
            feeding = max(feeding, 8 * per_node / (1e9 * figures["network of a node"].value))
    return parts | {"feed": max(0.0, feeding - sum(parts.values()))}


def feed_rate(config: Config, cluster: ClusterConfig, figures: Mapping[str, Figure], shape: Shape) -> float:
    """Return images per second that the workers' feed processes make, and the CPU nodes where there are any."""
    processes = max(1, min(config.train.loader_processes, int(_worker_cpus(config, cluster)) - 1))
    share = figures["prepare: share that Ray's pipeline reaches"].value
    cpus = shape.workers * processes + share * cluster.cpu_nodes * cluster.cpus_per_cpu_node
    return cpus / (figures["feed: decode, hole, brush, noise, stack"].value / 1000)


def train(
    config: Config, cluster: ClusterConfig, figures: Mapping[str, Figure], photographs: int, shape: Shape
) -> Training:
    """Plan a training of `train.images` images on a dataset of so many photographs."""
    batch_size = cluster.images_per_worker * shape.workers or config.train.batch_size
    parts = update_parts(config, cluster, figures, shape, batch_size)
    parts["checkpoints, evaluations"] = _pause_seconds(config, figures, shape, batch_size, sum(parts.values()))
    seconds = sum(parts.values())
    alone = cluster.images_per_worker or config.train.batch_size
    single_rate = alone / sum(update_parts(config, cluster, figures, Shape(1, 1), alone).values())
    rate = batch_size / seconds
    window = config.train.window_images
    window = window_images(photographs, config.data.size_px) if window is None else window
    first = min(photographs, window) if window else photographs
    copying = first * figures["row of the dataset"].value * 8 / (1e9 * figures["storage of a node"].value)
    copy_hours = 0.0 if cluster.cpu_nodes else copying / 3600
    hours = config.train.images / rate / 3600 + copy_hours + figures["start"].value / 3600
    hourly = shape.workers * figures["price of a worker's hour"].value
    hourly += cluster.cpu_nodes * figures["price of a CPU node's hour"].value
    return Training(
        workers=shape.workers,
        nodes=shape.nodes,
        batch_size=batch_size,
        parts=parts,
        images_per_second=rate,
        efficiency=rate / (shape.workers * single_rate),
        feed_cpus=rate * figures["feed: decode, hole, brush, noise, stack"].value / 1000,
        copy_hours=copy_hours,
        hours=hours,
        price=hours * hourly,
        bottleneck=max(parts, key=lambda name: parts[name]),
        loss=max(parts.keys() - {"update"}, key=lambda name: (parts[name], name)),
    )


def _pause_seconds(
    config: Config, figures: Mapping[str, Figure], shape: Shape, batch_size: int, update_seconds: float
) -> float:
    """Return the pauses for checkpoints and evaluations, for each update."""
    every = config.train.checkpoint_every_images / batch_size
    by_clock = config.train.checkpoint_every_seconds / update_seconds
    copying = 8e6 * figures["checkpoint"].value / (1e9 * figures["checkpoint: copied for it"].value)
    # One may begin when the one before is written.
    writing = 8e6 * figures["checkpoint"].value / (1e9 * figures["storage of a node"].value)
    measuring = math.ceil(config.evaluation.num_images / shape.workers)
    measuring_seconds = measuring * figures["held back: measure one image"].value / 1000
    per_checkpoint = copying + max(0.0, writing - min(every, by_clock) * update_seconds)
    return per_checkpoint / min(every, by_clock) + measuring_seconds / every


def bend(plans: Sequence[Training], least: float = 0.7) -> Training | None:
    """Return the first plan, by workers, that reaches less than this share of what as many single workers would."""
    return next((plan for plan in sorted(plans, key=lambda one: one.workers) if plan.efficiency < least), None)
