"""cluster/onprem.yaml, brought up over ssh on three machines, a job on it, and its end."""

from __future__ import annotations

import contextlib
import json
import os
import site
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hosts import ADDRESSES, CLIENT, Hosts, hosts
from ray.autoscaler._private.util import prepare_config, validate_config
from running import ROOT, TINY_ARGUMENTS, descendants, kill, wait_until

FILE = ROOT / "cluster" / "onprem.yaml"
PLACEHOLDERS = ("10.0.0.10", "10.0.0.11", "10.0.0.12")
SECONDS_TO_END = 120.0
"""What cluster/onprem.yaml promises of `ray down`."""


def test_ray_up_accepts_it() -> None:
    prepared = prepare_config(yaml.safe_load(FILE.read_text()))
    validate_config(prepared)
    [node_type] = prepared["available_node_types"].values()
    assert node_type["min_workers"] == node_type["max_workers"] == len(PLACEHOLDERS) - 1


def test_every_machine_is_named_where_its_address_is_wanted() -> None:
    values: dict[str, Any] = yaml.safe_load(FILE.read_text())
    provider = values["provider"]
    assert (provider["head_ip"], *provider["worker_ips"]) == PLACEHOLDERS
    assert f"--node-ip-address={provider['head_ip']}" in values["head_start_ray_commands"][-1]


def test_it_is_closed_to_strangers_and_stops_jobs_patiently() -> None:
    values: dict[str, Any] = yaml.safe_load(FILE.read_text())
    starts = [
        [one for one in values[f"{kind}_start_ray_commands"] if "ray start" in one] for kind in ("head", "worker")
    ]
    [head], [worker] = starts
    assert "RAY_AUTH_MODE=token" in head and "RAY_AUTH_MODE=token" in worker
    assert "--dashboard-host=127.0.0.1" in head
    assert "RAY_JOB_STOP_WAIT_TIME_S=600" in head


def test_machine_whose_gpu_torch_cannot_use_fails_in_its_set_up(tmp_path: Path) -> None:
    python = tmp_path / "scfegan_ray.venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    command = yaml.safe_load(FILE.read_text())["setup_commands"][-1]
    environment = {"HOME": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin"}

    def set_up() -> subprocess.CompletedProcess[str]:
        return subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=False)

    assert set_up().returncode == 0, "a machine without GPUs is as good"
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H200'\n")
    driver.chmod(0o755)
    done = set_up()
    assert (done.returncode == 0) == torch.cuda.is_available()
    if done.returncode:
        assert "sees no GPU: check the driver" in done.stderr.splitlines()[-1]


def filled_in(machines: Hosts) -> Path:
    """Return a copy of the file with the machines, the user and the key of this test."""
    text = FILE.read_text()
    for placeholder, address in zip(PLACEHOLDERS, ADDRESSES, strict=True):
        text = text.replace(placeholder, address)
    user, key = "ssh_user: ubuntu", "ssh_private_key: ~/.ssh/id_ed25519"
    assert text.count(user) == text.count(key) == 1
    text = text.replace(user, "ssh_user: root").replace(key, f"ssh_private_key: {machines.key}")
    file = machines.home / "onprem.yaml"
    file.write_text(text)
    return file


def install_nothing_twice(home: Path) -> None:
    """Let a machine find the packages of this test's environment where its set-up would install them.

    The set-up commands run as they are, without the network: pip finds every version that it wants.
    """
    environment = home / "scfegan_ray.venv"
    packages = environment / "lib" / "python3.11" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "installed.pth").write_text("\n".join(site.getsitepackages()))
    ray = environment / "bin" / "ray"
    ray.parent.mkdir()
    ray.write_text(f'#!/bin/sh\nexec {environment}/bin/python -m ray.scripts.scripts "$@"\n')
    ray.chmod(0o755)
    pip = home / ".config" / "pip" / "pip.conf"
    pip.parent.mkdir(parents=True)
    pip.write_text("[global]\nno-index = true\n[install]\nno-build-isolation = false\n")


