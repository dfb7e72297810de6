"""Preparation on Ray as a user runs it: interrupted, killed, repeated, on an object store, in a full place.

What does not depend on Ray is tested in `tests/data/test_prepare.py`, where it costs less.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from prepared_set import keys_of
from running import result_of, run, run_code, start, terminate_group

from scfegan_ray import faces, storage
from scfegan_ray.config import Config, DataConfig, ModelConfig, SketchConfig
from scfegan_ray.data.codecs import encode_png
from scfegan_ray.data.dataset import OTHER_FILES
from scfegan_ray.data.plan import make_plan, settle
from scfegan_ray.data.prepare import ShardMaker
from scfegan_ray.data.rows import PreparedDataset

pytestmark = pytest.mark.ray

ARGUMENTS = ("--data.size-px", "32", "--data.sketch.detector", "opencv", "--model.num-downsamples", "2")
PATIENCE_SECONDS = 120.0


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "photographs"
    (folder / "below").mkdir(parents=True)
    for index in range(7):
        (folder / "below" / f"{index} ü.png").write_bytes(encode_png(faces.draw_face(0, index, 48).image))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no more")
    (folder / "empty.png").write_bytes(b"")
    return folder


def prepare(cwd: Path, *arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
    return run("prepare_data", *ARGUMENTS, *arguments, cwd=cwd, **how)


def test_what_cannot_be_read_is_left_out(photographs: Path, tmp_path: Path) -> None:
    arguments = ("--data.source", str(photographs), "--data.prepared", "made", "--data.shard-images", "2")
    result = result_of(prepare(tmp_path, *arguments))
    made = tmp_path / "made"
    assert (result["dataset"], result["num_images"], result["num_rejected"]) == (str(made), 7, 2)
    assert [r["key"] for r in result["rejected"]] == ["broken.jpg", "empty.png"]
    assert all(r["reason"] for r in result["rejected"])
    assert sorted(p.name for p in made.iterdir()) == ["data", *OTHER_FILES]

    dataset = PreparedDataset.open(str(made))
    assert keys_of(dataset) == [f"below/{i} ü.png" for i in range(7)]
    assert (dataset.info.eyes, dataset.info.hair) == ("canonical", "none")
    row = dataset.row(0)
    assert row["image"].shape == (32, 32, 3) and row["hair"] is None
    assert 0.005 < row["sketch"].mean() < 0.4
    assert (row["color"].sum(axis=-1) > 0).all(), "black would mean unpainted"

    again = prepare(tmp_path, *arguments)
    assert result_of(again) == result
    assert "already prepared" in again.stderr and "starting Ray" not in again.stderr

    inspected = result_of(prepare(tmp_path, "--inspect", "made"))
    assert inspected["finished"] and inspected["num_images"] == 7
    assert inspected["statistics"]["hole_area"]["mean"] > 0.05


@pytest.mark.parametrize(
    ("files", "arguments", "message"),
    [
        (None, [], r"error: no faces at .*/raw; check --data.source"),
        ({"a.jpg": b"no"}, [], r"error: none of the 1 images of \S+/raw can be used: a\.jpg: not a readable image"),
        (
            {"a.jpg": b"no"},
            ["--storage.path", "/proc/nowhere"],
            r"error: cannot (write|lock) /proc/nowhere.*free space",
        ),
        ({"a.jpg": b"no"}, ["--data.parser.model", "no.onnx"], r"error: .*cannot read \S+/no\.onnx.*"),
    ],
)
def test_bad_places_are_one_line(
    tmp_path: Path, files: dict[str, bytes] | None, arguments: list[str], message: str
) -> None:
    if files is not None:
        (tmp_path / "raw").mkdir()
        for name, data in files.items():
            (tmp_path / "raw" / name).write_bytes(data)
    done = prepare(tmp_path, "--data.source", "raw", *arguments)
    assert done.returncode == 1
    assert re.fullmatch(message, done.stderr.splitlines()[-1])
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and "raw" not in p.parts], "nothing half-written"


MANY = ("--data.num-embedded", "240", "--data.shard-images", "4", "--data.prepared", "made")
NUM_SHARDS = 60


def shards_in(folder: Path) -> dict[str, int]:
    """Return the finished shards and when each was written."""
    data = folder / "made" / "data"
    return {p.name: p.stat().st_mtime_ns for p in data.glob("part-*.parquet")} if data.exists() else {}


def start_and_wait(folder: Path, more: int) -> subprocess.Popen[str]:
    """Start the job and wait until it has finished some more shards."""
    count = len(shards_in(folder)) + more
    process = start("prepare_data", *ARGUMENTS, *MANY, cwd=folder)
    end = time.monotonic() + PATIENCE_SECONDS
    while len(shards_in(folder)) < count:
        assert process.poll() is None, f"it ended before it could be disturbed: {process.communicate()[1][-2000:]}"
        assert time.monotonic() < end
        time.sleep(0.01)
    return process


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """Return the process ids of the actors that prepare shards below a job."""
    parents, titles = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                titles[int(entry.name)] = (entry / "cmdline").read_text()
            except OSError:
                continue

    def is_below(pid: int) -> bool:
        while pid in parents:
            pid = parents[pid]
            if pid == process.pid:
                return True
        return False

    return [pid for pid, title in titles.items() if "_MakeShard" in title and is_below(pid)]


def test_nothing_is_lost_whoever_is_stopped(tmp_path: Path) -> None:
    with start_and_wait(tmp_path, 3) as process:
        terminate_group(process.pid)
        _, log = process.communicate(timeout=60)
    assert process.returncode == 130
    assert log.splitlines()[-1] == "error: interrupted; run the same command again to go on"
    assert "SIGABRT" not in log and "Aborted" not in log
    interrupted = shards_in(tmp_path)

    with start_and_wait(tmp_path, 3) as process:
        process.kill()
        process.communicate(timeout=60)
    killed = shards_in(tmp_path)
    assert 6 <= len(killed) < NUM_SHARDS
    assert not (tmp_path / "made" / "dataset.json").exists()
    inspected = prepare(tmp_path, "--inspect", "made")
    assert not result_of(inspected)["finished"] and "unfinished" in inspected.stderr
    mixed = prepare(tmp_path, *MANY, "--data.color.median-px", "5")
    assert mixed.returncode == 1
    assert "was begun with data.color.median_px = 3, now it is 5; choose another --data.prepared" in mixed.stderr

    with start_and_wait(tmp_path, 3) as process:
        workers = workers_of(process)
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        out, log = process.communicate(timeout=PATIENCE_SECONDS)
    assert workers, "nobody was killed"
    assert process.returncode == 0, log[-3000:]
    assert re.search(rf"going on with the \d+ of {NUM_SHARDS} shards that are there", log)
    assert json.loads(out)["num_images"] == 240

    finished = shards_in(tmp_path)
    assert len(finished) == NUM_SHARDS
    assert finished.items() >= killed.items() >= interrupted.items(), "finished shards are not made again"
    dataset = PreparedDataset.open(str(tmp_path / "made"))
    assert keys_of(dataset) == [f"embedded/0/{at:07d}" for at in range(240)]
    scraps = [p.name for p in (tmp_path / "made" / "data").iterdir() if p.name not in finished]
    assert len(scraps) <= 4, "one for each worker that was killed while it wrote, gone a minute later"


def test_source_and_dataset_in_an_object_store(
    s3: dict[str, str], photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    base = "s3://lab/by-jobs"
    archive = Path(shutil.make_archive(str(tmp_path / "raw"), "zip", photographs))
    storage.write_bytes(f"{base}/raw.zip", archive.read_bytes())
    arguments = ("--data.source", f"{base}/raw.zip", "--storage.path", f"{base}/runs")
    result = result_of(prepare(tmp_path, *arguments))
    assert result["dataset"].startswith(f"{base}/runs/prepared/")
    assert (result["num_images"], result["num_rejected"]) == (7, 2)
    assert storage.list_files(result["dataset"]) == ["data/part-00000.parquet", *OTHER_FILES]
    assert result_of(prepare(tmp_path, *arguments)) == result
    assert result_of(prepare(tmp_path, "--inspect", result["dataset"]))["num_images"] == 7
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "raw.zip"], "nothing is left on this machine"
    assert not list((tmp_path / "cache").iterdir())

    wrong = prepare(tmp_path, *arguments, environment={"AWS_SECRET_ACCESS_KEY": "no"})
    assert wrong.returncode == 1
    assert re.search(r"^error: cannot .* s3://lab/.*check the URI and the AWS_\* variables", wrong.stderr, re.MULTILINE)


def test_full_place_is_one_line(small_place: Path, tmp_path: Path) -> None:
    arguments = ("--data.num-embedded", "160", "--data.shard-images", "4", "--data.prepared", str(small_place / "made"))
    done = prepare(tmp_path, *arguments)
    assert done.returncode == 1
    assert re.fullmatch(r"error: cannot write .*No space left on device.*free space", done.stderr.splitlines()[-1])
    kept = {path.name for path in (small_place / "made" / "data").iterdir()}
    assert kept and all(re.fullmatch(r"part-\d{5}\.parquet", name) for name in kept), "whole shards, no scraps"


def test_benchmark_prints_every_stage(tmp_path: Path) -> None:
    done = prepare(tmp_path, "--benchmark", "--data.max-images", "24", "--data.shard-images", "4")
    result = result_of(done)
    rates = result["images_per_second"]
    stages = ["read, decode, resize, label", "sketch", "color", "encode", "write", "all stages, one process"]
    assert list(rates)[:6] == stages
    assert all(rate > 0 for rate in rates.values())
    assert result["images"] == 24 and result["pipeline_share"] > 0
    assert result["peak_memory_bytes"] > 1 << 28
    for name in rates:
        assert re.search(rf"{re.escape(name)} +[\d.]+ images/s", done.stderr)
    assert [p.name for p in tmp_path.iterdir()] == ["cache"], "a benchmark keeps nothing"


_ON_NODES = """
import os, pathlib, threading, time
import ray
from ray.cluster_utils import Cluster
from scfegan_ray.config import Config, DataConfig, ModelConfig, SketchConfig
from scfegan_ray.data import prepare
place = pathlib.Path({folder!r})
def wait_for_the_late(stage):
    late, end = place / "late", time.monotonic() + ({patience} if {late} else 1)
    while time.monotonic() < end and not (late.exists() and list(place.glob(f"{{stage}} {{late.read_text()}} *"))):
        time.sleep(0.1)
