"""What people say of the cluster that a plan is for; light, so that `--help` need not wait for what counts."""

from __future__ import annotations

from dataclasses import dataclass

from scfegan_ray.config import check_not_negative, check_positive
from scfegan_ray.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterConfig:
    """The cluster that `--plan` is for, and what it costs; `--plan` only reads it.

    The defaults are assumed: eight H200 a node as in AWS's p5en.48xlarge, with c6i.8xlarge for CPU nodes, on demand.
    """

    workers: tuple[int, ...] = ()
    """Numbers of workers, each of which is planned for; a worker has a GPU, where the config trains on GPUs. Default:
    as many as the cluster at RAY_ADDRESS has place for, and without one 1, 8 and 64."""
    workers_per_node: int = 8
    """Most workers that a node has place for, as a node of GPUs has GPUs."""
    cpus_per_worker: int = 24
    """CPUs that a node has for each of its workers."""
    cpu_nodes: int = 0
    """Nodes of CPUs alone: they prepare, and feed training beside the workers' own CPUs."""
    cpus_per_cpu_node: int = 32
    """CPUs of such a node."""
    photographs: tuple[int, ...] = ()
    """Numbers of photographs, each of which is planned for. Default: data.max_images, or 30,000."""
    objects_per_photograph: int = 1
    """Files of each photograph in an s3:// source; up to 19 with the labels of CelebAMask-HQ."""
    images_per_worker: int = 0
    """Images of an update on each worker, so that the batch grows with their number, which learns differently. 0:
    train.batch_size whatever their number, as a run does."""
    gpu_speed: float = 1.0
    """How fast a GPU is, where the H200 that was measured is 1."""
    network_gbps: float = 100.0
    """Gbit/s of a node's network, each way."""
    storage_gbps: float = 8.0
    """Gbit/s at which a node reads and writes storage."""
    variation: float = 0.0
    """Standard deviation of a rank's update over its mean; the slowest of all ranks is waited for. 0: as measured."""
    price_per_worker_hour: float = 0.0
    """Of a worker with its share of the node. 0: 7.91 with a GPU (assumed), else by the price of CPUs."""
    price_per_cpu_node_hour: float = 1.36
    """Of a node of CPUs alone."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("workers", "photographs"):
            if any(number < 1 for number in getattr(self, name)):
                raise ConfigError(f"cluster.{name} holds a number below 1; give 1 or more")
        for name in (
            *("workers_per_node", "cpus_per_worker", "cpus_per_cpu_node", "objects_per_photograph"),
            *("gpu_speed", "network_gbps", "storage_gbps"),
        ):
            check_positive(f"cluster.{name}", getattr(self, name))
        for name in ("cpu_nodes", "images_per_worker", "variation", "price_per_worker_hour", "price_per_cpu_node_hour"):
            check_not_negative(f"cluster.{name}", getattr(self, name))