@contextlib.contextmanager
def background(machines: Hosts, log: Path, *words: str, **environment: str) -> Iterator[None]:
    """Let a command run on the client."""
    with log.open("w") as file:
        process = subprocess.Popen(
            machines.command(*words),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=machines.environment | environment,
        )
    try:
        yield
    finally:
        kill(descendants(process.pid))
        process.wait()


def mlflow_server(machines: Hosts, log: Path) -> contextlib.AbstractContextManager[None]:
    """Run MLflow's server on the client, which all machines reach."""
    server = ("mlflow", "server", "--host", CLIENT, "--port", "5000", "--workers", "1")
    kept = ("--backend-store-uri", f"sqlite:///{machines.shared}/mlflow.db")
    kept += ("--artifacts-destination", f"{machines.shared}/artifacts")
    settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return background(machines, log, *server, *kept, **settings)


def answers(machines: Hosts, url: str) -> bool:
    code = f"import urllib.request; urllib.request.urlopen({url!r}, timeout=5)"
    return machines.run("python", "-c", code).returncode == 0


@pytest.mark.ray
@pytest.mark.cluster
@pytest.mark.timeout(1200)
def test_machines_are_brought_up_train_and_are_left_clean(tmp_path: Path) -> None:
    with hosts(tmp_path) as machines:
        file = str(filled_in(machines))
        for number in range(1, len(ADDRESSES) + 1):
            install_nothing_twice(tmp_path / f"host{number}")

        def ray(*words: str, log: str, seconds: float = 120.0) -> str:
            done = machines.run("ray", *words, seconds=seconds, RAY_ADDRESS="http://127.0.0.1:8265")
            said = done.stdout + done.stderr
            (tmp_path / f"{log}.log").write_text(said)
            assert done.returncode == 0, said[-4000:]
            return said

        ray("get-auth-token", "--generate", log="token")
        with mlflow_server(machines, tmp_path / "mlflow.log"):
            ray("up", "-y", "--no-config-cache", file, log="up", seconds=400)
            all_there, status = f" {len(ADDRESSES)} local.cluster.node", "sleep 3; ray status"
            wait_until(lambda: all_there in machines.ssh(ADDRESSES[0], status).stdout, 180)
            assert all_there in ray("exec", file, "ray status", log="status")

            # Wide enough that no machine holds two of the three workers.
            workers = ("--train.num-workers", "3", "--train.cpus-per-worker", str(0.6 * (os.cpu_count() or 1)))
            places = ("--storage.path", f"{machines.shared}/runs", "--tracking.uri", f"http://{CLIENT}:5000")
            job = ("python", "jobs/train.py", *TINY_ARGUMENTS, *workers, *places)
            submit = ("job", "submit", "--working-dir", ".")
            with background(machines, tmp_path / "dashboard.log", "ray", "dashboard", file):
                wait_until(lambda: answers(machines, "http://127.0.0.1:8265"), 60)
                said = ray(*submit, "--", *job, "--run-name", "first", log="job", seconds=400)
                [line] = [line for line in said.splitlines() if line.startswith('{"run_name"')]
                result = json.loads(line)
                assert said.count("train 16/16 images") == 1, "one rank tells, wherever it is"
                assert result["images_seen"] == 16
                assert result["model_uri"] == "models:/scfegan-generator/1"
                assert Path(result["checkpoint"]).is_relative_to(machines.shared)

                ray(*submit, "--no-wait", "--", *job, "--run-name", "second", log="second")
                wait_until(lambda: any("jobs/train.py" in one for one in machines.processes(ADDRESSES[0])), 60)
            assert all(machines.processes(address) for address in ADDRESSES)
            end = time.monotonic() + SECONDS_TO_END
            ray("down", "-y", file, log="down")
            wait_until(lambda: not any(map(machines.processes, ADDRESSES)), end - time.monotonic())
