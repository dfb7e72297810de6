"""cluster/kuberay.yaml against the schema by which KubeRay's operator takes it.

`kuberay_schema.json` is the part of it that the file touches. After a new key in the file, or for a newer operator:

    PYTHONPATH=tests python tests/cluster/test_kuberay.py FOLDER_OF_KUBERAYS_CRDS
"""

from __future__ import annotations

import copy
import json
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from running import ROOT

from scfegan_ray import cli

FILE = ROOT / "cluster" / "kuberay.yaml"
SCHEMA = Path(__file__).with_name("kuberay_schema.json")
WHOLE = ROOT.parent / "shared" / "schemas"
CHECKS = ("type", "enum", "pattern", "minimum", "maximum", "minItems", "maxItems", "minLength", "maxLength", "anyOf")


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(FILE.read_text()))


def part(schema: dict[str, Any], values: list[Any]) -> dict[str, Any]:
    """Return the part of a schema that has to do with some values, where unknown keys fail."""
    kept = {name: schema[name] for name in CHECKS if name in schema}
    if "properties" in schema:
        named = {key for value in values for key in value} | set(schema.get("required", ()))
        kept["required"] = schema.get("required", [])
        kept["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields", False))
        kept["properties"] = {
            key: part(one, [value[key] for value in values if key in value])
            for key, one in schema["properties"].items()
            if key in named
        }
    elif isinstance(schema.get("additionalProperties"), dict):
        of_all = [one for value in values for one in value.values()]
        kept["additionalProperties"] = part(schema["additionalProperties"], of_all)
    if "items" in schema:
        kept["items"] = part(schema["items"], [one for value in values for one in value])
    return kept


def parts(folder: Path) -> dict[str, Any]:
    """Return what the operator wants of each document, from its custom resource definitions."""
    found = {}
    for document in documents():
        file = folder / f"ray.io_{document['kind'].lower()}s.yaml"
        definition = yaml.load(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        [whole] = [
            one["schema"]["openAPIV3Schema"]
            for one in definition["spec"]["versions"]
            if document["apiVersion"] == f"ray.io/{one['name']}"
        ]
        # Kubernetes itself checks `metadata`.
        names = ("name", "namespace", "labels", "annotations")
        whole["properties"]["metadata"] = {"type": "object", "properties": {name: {} for name in names}}
        found[document["kind"]] = part(whole, [document])
    return found


def check(document: dict[str, Any]) -> None:
    jsonschema.validate(document, json.loads(SCHEMA.read_text())["schemas"][document["kind"]])


def test_operator_accepts_it() -> None:
    for document in documents():
        check(document)
    assert [document["kind"] for document in documents()] == ["RayCluster", "RayJob"]


def test_the_part_is_of_the_operators_schema() -> None:
    if not WHOLE.is_dir():
        pytest.skip(f"KubeRay's custom resource definitions are not in {WHOLE}")
    assert json.loads(SCHEMA.read_text())["schemas"] == parts(WHOLE)


@pytest.mark.parametrize(
    ("path", "key"),
    [
        (("spec",), "enableInTreeAutoscalling"),
        (("spec", "headGroupSpec"), "rayStartParam"),
        (("spec", "workerGroupSpecs", 0), "minReplica"),
        (("spec", "workerGroupSpecs", 1, "template", "spec", "containers", 0), "resource"),
    ],
)
def test_an_unknown_key_would_be_noticed(path: tuple[str | int, ...], key: str) -> None:
    document = copy.deepcopy(documents()[0])
    place: Any = document
    for step in path:
        place = place[step]
    place[key] = {}
    with pytest.raises(jsonschema.ValidationError, match=key):
        check(document)


def test_a_value_of_the_wrong_kind_would_be_noticed() -> None:
    document = copy.deepcopy(documents()[0])
    document["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    with pytest.raises(jsonschema.ValidationError, match="0 is not of type 'string'"):
        check(document)


def test_it_is_this_ray_closed_to_strangers_with_a_head_that_does_not_work() -> None:
    cluster = documents()[0]["spec"]
    assert cluster["rayVersion"] == version("ray")
    assert cluster["authOptions"] == {"mode": "token"}
    head = cluster["headGroupSpec"]
    assert (head["rayStartParams"]["num-cpus"], head["rayStartParams"]["num-gpus"]) == ("0", "0")
    [container] = head["template"]["spec"]["containers"]
    assert "nvidia.com/gpu" not in container["resources"]["limits"]
    assert {"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": "600"} in container["env"]


def test_it_has_the_gpus_that_the_job_wants() -> None:
    cluster, job = (document["spec"] for document in documents())
    [group] = [one for one in cluster["workerGroupSpecs"] if one["groupName"] == "gpu"]
    spec = group["template"]["spec"]
    [container], [first] = spec["containers"], spec["initContainers"]
    assert "torch.cuda.is_available()" in first["command"][-1]
    assert first["resources"] == container["resources"]
    gpus = int(container["resources"]["limits"]["nvidia.com/gpu"])
    python, program, *arguments = shlex.split(job["entrypoint"])
    assert (python, program) == ("python", "/home/ray/scfegan_ray/jobs/train.py")
    config = cli.parse("", cli.Arguments, arguments).config
    assert config.train.use_gpu and config.train.wait_for_nodes
    assert config.train.num_workers == group["maxReplicas"] * gpus
    assert config.train.min_workers == gpus


if __name__ == "__main__":
    source = "github.com/ray-project/kuberay, Apache-2.0; what cluster/kuberay.yaml touches, made by test_kuberay.py"
    made = {"source": source, "schemas": parts(Path(sys.argv[1]))}
    SCHEMA.write_text(json.dumps(made, indent=1) + "\n")
