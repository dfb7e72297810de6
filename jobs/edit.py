"""Draw on a face, get the edit: serves an editor for the browser, and prints its address.

It edits with the champion of the registry, else with its newest version, and takes a new champion over by itself.
Ctrl-C ends it. With --replay it carries out an edit that was saved, and serves nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from scfegan_ray import cli
from scfegan_ray.serving.options import ServingConfig


@dataclass(frozen=True)
class Arguments(cli.Arguments):
    """Arguments of this job."""

    model: str = ""
    """models:/NAME/VERSION or models:/NAME@ALIAS; or a folder: a checkpoint, a run, a downloaded model."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1."""
    replay: tuple[str, str, str] | None = None
    """EDIT PHOTOGRAPH OUT: carry out a saved edit (.json) on a photograph and write a .png or .jpg. Without --model by
    the version that the edit names."""
    static: str = ""
    """DIR: write the page with the model as a folder that edits in the browser alone, for any web server of files; a
    new folder."""
    benchmark: bool = False
    """Measure what the server adds to the network's own work, at the size of the preset, and stop."""
    serving: Annotated[ServingConfig, tyro.conf.arg(name="")] = field(default_factory=ServingConfig)


def job(arguments: Arguments) -> dict[str, Any] | cli.Service:
    """Serve, or replay."""
    if arguments.replay:
        from scfegan_ray.serving import replay

        edit, photograph, out = arguments.replay
        return replay.replay(arguments.config, edit, photograph, out, model=arguments.model, device=arguments.device)
    if arguments.static:
        from scfegan_ray.serving import static

        return static.write(arguments.config, arguments.static, model=arguments.model)
    if arguments.benchmark:
        from scfegan_ray.benchmarks import serving

        return serving.run(arguments.config, arguments.serving)
    if arguments.serving.replicas:
        from scfegan_ray.serving import replicas

        return replicas.start(
            arguments.config,
            arguments.serving,
            model=arguments.model,
            device=arguments.device,
            session=cli.ray_session,
        )
    with cli.uncollected():  # a person waits
        from scfegan_ray.serving import server

        return server.start(arguments.config, arguments.serving, model=arguments.model, device=arguments.device)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; see --help."""
    return cli.run_job(__doc__ or "", Arguments, job, argv)


if __name__ == "__main__":
    sys.exit(main())
