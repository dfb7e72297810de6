"""Says what a config would cost on clusters of several sizes: counts what can be counted, and logs tables."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import ray
import torch

from scfegan_ray import environment
from scfegan_ray.benchmarks.calls import count_work
from scfegan_ray.benchmarks.step import sent_per_update
from scfegan_ray.config import Config
from scfegan_ray.data.feed_process import Layout
from scfegan_ray.errors import ConfigError
from scfegan_ray.planning import simulation
from scfegan_ray.planning.costs import Counted, figures
from scfegan_ray.planning.options import ClusterConfig
from scfegan_ray.planning.simulation import Preparation, Shape, Training
from scfegan_ray.training.state import TrainingState

logger = logging.getLogger(__name__)

_WORKERS = (1, 8, 64)
_PHOTOGRAPHS = 30_000


def run(
    config: Config,
    cluster: ClusterConfig,
    *,
    session: Callable[[], contextlib.AbstractContextManager[None]],
) -> dict[str, Any]:
    """Plan, log tables, and start nothing; a cluster at RAY_ADDRESS is looked at where no workers are given.

    Args:
        config: of a run.
        cluster: what people say of theirs.
        session: in which a running cluster is looked at.

    Returns:
        figures: value, unit, basis (measured, counted or assumed) and source of each by name; preparation and training:
        the plans, see `simulation.Preparation` and `simulation.Training`; bends_at: workers, efficiency and loss where
        training first reaches less than 0.7 of what as many single workers would, or None.
    """
    if not cluster.workers and environment.cluster_address():
        with session():
            found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cluster = from_nodes(config, cluster, found)
    numbers = sorted(cluster.workers or _WORKERS)
    photographs = cluster.photographs or (config.data.max_images or _PHOTOGRAPHS,)
    known = figures(config, cluster, count(config))
    shapes = [Shape.of(number, cluster) for number in numbers]
    fitting = [shape for shape in shapes if cluster.images_per_worker or shape.workers <= config.train.batch_size]
    preparations = [
        (shape, simulation.prepare(config, cluster, known, number, shape)) for number in photographs for shape in shapes
    ]
    trainings = [
        (number, simulation.train(config, cluster, known, number, shape)) for number in photographs for shape in fitting
    ]
    logger.info("%d images of %d px are to be seen", config.train.images, config.data.size_px)
    for name, one in known.items():
        logger.info("%-58s %12.6g %-12s %-8s %s", name, one.value, one.unit, one.basis, one.source)
    for shape, preparation in preparations:
        _log_preparation(preparation, shape.workers, known["price of a GB for a month"].value)
    for number, training in trainings:
        _log_training(number, training)
    for shape in shapes[len(fitting) :]:
        logger.info("%d workers cannot share a batch of %d images", shape.workers, config.train.batch_size)
    bent = simulation.bend([training for _, training in trainings])
    if bent is not None:
        logger.info(
            "it bends at %d workers, which reach %.2f of so many single ones; what costs most beside updates: %s",
            bent.workers, bent.efficiency, bent.loss,
        )  # fmt: skip
    return {
        "figures": {name: asdict(one) for name, one in known.items()},
        "preparation": [{"workers": shape.workers} | asdict(one) for shape, one in preparations],
        "training": [{"photographs": number} | asdict(one) for number, one in trainings],
        "bends_at": None
        if bent is None
        else {"workers": bent.workers, "efficiency": bent.efficiency, "loss": bent.loss},
    }


def count(config: Config) -> Counted:
    """Count what an update of a config works through, and what it exchanges and keeps, without running it."""
    precision = torch.float32 if config.train.precision == "float32" else torch.bfloat16
    one = replace(config, train=replace(config.train, batch_size=1, num_workers=1, min_workers=0))
    calls, flops = count_work(one, precision)
    state = TrainingState.build(config, "meta")
    sizes = {name: sum(one.numel() for one in network.parameters()) for name, network in state.networks().items()}
    return Counted(
        flops=flops,
        calls=calls,
        gradient_bytes=sent_per_update(state, config)[0],
        # Weights of all, and two moments of each that is optimized, all float32.
        checkpoint_bytes=4.0 * (sum(sizes.values()) + 2 * (sizes["generator"] + sizes["discriminator"])),
        example_bytes=Layout(1, config.data.size_px).num_bytes,
    )


def from_nodes(config: Config, cluster: ClusterConfig, nodes: Sequence[Mapping[str, float]]) -> ClusterConfig:
    """Return a cluster that is as some nodes are.

    Args:
        config: whose workers are to find place.
        cluster: what else people say.
        nodes: resources of each; those with a GPU hold a worker for each of them, and where the config trains on CPUs
            each holds as many as `train.cpus_per_worker` lets it.

    Raises:
        ConfigError: no node has place for a worker.
    """
    each = 1.0 if config.train.use_gpu else config.train.cpus_per_worker
    kind = "GPU" if config.train.use_gpu else "CPU"
    places = [int(node.get(kind, 0.0) // each) for node in nodes]
    holding = [(place, node) for place, node in zip(places, nodes, strict=True) if place]
    others = [node.get("CPU", 0.0) for place, node in zip(places, nodes, strict=True) if not place]
    others = [cpus for cpus in others if cpus >= 1]
    if not holding:
        raise ConfigError(
            f"no node of the running cluster has a {kind} for a worker; give --cluster.workers to plan for another"
        )
    return replace(
        cluster,
        workers=(sum(place for place, _ in holding),),
        workers_per_node=max(place for place, _ in holding),
        cpus_per_worker=max(1, int(min(node.get("CPU", 0.0) / place for place, node in holding))),
        cpu_nodes=len(others),
        cpus_per_cpu_node=int(sum(others) / len(others)) if others else cluster.cpus_per_cpu_node,
    )


def _log_preparation(plan: Preparation, workers: int, gigabyte_price: float) -> None:
    logger.info(
        "prepare %9d photographs on %5g CPUs of %4d workers: %7.2f h %9.2f $, longest: %s; %.1f GB, %.2f $ a month",
        plan.photographs, plan.cpus, workers, plan.hours, plan.price, plan.bottleneck,
        plan.dataset_bytes / 1e9, plan.dataset_bytes / 1e9 * gigabyte_price,
    )  # fmt: skip


def _log_training(photographs: int, plan: Training) -> None:
    logger.info(
        "train on %9d photographs: %4d workers, %3d nodes, batch %5d: %8.1f images/s, %.2f of single ones, %7.1f h "
        "%9.2f $, longest: %s; %.1f CPUs feed it; ms of an update: %s",
        photographs, plan.workers, plan.nodes, plan.batch_size, plan.images_per_second, plan.efficiency, plan.hours,
        plan.price, plan.bottleneck, plan.feed_cpus,
        ", ".join(f"{name} {1000 * seconds:.1f}" for name, seconds in plan.parts.items() if seconds),
    )  # fmt: skip
