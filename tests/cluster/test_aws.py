"""cluster/gpu.yaml through Ray's own AWS provider, until an instance of each of its types runs in a made-up AWS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from running import ROOT, wait_until
from servers import answers, free_port

REGION, ZONE = "us-west-2", "us-west-2a"
IMAGE = "resolve:ssm:/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"

LAUNCH = """
import json, sys

import yaml
from ray.autoscaler._private.commands import _bootstrap_config
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler.tags import NODE_KIND_HEAD, NODE_KIND_WORKER, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

asked = []
config = yaml.safe_load(open(sys.argv[1]))
config = _bootstrap_config(config, no_config_cache=True)
provider = _get_node_provider(config["provider"], config["cluster_name"])
provider.ec2_fail_fast.meta.client.meta.events.register(
    "provide-client-params.ec2.RunInstances", lambda params, **other: asked.append(params)
)
for name, node_type in config["available_node_types"].items():
    kind = NODE_KIND_HEAD if name == config["head_node_type"] else NODE_KIND_WORKER
    provider.create_node(node_type["node_config"], {TAG_RAY_NODE_KIND: kind, TAG_RAY_USER_NODE_TYPE: name}, 1)
resources = {name: node_type["resources"] for name, node_type in config["available_node_types"].items()}
print(json.dumps({"asked": asked, "resources": resources}))
"""


@pytest.fixture
def aws(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Run a made-up AWS; return the environment that reaches it, with an own home folder for what Ray writes there."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with (tmp_path / "moto.log").open("w") as log:
        server = subprocess.Popen(
            [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)],
            stdout=log,
            stderr=log,
        )
    try:
        wait_until(lambda: answers(f"{address}/moto-api/"), 60)
        yield {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": REGION,
            "HOME": str(tmp_path),
            "RAY_TMPDIR": str(tmp_path),
        }
    finally:
        server.kill()
        server.wait()


def client(service: str, aws: dict[str, str]) -> Any:
    keys = {"aws_access_key_id": aws["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": aws["AWS_SECRET_ACCESS_KEY"]}
    return boto3.client(service, region_name=REGION, endpoint_url=aws["AWS_ENDPOINT_URL"], **keys)


def prepared(ec2: Any, iam: Any) -> str:
    """Do what the file's header asks for before the first `ray up`; return the security group's id."""
    group: str = ec2.create_security_group(GroupName="scfegan", Description="scfegan Ray cluster")["GroupId"]
    for name in ("scfegan-head", "scfegan-worker"):
        iam.create_instance_profile(InstanceProfileName=name)
    return group


def gpus(kind: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = kind.get("GpuInfo", {}).get("Gpus", [])
    return found


def test_ray_launches_an_instance_of_each_type(aws: dict[str, str], tmp_path: Path) -> None:
    ec2 = client("ec2", aws)
    group = prepared(ec2, client("iam", aws))
    text = (ROOT / "cluster" / "gpu.yaml").read_text()
    assert text.count("[sg-00000000000000000]") == 3
    file = tmp_path / "gpu.yaml"
    file.write_text(text.replace("sg-00000000000000000", group))
    script = tmp_path / "launch.py"
    script.write_text(LAUNCH)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(file)],
        cwd=ROOT,
        env=os.environ | aws,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert done.stdout.count("Launched instance i-") == 3
    result = json.loads(done.stdout.splitlines()[-1])

    found = {}
    for reservation in ec2.describe_instances()["Reservations"]:
        [instance] = reservation["Instances"]
        tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
        assert tags["ray-cluster-name"] == "scfegan"
        assert instance["State"]["Name"] == "running"
        assert instance["ImageId"] == IMAGE
        assert [one["GroupId"] for one in instance["SecurityGroups"]] == [group]
        assert instance["Placement"]["AvailabilityZone"] == ZONE
        found[tags["ray-user-node-type"]] = (
            instance["InstanceType"],
            instance["IamInstanceProfile"]["Arn"].rpartition("/")[2],
            instance.get("InstanceLifecycle"),
        )
    assert found == {
        "head": ("m6i.2xlarge", "scfegan-head", None),
        "gpu_worker": ("g5.12xlarge", "scfegan-worker", "spot"),
        "cpu_worker": ("c6i.8xlarge", "scfegan-worker", "spot"),
    }
    # moto knows neither placement groups nor what was asked of a disk.
    asked = {one["InstanceType"]: one for one in result["asked"]}
    assert {kind: one.get("Placement") for kind, one in asked.items()} == {
        "m6i.2xlarge": None,
        "g5.12xlarge": {"GroupName": "scfegan"},
        "c6i.8xlarge": None,
    }
    assert {kind: one["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] for kind, one in asked.items()} == {
        "m6i.2xlarge": 100,
        "g5.12xlarge": 150,
        "c6i.8xlarge": 100,
    }
    # What the file says of cores and GPUs is what such machines have; no work goes to the head.
    kinds = ec2.describe_instance_types(InstanceTypes=list(asked))["InstanceTypes"]
    has = {
        kind["InstanceType"]: (kind["VCpuInfo"]["DefaultVCpus"], sum(gpu["Count"] for gpu in gpus(kind)))
        for kind in kinds
    }
    resources = {name: (one["CPU"], one["GPU"]) for name, one in result["resources"].items()}
    assert resources == {"head": (0, 0), "gpu_worker": has["g5.12xlarge"], "cpu_worker": has["c6i.8xlarge"]}
