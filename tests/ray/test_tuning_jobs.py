"""Many trainings side by side: a search that is killed and goes on, variants on a cluster of several nodes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from ray.cluster_utils import Cluster
from running import PATIENCE_SECONDS, TINY_ARGUMENTS, kill, result_of, run, start, wait_for

from scfegan_ray.config import Config
from scfegan_ray.serving import loading
from scfegan_ray.training.curves import LOSS, ReferenceCurve

pytestmark = pytest.mark.ray


def table_of(result: dict[str, str]) -> list[dict[str, str]]:
    with Path(result["table"]).open(newline="") as file:
        return list(csv.DictReader(file))


def test_killed_search_goes_on_and_train_accepts_what_it_finds(tiny_dataset: str, tmp_path: Path) -> None:
    asked = (
        *(*TINY_ARGUMENTS, "--data.prepared", tiny_dataset, "--run-name", "search"),
        *("--tune.num-trials", "3", "--tune.reports", "2", "--tune.max-concurrent-trials", "1"),
        *("--tune.sampler", "optuna", "--train.num-workers", "1"),
    )
    log, place = tmp_path / "killed.log", tmp_path / "runs" / "search"
    with start("tune", *asked, cwd=tmp_path, log=log) as process:
        wait_for(lambda: len(list(place.glob("trial-*/run.json"))) == 2, process, log)
        kill([process.pid])
        process.communicate(timeout=PATIENCE_SECONDS)
    assert not (place / "best.json").exists()
    [first] = [one for one in place.glob("trial-*") if list(one.glob("checkpoints/*-0000000016/meta.json"))]

    refused = run("tune", *asked, "--tune.num-trials", "4", cwd=tmp_path)
    assert refused.returncode == 1
    assert (
        "error: the search was started with tune.num_trials = 3, now it is 4; use another --run-name" in refused.stderr
    )

    done = run("tune", *asked, cwd=tmp_path)
    result = result_of(done)
    assert set(result) == {"best_config", "num_trials", "table"}
    assert result["num_trials"] == 3
    rows = table_of(result)
    assert [float(row["objective_db"]) for row in rows] == sorted(float(row["objective_db"]) for row in rows)[::-1]
    [configured] = [row for row in rows if float(row["losses.style"]) == 120.0 and float(row["losses.hole"]) == 6.0]
    assert configured["trial"] == first.name, "the configured weights are the first trial"

    accepted = run("train", "--config", result["best_config"], "--train.images", "99", "--dry-run", cwd=tmp_path)
    config = Config.from_dict(json.loads(accepted.stdout))
    assert config.losses.style == float(rows[0]["losses.style"])
    assert (config.data.size_px, config.train.images, config.run_name) == (32, 99, None)

    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    [parent] = client.search_runs(["1"], "tags.kind = 'search'")
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["best/objective_db"] == pytest.approx(float(rows[0]["objective_db"]))
    files = {one.path for one in client.list_artifacts(parent.info.run_id)}
    assert {"best.json", "trials.csv", "parallel_coordinates.svg", "importance.svg"} <= files
    children = client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert {child.info.run_name for child in children} == {row["trial"] for row in rows}, "nothing was begun in vain"
    assert {child.info.status for child in children} <= {"FINISHED", "KILLED"}
    [finished] = [child for child in children if child.info.run_name == first.name]
    measured = [one.step for one in client.get_metric_history(finished.info.run_id, "val/objective_db")]
    assert (measured, finished.info.status) == ([0, 8, 16], "FINISHED"), "what had ended was not done again"


def test_variants_are_trained_side_by_side_and_evaluated(tiny_dataset: str, cluster: Cluster, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=1)
    variants = tmp_path / "seeds.json"
    variants.write_text('{"one": {"seed": 1}, "two": {"seed": 2}, "three": {"seed": 3}}')
    asked = (
        *(*TINY_ARGUMENTS, "--data.prepared", tiny_dataset, "--run-name", "seeds", "--grid", str(variants)),
        *("--train.num-workers", "1", "--train.cpus-per-worker", "0.9", "--identity", "none"),
    )
    done = run("tune", *asked, cwd=tmp_path, environment={"RAY_ADDRESS": cluster.address})
    result = result_of(done)
    assert set(result) == {"best_config", "num_trials", "table", "protocol", "report", "result"}
    assert {row["trial"]: row["seed"] for row in table_of(result)} == {"one": "1", "two": "2", "three": "3"}
    assert "3 trials, 2 at a time" in done.stderr, "more than fit wait"
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    runs = client.search_runs(["1"], "tags.`mlflow.parentRunId` != ''", order_by=["attributes.start_time"])
    first, second, third = (one.info for one in runs)
    assert second.start_time < first.end_time, "two at once"
    assert third.start_time > min(first.end_time, second.end_time), "the third one waits"

    evaluated = json.loads(Path(result["result"]).read_text())
    assert {name.rpartition("-")[0] for name in evaluated["models"]} == {"one", "two", "three"}
    assert result["protocol"] == "drawn_32_freeform_v1"
    assert Path(result["report"]).exists()

    curve = ReferenceCurve.read(Path(tmp_path, "runs", "seeds", "reference_curve.json").read_bytes())
    assert len(curve.values[LOSS]) == 3
    usual = ("--train.reference-curve", str(tmp_path / "runs" / "seeds" / "reference_curve.json"), "--seed", "9")
    held = run("train", *TINY_ARGUMENTS, *usual, "--data.prepared", tiny_dataset, "--run-name", "held", cwd=tmp_path)
    files = {one.path for one in client.list_artifacts(result_of(held)["run_id"])}
    assert "reference_curve.svg" in files
    assert "the usual " in held.stderr
    learnt = loading.load_generator(tmp_path / "runs" / "held").config.data
    assert (learnt.prepared, learnt.source) == (tiny_dataset, "embedded"), "a model says what it learnt from"
