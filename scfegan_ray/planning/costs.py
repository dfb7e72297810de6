"""What one image, or one update, costs: each figure with where it was measured, or why it is assumed.

Measured figures are those of cluster/README.md. Between the sizes that were measured, and beyond them, a cost is taken
to grow as a power of the side, and is assumed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from scfegan_ray.config import Config
from scfegan_ray.data.sketches import working_size_px
from scfegan_ray.planning.options import ClusterConfig


@dataclass(frozen=True, slots=True)
class Figure:
    """A number that a plan is made from.

    Attributes:
        value: in `unit`.
        unit: such as ms or GB.
        basis: measured: timed or weighed on a machine; counted: follows from the code; assumed: neither.
        source: where it was measured, or what it is assumed from.
    """

    value: float
    unit: str
    basis: Literal["measured", "counted", "assumed"]
    source: str


@dataclass(frozen=True, slots=True)
class Counted:
    """What follows from a config without running it.

    Attributes:
        flops: of an update, for one image.
        calls: of ATen in an update.
        gradient_bytes: that ranks exchange in an update, as they travel.
        checkpoint_bytes: weights, moving average and moments.
        example_bytes: of a training example.
    """

    flops: float
    calls: int
    gradient_bytes: float
    checkpoint_bytes: float
    example_bytes: int


STAGES = ("read, decode, resize, label", "find faces", "sketch", "color", "encode", "write")
"""Of preparation, in order; `sketch` finds the edges."""

_XEON = "cluster/README.md, Preparation: one core of a Xeon with AMX"
_H200 = "cluster/README.md, One update: one H200"
_EPYC = "cluster/README.md, One update: 2 cores of an EPYC"
_ROUNDS = "cluster/README.md, What Ray costs: rounds of updates alone, on 2 cores"

_STAGE_MS: Mapping[str, Mapping[int, float]] = {
    "read, decode, resize, label": {128: 0.7, 512: 12.4},
    "sketch": {128: 46.1, 512: 103.0},
    "color": {128: 7.1, 512: 41.1},
    "encode": {128: 1.3, 512: 17.6},
    "write": {128: 0.5, 512: 3.2},
}
_EXAMPLE_MS = {128: 1.1, 512: 6.4}
_ROW_BYTES = {128: 33_120.0, 256: 110_362.0, 512: 331_388.0}
_PIPELINE_SHARE = {128: 0.90, 512: 0.91}
_HED_FLOPS = 40e9
"""Of one image at a side of 256."""
_GPU_FLOPS_PER_SECOND = 1e14


@dataclass(frozen=True, slots=True)
class _Update:
    """An update that was timed: FLOPs of one image, images, seconds."""

    flops: float
    images: int
    seconds: float


_UPDATES: Mapping[tuple[str, str], tuple[_Update, ...]] = {
    ("GPU", "bfloat16"): (_Update(0.1742e12, 16, 0.049), _Update(1.0273e12, 8, 0.082)),
    ("GPU", "float32"): (_Update(0.1742e12, 16, 0.129), _Update(1.0273e12, 8, 0.397)),
    ("CPU", "bfloat16"): (_Update(0.00881e12, 8, 8 / 34.0), _Update(0.2567e12, 2, 1.73)),
    ("CPU", "float32"): (_Update(0.2567e12, 2, 2.98),),
}
_CPUS_OF_UPDATES = 2


def at_size(points: Mapping[int, float], size_px: int) -> float:
    """Return a cost at a size: as given there, else by the power of the side that joins the two sizes nearest by.

    Args:
        points: cost by size, two at least.
        size_px: the size.
    """
    if size_px in points:
        return points[size_px]
    sizes = sorted(sorted(points, key=lambda one: abs(math.log(one / size_px)))[:2])
    low, high = sizes
    power = math.log(points[high] / points[low]) / math.log(high / low)
    return points[low] * math.exp(power * math.log(size_px / low))


def _sized(points: Mapping[int, float], size_px: int, unit: str, source: str) -> Figure:
    value = at_size(points, size_px)
    if size_px in points:
        return Figure(value, unit, "measured", source)
    return Figure(value, unit, "assumed", f"from {' and '.join(map(str, sorted(points)))} px; {source}")


def _update_ms(config: Config, flops: float) -> Figure:
    """Return what an update takes for each image: on one GPU, or on one CPU."""
    kind = "GPU" if config.train.use_gpu else "CPU"
    precision = "bfloat16" if config.train.precision == "auto" else config.train.precision
    nearest = min(_UPDATES[kind, precision], key=lambda one: abs(math.log(one.flops / flops)))
    seconds = nearest.seconds / nearest.images * flops / nearest.flops
    source = _H200 if kind == "GPU" else _EPYC
    if kind == "CPU":
        seconds *= _CPUS_OF_UPDATES
    if abs(flops / nearest.flops - 1) < 0.01:
        return Figure(1000 * seconds, "ms", "measured", f"{source}, {nearest.images} images, {precision}")
    return Figure(1000 * seconds, "ms", "assumed", f"by FLOPs from {nearest.flops / 1e12:.3g} TFLOP; {source}")


def figures(config: Config, cluster: ClusterConfig, counted: Counted) -> dict[str, Figure]:
    """Return every number that a plan of a config on a cluster is made from, by name."""
    return (
        _of_data(config, cluster, counted)
        | {"update: one image": _update_ms(config, counted.flops)}
        | (_of_gpus(counted) if config.train.use_gpu else _OF_CPUS)
        | _of_ranks(config, cluster, counted)
        | _of_prices(config, cluster)
    )


def gpus_find_edges(config: Config, cluster: ClusterConfig) -> bool:
    """Tell whether preparation finds edges on the workers' GPUs: as `data.gpus_per_actor` says, or as it would choose.

    Where CPU nodes prepare, there are no workers yet.
    """
    if config.data.gpus_per_actor is not None:
        return config.data.gpus_per_actor > 0
    return config.train.use_gpu and config.data.sketch.detector != "opencv" and not cluster.cpu_nodes


def _of_data(config: Config, cluster: ClusterConfig, counted: Counted) -> dict[str, Figure]:
    size = config.data.size_px
    found = {f"prepare: {name}": _sized(points, size, "ms", _XEON) for name, points in _STAGE_MS.items()}
    if gpus_find_edges(config, cluster):
        side = working_size_px(config.data.sketch, size)
        found["prepare: sketch"] = Figure(
            _HED_FLOPS * (side / 256) ** 2 / _GPU_FLOPS_PER_SECOND * 1000 / cluster.gpu_speed,
            *("ms", "assumed", "HED on a GPU, at the FLOP/s of an update of paper_512 on an H200"),
        )
    if config.data.align == "none":
        finding = Figure(0.0, "ms", "counted", "data.align is none")
    else:
        finding = Figure(65.0, "ms", "measured", "jobs/README.md, prepare_data: --measure-faces, one core of an EPYC")
    return found | {
        "prepare: find faces": finding,
        "prepare: share that Ray's pipeline reaches": _sized(
            _PIPELINE_SHARE, size, "", f"{_XEON}, median of five runs"
        ),
        "prepare: wait for one object": Figure(30.0, "ms", "assumed", "latency of an object store"),
        "row of the dataset": _sized(_ROW_BYTES, size, "bytes", "cluster/README.md, Room: 32 photographs"),
        "feed: decode, hole, brush, noise, stack": _sized(_EXAMPLE_MS, size, "ms", _XEON),
        "feed: example on its way": Figure(counted.example_bytes, "bytes", "counted", "its maps, uint8"),
        "held back: measure one image": Figure(
            26.0 * (size / 256) ** 2,
            *("ms", "measured" if size == 256 else "assumed", "jobs/README.md, evaluate: one core at 256 px; by area"),
        ),
    }


def _of_gpus(counted: Counted) -> dict[str, Figure]:
    return {
        "update: calls": Figure(counted.calls, "calls", "counted", "benchmarks/calls.py"),
        "update: one call": Figure(0.02, "ms", "assumed", "what the host takes to give a GPU work"),
        "update: loop around it": Figure(
            23.7, "ms", "measured", f"{_H200}: small_256 at 220 images/s, less its update; taken for all"
        ),
        "update: share that a worker reaches": Figure(1.0, "", "assumed", "the loop is counted by itself"),
        "update: variation": Figure(0.05, "of its mean", "assumed", f"as on CPUs; {_ROUNDS}"),
        "network within a node": Figure(2400.0, "Gbit/s", "assumed", "NVLink"),
        "checkpoint: copied for it": Figure(16.0, "Gbit/s", "assumed", "to pinned memory"),
    }


_OF_CPUS = {
    "update: calls": Figure(0.0, "calls", "measured", "part of an update on CPUs"),
    "update: one call": Figure(0.0, "ms", "measured", "part of an update on CPUs"),
    "update: loop around it": Figure(0.0, "ms", "measured", "part of the share that a worker reaches"),
    "update: share that a worker reaches": Figure(0.85, "", "measured", "cluster/README.md, What Ray costs: 64 px"),
    "update: variation": Figure(0.05, "of its mean", "measured", _ROUNDS),
    "network within a node": Figure(80.0, "Gbit/s", "assumed", "loopback"),
    "checkpoint: copied for it": Figure(8.0, "Gbit/s", "assumed", "within memory"),
}


def _of_ranks(config: Config, cluster: ClusterConfig, counted: Counted) -> dict[str, Figure]:
    found = {
        "gradients": Figure(counted.gradient_bytes / 1e6, "MB", "counted", "of both networks, as they travel"),
        "gradients: share of an update that hides them": Figure(0.5, "", "assumed", "its backwards, as DDP overlaps"),
        "gradients: share of the network's rate": Figure(0.7, "", "assumed", "NCCL over TCP"),
        "network of a node": Figure(cluster.network_gbps, "Gbit/s", "assumed", "--cluster.network-gbps"),
        "network: one message": Figure(0.03, "ms", "assumed", "from node to node"),
        "storage of a node": Figure(cluster.storage_gbps, "Gbit/s", "assumed", "--cluster.storage-gbps"),
        "checkpoint": Figure(counted.checkpoint_bytes / 1e6, "MB", "counted", "weights, average, moments"),
        "start": Figure(330.0, "s", "assumed", "nodes 300 s, Ray and its workers 30 s"),
    }
    if cluster.variation:
        found["update: variation"] = Figure(cluster.variation, "of its mean", "assumed", "--cluster.variation")
    return found


def _of_prices(config: Config, cluster: ClusterConfig) -> dict[str, Figure]:
    by_cpus = cluster.price_per_cpu_node_hour / cluster.cpus_per_cpu_node * config.train.cpus_per_worker
    worker = Figure(by_cpus, "$", "assumed", "its CPUs' share of a CPU node's price")
    if config.train.use_gpu:
        worker = Figure(7.91, "$", "assumed", "an eighth of p5en.48xlarge, on demand; look it up")
    if cluster.price_per_worker_hour:
        worker = Figure(cluster.price_per_worker_hour, "$", "assumed", "--cluster.price-per-worker-hour")
    return {
        "price of a worker's hour": worker,
        "price of a CPU node's hour": Figure(
            cluster.price_per_cpu_node_hour, "$", "assumed", "--cluster.price-per-cpu-node-hour"
        ),
        "price of a GB for a month": Figure(0.023, "$", "assumed", "an object store; look it up"),
    }
