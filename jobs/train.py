"""Train a face editing model, from raw photographs to a version in the registry.

The same --run-name resumes. Without arguments: the quickstart preset on embedded faces.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from scfegan_ray import cli
from scfegan_ray.planning.options import ClusterConfig

logger = logging.getLogger("scfegan_ray.jobs")


@dataclass(frozen=True)
class Arguments(cli.Arguments):
    """Arguments of this job."""

    promote: bool = False
    """At the end let the new version be the champion, if it is better than the present one; see jobs/register.py. It is
    measured on the images that were held back."""
    benchmark: Literal["step", "edit", "ray", "feed", "scale", "rows"] | None = None
    """Train nothing to keep, but time something. step: one update of the configured networks and one edit on one
    device, without Ray, against the same written straight from the paper, with FLOPs, share of the machine's peak and
    calls of ATen, on a GPU also MFU and memory. edit: an edit by each runtime and precision, at `data.size_px` and half
    of it, with random weights. ray: the loop of one and of two Ray Train workers against updates
    alone. feed: what a second process that decodes and draws adds, and what such a process costs an update beside
    it. scale: preparation, Ray Data's feed and training on one node and on two, a core each. rows: what
    `data.num_embedded` images cost whoever must know of all of them."""
    plan: bool = False
    """Start nothing, but say what preparing and training this config would take on clusters, in hours and dollars, from
    costs of one image that were measured elsewhere, and where the bottleneck is; see --cluster.workers."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


def job(arguments: Arguments) -> dict[str, Any]:
    """Train and register, measure, or plan."""
    if arguments.plan:
        from scfegan_ray.planning import plan

        return plan.run(arguments.config, arguments.cluster, session=cli.ray_session)
    if arguments.benchmark == "step":
        from scfegan_ray.benchmarks import step

        return step.run(arguments.config)
    if arguments.benchmark == "edit":
        from scfegan_ray.benchmarks import edit

        return edit.run(arguments.config)
    if arguments.benchmark == "ray":
        from scfegan_ray.benchmarks import ray

        return ray.run_loops(arguments.config, session=cli.ray_session)
    if arguments.benchmark == "feed":
        from scfegan_ray.benchmarks import feed

        return feed.run(arguments.config, session=cli.ray_session)
    if arguments.benchmark == "scale":
        from scfegan_ray.benchmarks import scale

        return scale.run(arguments.config, session=cli.ray_session)
    if arguments.benchmark == "rows":
        from scfegan_ray.benchmarks import rows

        return rows.run(arguments.config)
    from scfegan_ray.training import launch

    config = cli.named(arguments.config, launch.default_run_name(arguments.preset))
    result = asdict(launch.train(config, session=cli.ray_session))
    if arguments.promote:
        from scfegan_ray import promotion

        held_back = replace(config, data=replace(config.data, prepared=result["dataset"]))
        found = promotion.promote(held_back, result["model_uri"], session=cli.ray_session)
        logger.info("%s: %s", "promoted" if found.promoted else "not promoted", found.reason)
    return {
        name: result[name]
        for name in ("run_name", "run_id", "model_uri", "checkpoint", "images_seen", "weights_sha256")
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; see --help."""
    return cli.run_job(__doc__ or "", Arguments, job, argv)


if __name__ == "__main__":
    sys.exit(main())
