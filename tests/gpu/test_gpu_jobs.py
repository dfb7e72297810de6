"""The jobs as a user runs them on a machine with a GPU."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from running import ROOT, TINY_ARGUMENTS, descendants, kill, positions, result_of, run, run_code, start, wait_for

from scfegan_ray import faces
from scfegan_ray.data.rows import PreparedDataset
from scfegan_ray.serving.editor import FaceEditor

pytestmark = [pytest.mark.gpu, pytest.mark.ray]

ON_GPU = (*TINY_ARGUMENTS, "--train.use-gpu", "--train.num-workers", "1", "--train.precision", "auto")
LONG = (*ON_GPU, "--train.images", "2400", "--train.checkpoint-every-images", "400")


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """Kill a run and all that it has started after its first checkpoint of some images; give the same command again."""
    place = tmp_path_factory.mktemp("killed")
    log, checkpoints = place / "log", place / "runs" / "killed" / "checkpoints"
    with start("train", *LONG, "--run-name", "killed", cwd=place, log=log) as process:
        wait_for(lambda: max(positions(checkpoints), default=0) > 0, process, log)
        kill(descendants(process.pid))
    done = run("train", *LONG, "--run-name", "killed", cwd=place)
    return place, result_of(done), done.stderr


def test_killed_training_goes_on(resumed: tuple[Path, dict[str, Any], str]) -> None:
    _, result, log = resumed
    assert result["images_seen"] == 2400
    [position] = re.findall(r"resuming at (\d+) images", log)
    assert 0 < int(position) < 2400
    settled = json.loads((Path(result["checkpoint"]).parents[1] / "run.json").read_text())
    wanted = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    assert settled["precision"] == wanted


def test_registered_version_edits_on_both(resumed: tuple[Path, dict[str, Any], str]) -> None:
    place, result, _ = resumed
    image, drawn = faces.draw_face(0, 0, 32).image, np.ones((32, 32), np.uint8)
    edits = []
    for device in ("cpu", "cuda"):
        editor = FaceEditor.from_uri(
            result["model_uri"], tracking_uri=f"sqlite:///{place}/runs/mlflow.db", device=device
        )
        editor.set_image(image)
        edits.append(editor.edit(drawn, drawn * 0, image).astype(int))
    assert np.abs(edits[0] - edits[1]).max() <= 1


def test_evaluation_finds_what_a_cpu_finds(resumed: tuple[Path, dict[str, Any], str]) -> None:
    place, result, _ = resumed
    found = {}
    for use_gpu in ("--train.no-use-gpu", "--train.use-gpu"):
        done = run("evaluate", "--model", result["model_uri"], use_gpu, "--identity", "none", cwd=place)
        found[use_gpu] = json.loads(Path(result_of(done)["result"]).read_text())
    cpu, gpu = found.values()
    assert (cpu["made_by"]["device"], gpu["made_by"]["device"]) == ("cpu", "cuda")
    for name, numbers in cpu["candidates"].items():
        for metric in ("hole_psnr", "psnr", "guided_gain"):
            assert gpu["candidates"][name][metric]["mean"] == pytest.approx(numbers[metric]["mean"], abs=0.01)


def test_one_worker_too_many_is_refused(tmp_path: Path) -> None:
    many = str(torch.cuda.device_count() + 1)
    done = run("train", *ON_GPU, "--train.num-workers", many, "--run-name", "many", cwd=tmp_path)
    assert done.returncode == 1
    assert "GPU" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.network
def test_edges_found_on_the_gpu_are_the_cpus(tmp_path: Path) -> None:
    sketches = []
    for name, share in (("gpu", "0.5"), ("cpu", "0")):
        arguments = ("--data.sketch.detector", "hed", "--data.sketch.precision", "float32")
        done = run(
            "prepare_data",
            *(*("--data.num-embedded", "24", "--data.size-px", "64", "--model.num-downsamples", "2"), *arguments),
            *("--data.gpus-per-actor", share, "--data.prepared", name),
            cwd=tmp_path,
        )
        result_of(done)
        dataset = PreparedDataset.open(str(tmp_path / name))
        sketches.append(np.stack([dataset.row(at)["sketch"] for at in range(dataset.info.num_train)]))
    assert sketches[0].any()
    assert (sketches[0] != sketches[1]).mean() < 0.002


def test_driver_sits_on_no_gpu(tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from jobs import train; import torch; "
    code += f"assert train.main({[*ON_GPU, '--run-name', 'driver']!r}) == 0; print(torch.cuda.is_initialized())"
    assert run_code(code, tmp_path, seconds=300).splitlines()[-1] == "False"
