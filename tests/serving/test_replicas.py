"""What Ray Serve is told."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from scfegan_ray.errors import ConfigError
from scfegan_ray.serving import replicas
from scfegan_ray.serving.options import ServingConfig

FILE = Path(__file__).parents[2] / "cluster" / "serve.yaml"


def test_the_config_file_describes_copies() -> None:
    described = ServeDeploySchema.model_validate(yaml.safe_load(FILE.read_text()))
    (one,) = described.applications
    module, _, name = one.import_path.partition(":")
    build = getattr(importlib.import_module(module), name)
    deployment: Any = build(one.args)._bound_deployment
    assert deployment.num_replicas == 2
    assert deployment.ray_actor_options["num_gpus"] == 1
    assert deployment.ray_actor_options["num_cpus"] == 2
    config, options, model, device = deployment.init_args
    assert config.tracking.uri == "https://mlflow.example.com"
    assert config.storage.path == "s3://bucket/runs"
    assert (model, device) == ("models:/scfegan-generator@champion", "cuda")
    assert options == ServingConfig(host="0.0.0.0", port=8000, replicas=2, cpus_per_replica=2)
    assert (described.http_options.host, described.http_options.port) == (options.host, options.port)


@pytest.mark.parametrize(
    ("args", "why"),
    [
        ({"modl": ""}, "unknown 'modl'"),
        ({"serving": {"hots": ""}}, "hots"),
        ({"serving": {"port": 99999}}, "port is 99999"),
        ({"storage": {"pth": ""}}, "pth"),
    ],
)
def test_a_config_file_that_is_wrong_is_refused(args: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        replicas.application(args)


def test_all_nodes_need_one_port_and_a_token() -> None:
    def session() -> Any:
        raise AssertionError

    with pytest.raises(ConfigError, match="--port"):
        replicas.start(None, ServingConfig(port=0), model="", device="cpu", session=session)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="SCFEGAN_TOKEN"):
        replicas.start(
            None, ServingConfig(host="0.0.0.0"), model="", device="cpu", session=session,  # type: ignore[arg-type]
        )  # fmt: skip


def test_serve_that_listens_elsewhere_is_said() -> None:
    with pytest.raises(ConfigError, match="does not answer at 127.0.0.1 port 9 .* `serve shutdown`"):
        replicas._check_answer(ServingConfig(port=9))
