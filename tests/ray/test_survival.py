"""Training as a user runs it, killed at random steps in every way, and with its servers going away."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import s3
import servers
from mlflow import MlflowClient
from ray.cluster_utils import Cluster
from running import (
    LONG_ARGUMENTS,
    PATIENCE_SECONDS,
    TINY_ARGUMENTS,
    Run,
    descendants,
    is_running,
    kill,
    positions,
    result_of,
    run,
    start,
    terminate_group,
    wait_for,
    wait_until,
)

from scfegan_ray import faces
from scfegan_ray.serving.editor import FaceEditor

pytestmark = pytest.mark.ray


def workers_of(process: int) -> list[int]:
    names = {one: Path(f"/proc/{one}/cmdline") for one in descendants(process)}
    return [one for one, name in names.items() if name.exists() and "RayTrainWorker" in name.read_text()]


def losses(result: dict[str, Any]) -> dict[int, float]:
    """Return the mean loss of each interval, by where it ends."""
    client = MlflowClient(f"sqlite:///{Path(result['checkpoint']).parents[2]}/mlflow.db")
    history = client.get_metric_history(result["run_id"], "train/generator/total")
    return {metric.step: metric.value for metric in history}


def kill_a_worker(driver: int) -> None:
    workers = workers_of(driver)
    assert len(workers) == 2
    kill([random.choice(workers)])


def kill_driver(driver: int) -> None:
    kill([driver])


def kill_everything(driver: int) -> None:
    kill(descendants(driver))


def test_killed_training_ends_bit_identical(whole: Run, tiny_dataset: str, tmp_path: Path) -> None:
    checkpoints, log = tmp_path / "runs" / "killed" / "checkpoints", tmp_path / "killed.log"
    command = (*LONG_ARGUMENTS, "--data.prepared", tiny_dataset, "--run-name", "killed")
    seen = []
    for harm, feed in ((kill_driver, "ray"), (kill_everything, "local"), (terminate_group, "ray")):
        before = max(positions(checkpoints), default=0)
        process = start("train", *command, "--data.feed", feed, cwd=tmp_path, log=log)
        with process:
            wait_for(lambda: max(positions(checkpoints), default=0) > before, process, log)  # noqa: B023
            time.sleep(random.uniform(0.0, 3.0))
            if harm is kill_driver:
                kill_a_worker(process.pid)
                there = positions(checkpoints)
                wait_for(lambda: positions(checkpoints)[-1] > there[-1], process, log)  # noqa: B023
                time.sleep(random.uniform(0.0, 2.0))
            workers = workers_of(process.pid)
            harm(process.pid)
            process.communicate(timeout=PATIENCE_SECONDS)
            wait_until(lambda: not any(map(is_running, workers)))  # noqa: B023, one could write one more checkpoint
        seen.append(positions(checkpoints)[-1])
    assert process.returncode == 130, log.read_text()[-3000:]
    assert log.read_text().endswith("error: interrupted; run the same command again to go on\n")
    last = run("train", *command, cwd=tmp_path)
    found = result_of(last)

    assert found["images_seen"] == whole.result["images_seen"] == 480
    assert found["weights_sha256"] == whole.result["weights_sha256"], f"killed at {seen}"
    for name in ("generator", "discriminator", "ema", "optimizers"):
        files = [Path(result["checkpoint"], f"{name}.safetensors") for result in (whole.result, found)]
        assert files[0].read_bytes() == files[1].read_bytes(), f"{name}, killed at {seen}"
    assert seen == sorted(seen) and seen[0] > 0, "nobody starts anew"
    assert f"resuming at {seen[-1]} images" in last.stderr
    assert "data.feed local" in last.stderr and log.read_text().count("data.feed ray: as asked for") == 2
    [run_of_it] = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db").search_runs(
        ["1"], "attributes.run_name = 'killed'"
    )
    assert run_of_it.info.status == "FINISHED"
    # What was on its way to MLflow at a kill may be missing.
    assert losses(found).keys() <= losses(whole.result).keys(), "intervals begin where they would have"


def test_lost_node_leaves_one_worker_the_same_batches(
    whole: Run, tiny_dataset: str, cluster: Cluster, tmp_path: Path
) -> None:
    node = cluster.add_node(num_cpus=1)
    checkpoints, log = tmp_path / "runs" / "fewer" / "checkpoints", tmp_path / "fewer.log"
    process = start(
        "train",
        *LONG_ARGUMENTS,
        *("--train.images", "200", "--train.cpus-per-worker", "1", "--train.min-workers", "1", "--run-name", "fewer"),
        *("--data.prepared", tiny_dataset),
        cwd=tmp_path,
        # For up to 20 s Ray Train asks for the node that is gone; each time it waits so long for its workers.
        environment={"RAY_ADDRESS": cluster.address, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10"},
        log=log,
    )
    with process:
        wait_for(lambda: max(positions(checkpoints), default=0) > 0, process, log)
        assert len(workers_of(os.getpid())) == 2
        cluster.remove_node(node, allow_graceful=False)
        wait_for(lambda: "resuming at" in log.read_text(), process, log)
        wait_for(lambda: len(workers_of(os.getpid())) == 1, process, log)
        out, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, log.read_text()[-3000:]
    found = json.loads(out)
    assert found["images_seen"] == 200
    assert "an interrupt will no longer wait" not in log.read_text(), "the driver's request lives beside the driver"

    # The same images, holes and noise give the same losses, up to rounding that grows from update to update.
    resumed_at = int(re.findall(r"resuming at (\d+) images", log.read_text())[-1])
    expected, fewer = losses(whole.result), losses(found)
    first, *later = [step for step in fewer if step - 40 >= resumed_at]
    assert fewer[first] == pytest.approx(expected[first], rel=1e-3)
    assert later == list(range(first + 40, 201, 40))
    for step in later:
        assert fewer[step] == pytest.approx(expected[step], rel=5e-3)
        assert expected[step] != pytest.approx(expected[step - 40], rel=2e-2), "the next loss would not pass for it"


def test_nodes_that_feed_and_that_train_are_lost(
    whole: Run, tiny_dataset: str, cluster: Cluster, tmp_path: Path
) -> None:
    """Two nodes train, whose CPUs they need for it; the head and two others make the examples."""
    feeding = [cluster.add_node(num_cpus=1) for _ in range(2)]
    training = [cluster.add_node(num_cpus=2) for _ in range(2)]
    checkpoints, log = tmp_path / "runs" / "fed" / "checkpoints", tmp_path / "fed.log"
    process = start(
        "train",
        *LONG_ARGUMENTS,
        *("--train.cpus-per-worker", "2", "--train.wait-for-nodes", "--data.feed", "ray", "--run-name", "fed"),
        *("--data.prepared", tiny_dataset),
        cwd=tmp_path,
        environment={"RAY_ADDRESS": cluster.address},
        log=log,
    )
    with process:
        wait_for(lambda: max(positions(checkpoints), default=0) > 0, process, log)
        cluster.remove_node(feeding[0], allow_graceful=False)
        there = max(positions(checkpoints))
        wait_for(lambda: max(positions(checkpoints), default=0) > there, process, log)
        assert "resuming at" not in log.read_text(), "training did not notice"
        cluster.remove_node(training[0], allow_graceful=False)
        cluster.add_node(num_cpus=2)
        wait_for(lambda: "resuming at" in log.read_text(), process, log)
        out, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, log.read_text()[-3000:]
    found = json.loads(out)
    assert (found["images_seen"], found["weights_sha256"]) == (480, whole.result["weights_sha256"])


def test_run_waits_for_nodes_and_ends_at_once_where_nobody_trains(
    cluster: Cluster, tiny_dataset: str, tmp_path: Path
) -> None:
    log = tmp_path / "waits.log"

    def begin(already: int, patience_seconds: int) -> subprocess.Popen[str]:
        patience = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(patience_seconds)}
        process = start(
            "train",
            *TINY_ARGUMENTS,
            *("--train.images", "1000000", "--train.cpus-per-worker", "1", "--train.wait-for-nodes"),
            *("--data.prepared", tiny_dataset, "--run-name", "waits"),
            cwd=tmp_path,
            environment={"RAY_ADDRESS": cluster.address} | patience,
            log=log,
        )
        wait_for(lambda: log.read_text().count("run waits, MLflow run") > already, process, log)
        return process

    with begin(0, 1) as process:
        time.sleep(8.0)  # Ray Train would have tried four times, a second each
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    text = log.read_text()
    assert process.returncode == 130, text[-3000:]
    assert "2 workers need 2 CPU, the cluster has 1; they will wait for more nodes" in text
    assert "no worker is at work" in text

    # Room comes at once, and two workers may need more than a second to start.
    with begin(1, 30) as process:
        cluster.add_node(num_cpus=1)
        wait_for(lambda: max(positions(tmp_path / "runs" / "waits" / "checkpoints"), default=0) > 0, process, log)
        process.send_signal(signal.SIGINT)
        wait_for(lambda: log.read_text().count("stopping after a last checkpoint") > 1, process, log)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130, log.read_text()[-3000:]
    assert log.read_text().endswith("error: interrupted; run the same command again to go on\n")


def test_servers_may_go_away_for_a_while(tmp_path: Path) -> None:
    with s3.running(tmp_path) as store, servers.postgresql(tmp_path) as database:
        environment = store.environment
        mlflow = servers.Mlflow(database, f"s3://{s3.BUCKET}/mlartifacts", tmp_path / "mlflow.log", environment)
        with mlflow:
            log = tmp_path / "train.log"
            place = f"s3://{s3.BUCKET}/runs"
            process = start(
                "train",
                *LONG_ARGUMENTS,
                *("--train.images", "800", "--run-name", "away", "--storage.path", place),
                *("--data.prepared", f"s3://{s3.BUCKET}/faces", "--tracking.uri", mlflow.uri),
                cwd=tmp_path,
                environment=environment,
                log=log,
            )
            with process:
                wait_for(lambda: re.search(r"wrote s3://\S+-\d*[1-9]\d* in", log.read_text()), process, log)
                store.process.send_signal(signal.SIGSTOP)
                mlflow.stop()
                wait_for(lambda: "trying again in" in log.read_text(), process, log)
                wait_for(lambda: "MLflow does not take records" in log.read_text(), process, log)
                store.process.send_signal(signal.SIGCONT)
                mlflow.start()
                out, _ = process.communicate(timeout=PATIENCE_SECONDS)
            text = log.read_text()
            assert process.returncode == 0, text[-3000:]
            result = json.loads(out)
            assert result["images_seen"] == 800
            assert result["checkpoint"].startswith(f"{place}/away/checkpoints/")
            assert re.search(r"all records of run \w+ reached MLflow, after \d+ failures", text)
            client = MlflowClient(mlflow.uri)
            history = client.get_metric_history(result["run_id"], "train/generator/total")
            assert [metric.step for metric in history] == [4, *range(40, 801, 40)]
            assert client.get_run(result["run_id"]).info.status == "FINISHED"
            assert [file.path for file in client.list_artifacts(result["run_id"], "grid")][-1].endswith("0800.png")

            with pytest.MonkeyPatch.context() as patch:
                for name, value in environment.items():
                    patch.setenv(name, value)
                by_version = FaceEditor.from_uri(result["model_uri"], tracking_uri=mlflow.uri)
                by_checkpoint = FaceEditor.from_uri(result["checkpoint"])
            maps = faces.draw_face(0, 0, 32).image, np.ones((32, 32), np.uint8)
            pictures = []
            for editor in (by_version, by_checkpoint):
                editor.set_image(maps[0])
                pictures.append(editor.edit(maps[1], maps[1] * 0, maps[0]))
            assert np.array_equal(*pictures)