def told(stage):
    class Told(getattr(prepare, stage)):
        def __call__(self, block):
            node = ray.get_runtime_context().get_node_id()
            (place / f"{{stage}} {{node}} {{self._device.type}} {{os.getpid()}}").touch()
            if stage == {slow!r}:
                wait_for_the_late(stage)
            return super().__call__(block)
    return Told
for stage in ("_MakeShard", "_LoadShard", "_DetectEdges", "_FinishShard"):
    setattr(prepare, stage, told(stage))
cluster = Cluster()
cluster.add_node(num_cpus=1, num_gpus=1, include_dashboard=False, object_store_memory=10**8)
cluster.add_node(num_cpus=2, object_store_memory=10**8)
ray.init(address=cluster.address)
data = DataConfig(
    size_px=32, num_embedded=60, shard_images=1, sketch=SketchConfig(detector="opencv"), prepared={made!r}, {share}
)
made = []
work = threading.Thread(
    target=lambda: made.append(prepare.prepare(Config(model=ModelConfig(num_downsamples=2), data=data)))
)
work.start()
while work.is_alive() and not list(place.glob("{slow} *")):
    time.sleep(0.1)
if {late}:
    (place / "late").write_text(cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=10**8).node_id)
work.join()
print(made[0].info.num_images)
print(*[n["NodeID"] for n in ray.nodes() if n["Resources"].get("GPU")])
print(*[n["NodeID"] for n in ray.nodes() if not n["Resources"].get("GPU")], flush=True)
ray.shutdown()
cluster.shutdown()
"""


def stages_seen(tmp_path: Path, share: str, slow: str, late: bool) -> tuple[list[list[str]], set[str], set[str]]:
    """Prepare on a node with a GPU and one without; return (stage, node, device, process) each, and the nodes."""
    (tmp_path / "seen").mkdir()
    names = {"folder": str(tmp_path / "seen"), "made": str(tmp_path / "made")}
    code = _ON_NODES.format(**names, share=share, slow=slow, late=late, patience=PATIENCE_SECONDS)
    environment = {"RAY_TMPDIR": f"/tmp/scfegan-{os.getuid()}", "RAY_AUTH_MODE": "disabled"}
    num_images, with_gpu, without = run_code(code, tmp_path, environment, 300.0).splitlines()[-3:]
    assert num_images == "60"
    seen = [path.name.split() for path in (tmp_path / "seen").iterdir() if path.name != "late"]
    return seen, set(with_gpu.split()), set(without.split())


def test_every_node_makes_shards_where_no_gpu_is_used(tmp_path: Path) -> None:
    seen, with_gpu, without = stages_seen(tmp_path, "", "_MakeShard", late=False)
    assert {(stage, device) for stage, _, device, _ in seen} == {("_MakeShard", "cpu")}
    assert {node for _, node, _, _ in seen} == with_gpu | without


def test_gpus_detect_edges_and_every_core_does_the_rest(tmp_path: Path) -> None:
    seen, with_gpu, without = stages_seen(tmp_path, "gpus_per_actor=0.5", "_DetectEdges", late=True)
    nodes = {
        at: {node for stage, node, _, _ in seen if stage == at} for at in ("_LoadShard", "_DetectEdges", "_FinishShard")
    }
    assert nodes["_DetectEdges"] == with_gpu and len(with_gpu) == 2, "the GPU that came late, too"
    assert without <= nodes["_LoadShard"] and without <= nodes["_FinishShard"]
    devices = {(stage, device) for stage, _, device, _ in seen}
    assert devices == {("_LoadShard", "cpu"), ("_DetectEdges", "cuda"), ("_FinishShard", "cpu")}
    assert len({process for stage, _, _, process in seen if stage == "_DetectEdges"}) <= 4, "two on each GPU"

    data = DataConfig(size_px=32, num_embedded=60, shard_images=1, sketch=SketchConfig(detector="opencv"))
    plan = make_plan(Config(model=ModelConfig(num_downsamples=2), data=data))
    maker = ShardMaker(settle(data, plan, None), plan.source, str(tmp_path / "one"), plan.settings)
    for number in range(plan.num_shards):
        maker.make(number, plan.keys_of(number).to_pylist())
    expected = {path.name: path.read_bytes() for path in (tmp_path / "one" / "data").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "made" / "data").iterdir()} == expected
