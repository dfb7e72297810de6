"""cluster/gpu.yaml against the schema of the Ray that is installed, and against what it promises."""

from __future__ import annotations

import copy
import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import pytest
import torch
import yaml
from ray.autoscaler._private.aws.config import _check_ami
from ray.autoscaler._private.util import prepare_config, validate_config
from running import ROOT

FILE = ROOT / "cluster" / "gpu.yaml"


@pytest.fixture
def cluster() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return values


def test_ray_up_accepts_it(cluster: dict[str, Any]) -> None:
    prepared = prepare_config(copy.deepcopy(cluster))
    validate_config(prepared)
    assert prepared["head_node_type"] == "head"


def test_a_misspelt_key_would_be_noticed(cluster: dict[str, Any]) -> None:
    cluster["max_workres"] = cluster.pop("max_workers")
    with pytest.raises(Exception, match="max_workres"):
        validate_config(prepare_config(cluster))


def test_head_has_no_work_and_both_kinds_of_workers_can_grow(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    assert types[cluster["head_node_type"]]["resources"] == {"CPU": 0, "GPU": 0}
    assert types["gpu_worker"]["resources"]["GPU"] > 0
    assert types["cpu_worker"]["resources"]["GPU"] == 0
    assert sum(t.get("max_workers", 0) for t in types.values()) <= cluster["max_workers"]


def test_object_stores_have_room(cluster: dict[str, Any]) -> None:
    sizes = [
        int(re.findall(r"--object-store-memory=(\d+)", cluster[f"{kind}_start_ray_commands"][-1])[0])
        for kind in ("head", "worker")
    ]
    [shared] = [int(option[11:-1]) for option in cluster["docker"]["run_options"] if option.startswith("--shm-size=")]
    assert all(size < 0.95 * shared * 1024**3 for size in sizes), "Ray takes no more of /dev/shm"


def test_nothing_is_open_to_the_world(cluster: dict[str, Any]) -> None:
    # Without its own security group a node gets Ray's, whose port 22 takes any address.
    for name, node_type in cluster["available_node_types"].items():
        assert node_type["node_config"]["SecurityGroupIds"], name
    assert "0.0.0.0" not in FILE.read_text()
    head = " ".join(cluster["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "RAY_AUTH_MODE=token" in " ".join(cluster[commands])


def test_nodes_install_this_project_under_the_same_ray(cluster: dict[str, Any]) -> None:
    [install] = cluster["setup_commands"]
    target = install.split()[-1]
    assert cluster["file_mounts"][target] == "."
    docker = cluster["docker"]
    types = cluster["available_node_types"].values()
    images = [docker["head_image"], docker["worker_image"]]
    images += [t["docker"]["worker_image"] for t in types if "docker" in t]
    assert all(re.fullmatch(rf"rayproject/ray:{re.escape(version('ray'))}-py311-(cpu|gpu)", i) for i in images)


def test_every_node_has_an_image_that_ray_hands_on_by_name(cluster: dict[str, Any]) -> None:
    # Ray's own default is years old: its driver is too old for the pinned torch.
    prepared = prepare_config(copy.deepcopy(cluster))
    _check_ami(prepared)
    for name, node_type in prepared["available_node_types"].items():
        image = node_type["node_config"]["ImageId"]
        assert re.fullmatch(r"resolve:ssm:/aws/service/deeplearning/ami/x86_64/base-\S+-gpu-ubuntu\S+/ami-id", image), (
            name
        )
    assert cluster["auth"]["ssh_user"] == "ubuntu"


def test_gpu_node_without_a_gpu_fails_in_its_set_up(cluster: dict[str, Any]) -> None:
    commands = prepare_config(copy.deepcopy(cluster))["available_node_types"]["gpu_worker"]["worker_setup_commands"]
    assert commands[0] == cluster["setup_commands"][0], "a node type's own commands replace the others"
    python, *arguments = shlex.split(commands[-1])
    assert python == "python"
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == torch.cuda.is_available()
    if done.returncode:
        assert "sees no GPU: check the driver of the image" in done.stderr.splitlines()[-1]


def test_a_job_that_is_stopped_has_time_for_its_checkpoint(cluster: dict[str, Any]) -> None:
    readme = (ROOT / "README.md").read_text()
    [setting] = re.findall(r"RAY_JOB_STOP_WAIT_TIME_S=\d+", cluster["head_start_ray_commands"][-1])
    assert int(setting.partition("=")[2]) >= 300
    assert setting in readme.partition("ray start --head")[0]
