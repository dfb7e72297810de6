"""Checkpoints: all that a resume needs, bit for bit, and refusal of what does not fit."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from updates import moments, refuse_a_batch, saved_and_gone_on, watched_step

from scfegan_ray.config import Config, ModelConfig
from scfegan_ray.errors import CheckpointError, StorageError
from scfegan_ray.training import checkpoint
from scfegan_ray.training.state import TrainingState

GOLDEN_RUN = Path(__file__).parent.parent / "golden" / "version_0_1" / "run"


@pytest.fixture
def saved(tiny: Config, tmp_path: Path) -> tuple[TrainingState, Path]:
    state = TrainingState.build(tiny)
    for seed in range(3):
        watched_step(state, tiny, seed)
    refuse_a_batch(state)
    state.sentinel.roll_back(8)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    checkpoint.write(checkpoint.capture(state, tiny, {"objective_db": 1.5}), folder)
    return state, folder


def test_resumed_training_is_bit_identical(tiny: Config, saved: tuple[TrainingState, Path]) -> None:
    state, folder = saved
    resumed = TrainingState.build(replace(tiny, seed=99))
    checkpoint.load(resumed, folder)
    assert resumed.images_seen == 12
    for seed in (3, 4):
        watched_step(state, tiny, seed)
        watched_step(resumed, tiny, seed)
    # The digest covers weights and spectral norm's vectors; equal steps from here need equal moments too.
    assert resumed.weights_sha256() == state.weights_sha256()
    for name in ("generator_optimizer", "discriminator_optimizer"):
        mine, theirs = (getattr(s, name).state_dict()["state"] for s in (state, resumed))
        assert mine.keys() == theirs.keys() and mine
        assert all(torch.equal(mine[i][key], theirs[i][key]) for i in mine for key in mine[i])
    assert resumed.sentinel.state() == state.sentinel.state()
    assert resumed.sentinel.rate_scale == 0.5


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("returns", [False, True])
def test_layout_in_memory_survives_a_checkpoint(
    tiny: Config, tmp_path: Path, channels_last: bool, returns: bool
) -> None:
    state, loaded = saved_and_gone_on(tiny, tmp_path, channels_last=channels_last, returns=returns)
    assert state.generator.bottleneck[0].weight.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert loaded.weights_sha256() == state.weights_sha256()
    for (_, mine), (parameter, theirs) in zip(moments(state), moments(loaded), strict=True):
        assert torch.equal(mine, theirs)
        assert theirs.stride() == parameter.stride()


def test_checkpoint_of_version_0_1_is_loaded_and_trained_on() -> None:
    [folder] = (GOLDEN_RUN / "checkpoints").iterdir()
    config = Config.from_dict(checkpoint.read_meta(folder)["config"])
    assert config.train.tf32 == "off", "a setting that it does not know is as by default"
    state = TrainingState.build(config)
    checkpoint.load(state, folder)
    assert (state.images_seen, state.sentinel.state()["num_skipped"]) == (8, 0)
    assert len(state.generator_optimizer.state) == len(list(state.generator.parameters()))
    watched_step(state, config, 3)
    assert checkpoint.load_generator(folder)[1] == config


def test_snapshot_stays_what_it_was_while_training_goes_on(tiny: Config, tmp_path: Path) -> None:
    state = TrainingState.build(tiny)
    watched_step(state, tiny, 0)
    snapshot = checkpoint.capture(state, tiny, {"objective_db": 1.5})
    kept, then = copy.deepcopy(snapshot), copy.deepcopy(state)
    for seed in (1, 2):
        watched_step(state, tiny, seed)
    refuse_a_batch(state)
    state.sentinel.roll_back(4)
    assert snapshot.meta == kept.meta
    assert snapshot.images_seen == 4
    for file, tensors in kept.files.items():
        assert snapshot.files[file].keys() == tensors.keys()
        assert all(torch.equal(snapshot.files[file][name], tensor) for name, tensor in tensors.items()), file
    meta = checkpoint.write(snapshot, tmp_path)
    assert meta["weights_sha256"] == then.weights_sha256() != state.weights_sha256()
    resumed = TrainingState.build(tiny)
    checkpoint.load(resumed, tmp_path)
    assert resumed.sentinel.state() == then.sentinel.state()


def test_snapshot_shares_nothing_with_the_metrics_it_was_given(tiny: Config) -> None:
    metrics = {"objective_db": 1.5}
    snapshot = checkpoint.capture(TrainingState.build(tiny), tiny, metrics)
    metrics["objective_db"] = 9.0
    assert snapshot.meta["metrics"] == {"objective_db": 1.5}


def test_files_are_safetensors_and_json_only(saved: tuple[TrainingState, Path], tiny: Config) -> None:
    _, folder = saved
    assert sorted(p.name for p in folder.iterdir()) == [
        "discriminator.safetensors",
        "ema.safetensors",
        "generator.safetensors",
        "meta.json",
        "optimizers.safetensors",
    ]
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["images_seen"] == 12
    assert meta["random"] == {"seed": tiny.seed, "position": 12}
    assert meta["metrics"] == {"objective_db": 1.5}
    assert meta["sentinel"]["reseeded_at"] == [8]
    assert meta["sentinel"]["num_accepted"] == {"discriminator": 3, "generator": 3}
    assert Config.from_dict(meta["config"]) == tiny


def test_generator_for_use_is_the_average(tiny: Config, saved: tuple[TrainingState, Path]) -> None:
    state, folder = saved
    generator, config = checkpoint.load_generator(folder)
    assert config == tiny
    packed = torch.rand(1, 9, 32, 32)
    assert torch.equal(generator(packed), state.ema(packed))
    assert not generator.training
    assert not any(p.requires_grad for p in generator.parameters())


def test_fresh_state_can_be_saved(tiny: Config, tmp_path: Path) -> None:
    state = TrainingState.build(tiny)
    written = checkpoint.write(checkpoint.capture(state, tiny), tmp_path)
    assert written == json.loads((tmp_path / "meta.json").read_text())
    assert written["metrics"] is None
    other = TrainingState.build(replace(tiny, seed=1))
    checkpoint.load(other, tmp_path)
    assert other.weights_sha256() == state.weights_sha256()


def test_damage_is_noticed(tiny: Config, saved: tuple[TrainingState, Path]) -> None:
    _, folder = saved
    path = folder / "generator.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x40
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoint.load(TrainingState.build(tiny), folder)
    path.write_bytes(data[:100])
    with pytest.raises(CheckpointError, match=r"cannot read .*generator\.safetensors"):
        checkpoint.load(TrainingState.build(tiny), folder)


def test_other_networks_are_refused(tiny: Config, saved: tuple[TrainingState, Path]) -> None:
    wider = replace(tiny, model=ModelConfig(base_channels=8, num_downsamples=2))
    with pytest.raises(CheckpointError, match="does not fit the configured network"):
        checkpoint.load(TrainingState.build(wider), saved[1])


def test_folder_without_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is no checkpoint .*meta\.json"):
        checkpoint.load_generator(tmp_path)


def test_other_format_is_refused(saved: tuple[TrainingState, Path]) -> None:
    meta = json.loads((saved[1] / "meta.json").read_text()) | {"format_version": 7}
    (saved[1] / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(CheckpointError, match="format 7, this package reads 2"):
        checkpoint.load_generator(saved[1])


def test_full_disk_is_a_clear_error_and_leaves_no_checkpoint(tiny: Config, small_place: Path) -> None:
    (small_place / "other").write_bytes(bytes(340_000))
    with pytest.raises(StorageError, match=r"cannot write .*\.safetensors: .*No space left.*free space"):
        checkpoint.write(checkpoint.capture(TrainingState.build(tiny), tiny), small_place)
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        checkpoint.read_meta(small_place)
