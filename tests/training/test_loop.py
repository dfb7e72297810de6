"""The training loop of one rank, in this process."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_processes import Recorder, tensors_of
from tiny import TINY

from scfegan_ray import precision
from scfegan_ray.config import Config, OptimizationConfig, SentinelConfig
from scfegan_ray.data.rows import PreparedDataset
from scfegan_ray.errors import StorageError
from scfegan_ray.evaluation import held_back
from scfegan_ray.models.features import vgg_random
from scfegan_ray.training import checkpoint
from scfegan_ray.training import loop as training
from scfegan_ray.training.hooks import HeldBack
from scfegan_ray.training.outcome import Outcome
from scfegan_ray.training.store import CheckpointStore

CONFIG = replace(TINY, train=replace(TINY.train, num_workers=1, checkpoint_every_images=1000, images=24))


class Loop:
    """Runs the loop of one worker and reads what it left."""

    def __init__(self, dataset: str, folder: Path) -> None:
        self.dataset, self.folder = dataset, folder
        self.store = CheckpointStore(str(folder / "checkpoints"))
        self.tracker = Recorder()

    def __call__(self, config: Config, **options: Any) -> Outcome:
        return training.train(
            config,
            self.dataset,
            self.store,
            vgg_random(),
            self.tracker,
            device=torch.device("cpu"),
            **options,
        )

    def meta(self, name: str) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(Path(self.store.uri(name), "meta.json").read_text())
        return values

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        return tensors_of(self.store.uri(name))


@pytest.fixture
def loop(tiny_dataset: str, tmp_path: Path) -> Loop:
    return Loop(tiny_dataset, tmp_path)


def test_every_mark_and_both_ends_are_kept(loop: Loop) -> None:
    found = loop(replace(CONFIG, train=replace(CONFIG.train, checkpoint_every_images=8, checkpoints_to_keep=9)))
    names = loop.store.names()
    assert [int(name[-10:]) for name in names] == [0, 8, 16, 24]
    assert (found.images_seen, found.checkpoint) == (24, loop.store.uri(names[-1]))
    assert found.weights_sha256 == loop.meta(names[-1])["weights_sha256"]
    assert loop.meta(names[-1])["metrics"] == found.last_metrics
    assert found.failure is None and not found.stopped


def test_checkpoints_by_the_clock_hold_no_metrics(loop: Loop) -> None:
    loop(replace(CONFIG, train=replace(CONFIG.train, checkpoint_every_seconds=1e-9, checkpoints_to_keep=99)))
    between = [loop.meta(name) for name in loop.store.names()[1:-1]]
    assert between, "the time is always over"
    assert all(meta["metrics"] is None for meta in between)


def test_finished_run_is_not_trained_again(loop: Loop) -> None:
    done = loop(CONFIG)
    again = loop(CONFIG)
    assert (again.images_seen, again.weights_sha256) == (done.images_seen, done.weights_sha256)
    assert again.checkpoint == done.checkpoint


@pytest.mark.parametrize("at", [4, 12, 20])
def test_resume_from_anywhere_is_bit_identical(loop: Loop, at: int, tmp_path: Path) -> None:
    whole = loop(replace(CONFIG, train=replace(CONFIG.train, checkpoint_every_images=4, checkpoints_to_keep=99)))
    expected = loop.tensors(loop.store.names()[-1])
    for name in loop.store.names():
        if int(name[-10:]) > at:
            shutil.rmtree(loop.store.uri(name))
    again = loop(CONFIG)
    assert again.weights_sha256 == whole.weights_sha256
    found = loop.tensors(loop.store.names()[-1])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items()), "optimizers, too"


def test_passes_add_up_to_the_same_update(loop: Loop, tiny_dataset: str, tmp_path: Path) -> None:
    whole = loop(CONFIG)
    other = Loop(tiny_dataset, tmp_path / "other")
    cut = other(replace(CONFIG, train=replace(CONFIG.train, max_images_per_pass=3)))
    assert cut.weights_sha256 != whole.weights_sha256, "sums are taken in another order"
    expected, found = (one.tensors(one.store.names()[-1]) for one in (loop, other))
    for name, value in expected.items():
        if "optimizers" not in name:
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


def test_damaged_checkpoint_is_passed_over(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    whole = loop(replace(CONFIG, train=replace(CONFIG.train, checkpoint_every_images=8, checkpoints_to_keep=9)))
    newest = Path(loop.store.uri(loop.store.names()[-1]))
    file = newest / "ema.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 0x40
    file.write_bytes(data)
    again = loop(CONFIG)
    assert again.weights_sha256 == whole.weights_sha256


def test_exploding_training_goes_back_and_gives_up(loop: Loop) -> None:
    config = replace(
        CONFIG,
        optimization=OptimizationConfig(generator_learning_rate=1e30),
        sentinel=SentinelConfig(max_skipped=2, max_rollbacks=2),
        train=replace(CONFIG.train, images=400),
    )
    found = loop(config)
    assert found.failure is not None
    kind, text = found.failure
    assert kind == "DivergenceError"
    assert "after 2 returns to a checkpoint" in text and "learning rates scaled by 0.25" in text
    assert all(torch.isfinite(value).all() for value in loop.tensors(loop.store.names()[-1]).values())
    assert found.checkpoint == loop.store.uri(loop.store.names()[-1])


def test_one_bad_batch_is_skipped(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    plain = training.cut_into_passes

    def spoil(arrays: dict[str, Any], *rest: Any) -> Any:
        nonlocal calls
        calls += 1
        passes = plain(arrays, *rest)
        if calls == 3:
            passes[0].batch.ground_truth[0, 0, 0, 0] = float("nan")
        return passes

    monkeypatch.setattr(training, "cut_into_passes", spoil)
    found = loop(CONFIG)
    assert found.failure is None and found.images_seen == 24
    name = loop.store.names()[-1]
    assert loop.meta(name)["sentinel"]["num_skipped"] == 1
    assert all(torch.isfinite(value).all() for value in loop.tensors(name).values())


def test_hardware_without_bfloat16_ends_the_run(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    found = loop(replace(CONFIG, train=replace(CONFIG.train, precision="bfloat16")))
    assert found.failure is not None
    assert found.failure[0] == "ConfigError" and "computes in bfloat16, which the processor" in found.failure[1]
    assert loop.store.names() == []


def test_nothing_held_back_is_nothing_measured(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = PreparedDataset.open

    def all_for_training(uri: str, **how: Any) -> PreparedDataset:
        dataset = opened(uri, **how)
        dataset.info = replace(dataset.info, test_fraction=0.0, num_train=12, num_test=0)
        dataset._is_held_back = np.zeros(12, bool)
        return dataset

    monkeypatch.setattr(PreparedDataset, "open", all_for_training)
    found = loop(replace(CONFIG, train=replace(CONFIG.train, checkpoint_every_images=8, checkpoints_to_keep=9)))
    assert (found.images_seen, found.first_metrics, found.last_metrics, found.failure) == (24, {}, {}, None)
    assert [loop.meta(name)["metrics"] for name in loop.store.names()] == [None] * 4, "none is the best"


def test_speed_is_that_of_the_last_interval(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = 0.0
    step, measure, capture = training.train_step, HeldBack.measure, checkpoint.capture

    def taking(work: Any, duration: float) -> Any:
        def slow(*arguments: Any, **options: Any) -> Any:
            nonlocal seconds
            seconds += duration
            return work(*arguments, **options)

        return slow

    def slower_after_12(*arguments: Any, **options: Any) -> Any:
        nonlocal seconds
        seconds += 1.0 if arguments[0].images_seen < 12 else 4.0
        return step(*arguments, **options)

    monkeypatch.setattr(training, "train_step", slower_after_12)
    monkeypatch.setattr(HeldBack, "measure", taking(measure, 3.0))
    monkeypatch.setattr(checkpoint, "capture", taking(capture, 0.5))
    monkeypatch.setattr(training.time, "perf_counter", lambda: seconds)
    loop(replace(CONFIG, train=replace(CONFIG.train, checkpoint_every_images=12, log_every_images=12)))
    said = {position: values for position, values in loop.tracker.said if "train/images_per_second" in values}
    parts = ("data", "step", "checkpoint", "evaluation")
    spent = {position: tuple(values[f"train/seconds/{name}"] for name in parts) for position, values in said.items()}
    # The first update ends an interval with the first measuring and checkpoint in it.
    assert spent == {4: (0.0, 1.0, 0.5, 3.0), 12: (0.0, 2.0, 0.0, 0.0), 24: (0.0, 12.0, 0.5, 3.0)}
    rates = [values["train/images_per_second"] for values in said.values()]
    assert rates == pytest.approx([4 / 4.5, 8 / 2.0, 12 / 15.5])
    assert loop.tracker.facts["precision"] == "float32" and loop.tracker.facts["tf32"] == "off"


def test_failing_metric_does_not_stop_training(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(held_back, "perceptual_distance", broken)
    found = loop(CONFIG)
    assert (found.images_seen, found.last_metrics, found.failure) == (24, {}, None)


def test_references_are_measured_once_for_a_dataset(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    plain = held_back.reference_values

    def counted(batches: Any) -> Any:
        measured.append(1)
        return plain(batches)

    monkeypatch.setattr(held_back, "reference_values", counted)
    for images in (4, 8, 12):  # the same run again, and again
        loop(replace(CONFIG, train=replace(CONFIG.train, images=images)))
    assert len(measured) == 1
    loop(replace(CONFIG, evaluation=replace(CONFIG.evaluation, num_images=1)))
    assert len(measured) == 2, "of other images"
    said = [values for _, values in loop.tracker.said if "val/telea_hole_psnr" in values]
    assert len(said) == 4 and said[0] == said[1] == said[2]
    assert said[0].keys() == {"val/telea_hole_psnr", "val/color_hole_psnr"}


@pytest.mark.parametrize("at", [0, 8])
def test_storage_that_stays_away_ends_the_run(loop: Loop, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = CheckpointStore.write

    def full(store: CheckpointStore, snapshot: Any) -> str:
        if snapshot.images_seen >= at:
            raise StorageError("cannot write: no space left")
        return plain(store, snapshot)

    monkeypatch.setattr(CheckpointStore, "write", full)
    config = replace(
        CONFIG,
        train=replace(CONFIG.train, checkpoint_every_images=4, images=4000),
        storage=replace(CONFIG.storage, retry_seconds=0.0),
    )
    found = loop(config)
    assert found.failure == ("StorageError", "cannot write: no space left")
    assert found.images_seen < 4000, "it ends soon"
    assert [int(name[-10:]) for name in loop.store.names()] == ([0, 4] if at else [])
    assert found.checkpoint == (loop.store.uri(loop.store.names()[-1]) if at else None)


def test_storage_that_cannot_be_read_ends_the_run(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    loop(replace(CONFIG, train=replace(CONFIG.train, images=8)))

    def away(store: CheckpointStore, name: str) -> None:
        raise StorageError(f"cannot read {name}: connection refused")

    monkeypatch.setattr(CheckpointStore, "open", away)
    found = loop(replace(CONFIG, storage=replace(CONFIG.storage, retry_seconds=0.0)))
    assert found.failure == ("StorageError", "cannot read checkpoint-0000000008: connection refused")


def test_storage_that_goes_away_before_a_return_ends_the_run(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(store: CheckpointStore, name: str) -> None:
        raise StorageError(f"cannot read {name}: connection refused")

    monkeypatch.setattr(CheckpointStore, "open", away)
    config = replace(
        CONFIG,
        optimization=OptimizationConfig(generator_learning_rate=1e30),
        sentinel=SentinelConfig(max_skipped=2),
        storage=replace(CONFIG.storage, retry_seconds=0.0),
        train=replace(CONFIG.train, images=400),
    )
    found = loop(config)
    assert found.failure == ("StorageError", "cannot read checkpoint-0000000000: connection refused")
    assert found.images_seen < 400
    assert found.checkpoint == loop.store.uri("checkpoint-0000000000"), "which is whole"
