"""A whole evaluation, with its parts measured in this process: Ray makes them elsewhere, and nothing else of it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient
from prepared_set import write_dataset
from pretrained import alexnet, program

from cluster import Cluster, InThisProcess
from scfegan_ray import faces, tracking
from scfegan_ray.config import Config
from scfegan_ray.data import prepare
from scfegan_ray.data.codecs import encode_png
from scfegan_ray.data.dataset import DatasetInfo
from scfegan_ray.errors import ConfigError, DataError, ModelError, StorageError
from scfegan_ray.evaluation import measure, networks, run
from scfegan_ray.evaluation.identity import EMBEDDING_SIZE
from scfegan_ray.evaluation.measure import METRICS
from scfegan_ray.evaluation.networks import Given
from scfegan_ray.evaluation.options import MeasuringConfig
from scfegan_ray.evaluation.protocol import Protocol
from scfegan_ray.serving import loading
from scfegan_ray.training import checkpoint
from scfegan_ray.training.state import TrainingState


class Workers(InThisProcess):
    """Measures parts."""

    def make_parts(
        self,
        work: run.Work,
        weights: Sequence[bytes],
        given: Mapping[str, Given],
        missing: Sequence[int],
        total: int,
        num_workers: int,
    ) -> tuple[int, float]:
        bench = run.Bench(work, weights, given, torch.device("cpu"))
        done = 0
        for number in missing:
            if len(self.made) == self.stop_after:
                raise KeyboardInterrupt
            done += bench.make(number)
            self.made.append(number)
        return done, 1.0

    def draw(self, work: run.Work, weights: Sequence[bytes], at: Sequence[int]) -> dict[str, bytes]:
        return run._draw_here(work, weights, at)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Workers]:
    found = Workers()
    monkeypatch.setattr(run, "_make_parts", found.make_parts)
    monkeypatch.setattr(run, "_draw", found.draw)
    monkeypatch.setattr(run, "assigned_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(run, "PART_IMAGES", 2)
    threads = torch.get_num_threads(), cv2.getNumThreads()
    yield found
    torch.set_num_threads(threads[0])
    cv2.setNumThreads(threads[1])


def write_model(config: Config, place: Path, seed: int) -> str:
    state = TrainingState.build(replace(config, seed=seed))
    place.mkdir(parents=True)
    checkpoint.write(checkpoint.capture(state, config), place)
    return str(place)


def write_faces(folder: Path, numbers: range, size_px: int) -> None:
    folder.mkdir()
    for number in numbers:
        (folder / f"{number}.png").write_bytes(encode_png(faces.draw_face(1, number, size_px).image))


@pytest.fixture
def prepared(tracked: Config, tiny_dataset: str) -> Config:
    """Return a config that names a dataset all of whose images are held back."""
    return replace(tracked, data=replace(tracked.data, prepared=tiny_dataset))


def evaluate(
    config: Config, models: list[str], workers: Workers, *, max_images: int | None = None, **measuring: Any
) -> run.EvaluationResult:
    what = MeasuringConfig(**{"identity": "none"} | measuring)
    return run.evaluate(config, models, what, max_images=max_images, session=workers.session)


def test_models_and_references_side_by_side(prepared: Config, workers: Workers, tmp_path: Path) -> None:
    models = [write_model(prepared, tmp_path / name, seed) for name, seed in (("old", 0), ("new", 1))]
    info = DatasetInfo.read(prepared.data.prepared or "")
    assert info is not None
    found = evaluate(prepared, models, workers)

    assert found.protocol == f"drawn_{info.size_px}_freeform_v1"
    assert found.num_images == info.num_test
    names = {key.partition("/")[0] for key in found.metrics}
    old, new = (f"{tmp_path.name}-{name}" for name in ("old", "new"))
    assert names == {old, new, *run.references.REFERENCES}
    assert found.metrics[f"{old}/hole_psnr"] != found.metrics[f"{new}/hole_psnr"]
    assert found.metrics["photograph/hole_psnr"] == 100.0
    assert found.metrics["painted_color/color_delta_e"] == 0.0
    assert found.metrics[f"{old}/outside"] == 0.0
    assert f"{old}/identity" not in found.metrics

    result = json.loads(Path(found.result).read_text())
    assert run.flat(result) == found.metrics
    assert result["images"]["num_images"] == info.num_test
    assert result["models"][old]["trained_on"] == 0
    value = result["candidates"][old]["hole_psnr"]
    assert value["low"] <= value["mean"] <= value["high"]
    pairs = {(one["first"], one["second"]) for one in result["differences"]}
    assert (old, new) in pairs and (new, old) not in pairs and (new, "telea") in pairs
    table = pq.read_table(Path(found.result).with_name("images.parquet"))
    assert table.num_rows == info.num_test * len(names)
    assert set(METRICS) < set(table.column_names)
    page = Path(found.report).read_text()
    for name in (old, new, "telea", "hole_psnr", "default-src 'none'"):
        assert name in page

    recorded = MlflowClient(tracking.tracking_uri(prepared)).get_run(result["tracking"]["run_id"])
    assert recorded.info.status == "FINISHED"
    assert recorded.data.tags["protocol"] == found.protocol
    assert recorded.data.metrics[f"{old}/hole_psnr"] == pytest.approx(found.metrics[f"{old}/hole_psnr"])


def test_stopped_and_gone_on_with_it_gives_the_same_digits(
    prepared: Config, workers: Workers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = write_model(prepared, tmp_path / "model", 0)
    whole = evaluate(
        replace(
            prepared,
            storage=replace(prepared.storage, path=str(tmp_path / "other")),
            tracking=replace(prepared.tracking, uri=tracking.tracking_uri(prepared)),
        ),
        [model],
        workers,
    )
    made, workers.made = workers.made, []
    assert len(made) > 1
    workers.stop_after = 1
    with pytest.raises(KeyboardInterrupt):
        evaluate(prepared, [model], workers)
    workers.stop_after = None
    caplog.set_level(logging.INFO)
    found = evaluate(prepared, [model], workers)
    assert workers.made == made, "each part once"
    assert f"going on with the 1 of {len(made)} parts" in caplog.text
    assert found.metrics == whole.metrics
    assert Path(found.report).read_bytes() == Path(whole.report).read_bytes()

    # Once it is finished nothing starts, and nothing changes.
    sessions, workers.made = workers.num_sessions, []
    again = evaluate(prepared, [model], workers)
    assert again.metrics == found.metrics
    assert again.images_per_second == 0.0
    assert (workers.num_sessions, workers.made) == (sessions, [])


def test_evaluation_that_mlflow_does_not_take_goes_on_later(
    prepared: Config, workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model(prepared, tmp_path / "model", 0)

    def away(*_: Any) -> None:
        raise StorageError("the server is away")

    with monkeypatch.context() as patch:
        patch.setattr(tracking, "record", away)
        with pytest.raises(StorageError, match="the server is away"):
            evaluate(prepared, [model], workers)
    made = list(workers.made)
    assert evaluate(prepared, [model], workers).metrics
    assert workers.made == made, "what was measured is kept"


def test_other_weights_holes_or_images_are_another_evaluation(
    prepared: Config, workers: Workers, tmp_path: Path
) -> None:
    models = [write_model(prepared, tmp_path / name, seed) for name, seed in (("old", 0), ("new", 1))]
    places = [
        evaluate(prepared, models[:1], workers).result,
        evaluate(prepared, models[1:], workers).result,
        evaluate(prepared, models[:1], workers, holes="thin").result,
        evaluate(prepared, models[:1], workers, max_images=2).result,
    ]
    assert len(set(places)) == 4
    assert "_thin_v1-" in places[2]
    assert json.loads(Path(places[3]).read_text())["images"]["num_images"] == 2


def test_all_of_a_source_is_measured_and_what_a_model_learnt_from_is_told(
    tracked: Config, workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = Cluster()
    monkeypatch.setattr(prepare, "_run", made.run)
    folder = tmp_path / "faces"
    write_faces(folder, range(6), tracked.data.size_px)
    config = replace(tracked, data=replace(tracked.data, source=str(folder), test_fraction=0.3))
    knows = write_model(config, tmp_path / "knows", 0)
    found = evaluate(config, [knows], workers)
    assert found.num_images == 6
    assert found.protocol.startswith("faces_")
    told = json.loads(Path(found.result).read_text())["models"][f"{tmp_path.name}-knows"]["trained_on"]
    assert 0 < told < 6
    assert f"was trained on {told} of these 6 images" in caplog.text
    # Embedded faces, the default, stand for what the first model held back of what it learnt from.
    held_back = evaluate(replace(config, data=tracked.data), [knows], workers)
    assert held_back.num_images == 6 - told


def test_gpus_that_the_cluster_lacks_are_not_waited_for(
    prepared: Config,
    workers: Workers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    model = write_model(prepared, tmp_path / "model", 0)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0})
    on_gpus = replace(prepared, train=replace(prepared.train, use_gpu=True))
    with pytest.raises(ConfigError, match=r"needs 1 GPU, the cluster has 0; give --train\.no-use-gpu, or give --train"):
        evaluate(on_gpus, [model], workers)
    assert not workers.made
    evaluate(replace(on_gpus, train=replace(on_gpus.train, wait_for_nodes=True)), [model], workers)
    assert "needs 1 GPU, the cluster has 0; they will wait for more nodes" in caplog.text


def trained_on(found: run.EvaluationResult) -> list[int | None]:
    return [model["trained_on"] for model in json.loads(Path(found.result).read_text())["models"].values()]


def test_images_of_a_copied_folder_are_not_taken_for_others(
    tracked: Config, workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(prepare, "_run", Cluster().run)
    for folder, first in (("learnt", 0), ("copied", 0), ("others", 10)):
        write_faces(tmp_path / folder, range(first, first + 6), tracked.data.size_px)
    data = replace(tracked.data, source=str(tmp_path / "learnt"), test_fraction=0.3)
    made = prepare.prepare(replace(tracked, data=data))
    learnt = made.info.named_in(tracked.data, made.uri)
    assert (learnt.prepared, learnt.source, learnt.test_fraction) == (made.uri, str(tmp_path / "learnt"), 0.3)
    model = write_model(replace(tracked, data=learnt), tmp_path / "model", 0)

    def on(folder: str, **changed: Any) -> list[int | None]:
        data = replace(tracked.data, source=str(tmp_path / folder), **changed)
        caplog.clear()
        return trained_on(evaluate(replace(tracked, data=data), [model], workers))

    assert on("learnt") == [made.info.num_train]
    assert f"was trained on {made.info.num_train} of these 6 images" in caplog.text
    assert on("others") == [0]
    assert "trained on" not in caplog.text
    assert on("copied", prepared=str(tmp_path / "again"), test_fraction=1.0) == [None]
    assert "is not known: what it learnt from cannot be read here, or has images of the same names" in caplog.text
    # Its own held-back images; and where the dataset is gone, they are prepared anew, here.
    assert trained_on(evaluate(tracked, [model], workers)) == [0]
    Path(made.uri).rename(tmp_path / "away")
    assert evaluate(tracked, [model], workers).num_images == made.info.num_test
    assert on("others") == [0], "as it was found before"


def test_lines_of_a_source_are_found_alike_on_every_machine(tracked: Config, tmp_path: Path) -> None:
    sketch = replace(tracked.data.sketch, precision="auto")
    config = replace(tracked, data=replace(tracked.data, sketch=sketch, source=str(tmp_path), size_px=32))
    model = loading.load_generator(write_model(tracked, tmp_path / "one", 0))
    assert run._wanted(config, model).data.sketch.precision == "float32"


def test_references_fill_once_what_is_painted_alike() -> None:
    painted: list[int] = []

    def fill(image: np.ndarray, hole: np.ndarray, color: np.ndarray) -> np.ndarray:
        painted.append(int(color.max()))
        return np.where(hole[..., None] == 1, color, image)

    rng = np.random.default_rng(0)
    row = {
        "key": "a", "image": rng.integers(1, 255, (32, 32, 3), np.uint8), "sketch": np.eye(32, dtype=np.uint8),
        "color": rng.integers(1, 255, (32, 32, 3), np.uint8), "hair": None,
        "eyes": np.array([10, 12, 22, 12], np.float32),
    }  # fmt: skip
    batches = measure.all_conditions([row], [row], Protocol(images="drawn", size_px=32, holes="freeform"))
    candidate = measure.reference_candidate(fill)
    for batch in batches.values():
        expected = np.where(batch["mask"] == 1, batch["color"], batch["image"])
        assert np.array_equal(candidate(batch), expected)
    assert len(painted) == 3 < len(batches)


def test_what_cannot_be_measured_is_refused(prepared: Config, workers: Workers, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model to evaluate; give --model"):
        evaluate(prepared, [], workers)
    model = write_model(prepared, tmp_path / "model", 0)
    with pytest.raises(ConfigError, match="two rows of the result would be called .*-model; give each --model once"):
        evaluate(prepared, [model, model], workers)
    with pytest.raises(ConfigError, match="there are no holes called 'round'"):
        evaluate(prepared, [model], workers, holes="round")
    other = replace(prepared, data=replace(prepared.data, size_px=2 * prepared.data.size_px))
    larger = write_model(other, tmp_path / "larger", 0)
    with pytest.raises(
        ConfigError, match=rf"trained at {other.data.size_px} px, the images have \d+; give --data.size-px"
    ):
        evaluate(prepared, [larger], workers)
    assert workers.num_sessions == 0


def test_dataset_that_holds_nothing_back_or_knows_no_hair(tracked: Config, workers: Workers, tmp_path: Path) -> None:
    place = write_dataset(tmp_path / "set")
    config = replace(tracked, data=replace(tracked.data, prepared=place, size_px=32))
    model = write_model(config, tmp_path / "model", 0)
    with pytest.raises(DataError, match="of none of its images the hair is known"):
        evaluate(config, [model], workers, holes="hair")
    file = Path(place, "dataset.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"test_fraction": 0.0, "fingerprint": "d"}))
    with pytest.raises(DataError, match="none of its images is held back"):
        evaluate(config, [model], workers)


def test_faces_that_must_be_told_apart_want_weights(
    prepared: Config, workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise ModelError("no weights")

    monkeypatch.setattr(networks, "FaceEmbedder", missing)
    model = write_model(prepared, tmp_path / "model", 0)
    with pytest.raises(ModelError, match="no weights"):
        evaluate(prepared, [model], workers, identity="sface")
    found = evaluate(prepared, [model], workers, identity="auto")
    assert not any("identity" in name or "sface" in name for name in found.metrics)


class StandIn:
    """Tells pictures apart by their mean color, where no weights can be had."""

    def __call__(self, image: Any, eyes: Any) -> Any:
        mean = torch.zeros(EMBEDDING_SIZE)
        mean[:3] = torch.from_numpy(image).float().mean(dim=(0, 1))
        return torch.nn.functional.normalize(mean, dim=0).numpy()


def test_likeness_and_distances_of_sets(
    prepared: Config, workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "FaceEmbedder", StandIn)
    model = write_model(prepared, tmp_path / "model", 0)
    found = run.evaluate(prepared, [model], session=workers.session).metrics
    name = f"{tmp_path.name}-model"
    assert found[f"{name}/identity"] < found["photograph/identity"] == pytest.approx(1.0)
    assert found[f"{name}/sface_frechet"] > found["photograph/sface_frechet"] == pytest.approx(0.0, abs=1e-6)


def test_networks_whose_weights_are_given(
    prepared: Config, workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "INCEPTION_SIZE", 64)  # a Fréchet distance of all takes seconds
    model = write_model(prepared, tmp_path / "model", 0)
    torch.save(alexnet(), tmp_path / "alexnet.pth")
    (tmp_path / "inception.pt").write_bytes(program(64))
    without = evaluate(prepared, [model], workers)
    found = evaluate(
        prepared, [model], workers, lpips=str(tmp_path / "alexnet.pth"), inception=str(tmp_path / "inception.pt")
    )
    assert found.result != without.result
    name = f"{tmp_path.name}-model"
    assert found.metrics["photograph/lpips"] == 0 < found.metrics[f"{name}/lpips"]
    assert found.metrics["photograph/fid"] == pytest.approx(0, abs=1e-3)
    assert found.metrics[f"{name}/fid"] > found.metrics["painted_color/fid"] > 1
    assert {key: value for key, value in found.metrics.items() if not key.endswith(("lpips", "fid"))} == without.metrics
    made_by = json.loads(Path(found.result).read_text())["made_by"]
    assert made_by["lpips"] == hashlib.sha256((tmp_path / "alexnet.pth").read_bytes()).hexdigest()
    assert "inception" not in pq.read_table(Path(found.result).with_name("images.parquet")).column_names
