"""Checkpoints: all that a resume needs, bit for bit, and refusal of what does not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_state_and_step import step

from scfegan_ray.config import Config, ModelConfig
from scfegan_ray.errors import CheckpointError
from scfegan_ray.training import checkpoint
from scfegan_ray.training.state import TrainingState


@pytest.fixture
def saved(tiny: Config, tmp_path: Path) -> tuple[TrainingState, Path]:
    state = TrainingState.build(tiny)
    for seed in range(3):
        step(state, tiny, seed)
        state.images_seen += 4
        state.update_ema(100.0, 4)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    checkpoint.save(state, tiny, folder)
    return state, folder


def test_resumed_training_is_bit_identical(tiny: Config, saved: tuple[TrainingState, Path]) -> None:
    state, folder = saved
    resumed = TrainingState.build(replace(tiny, seed=99))
    checkpoint.load(resumed, folder)
    assert resumed.images_seen == 12
    for seed in (3, 4):
        step(state, tiny, seed)
        step(resumed, tiny, seed)
    state.update_ema(100.0, 4)
    resumed.update_ema(100.0, 4)
    # The digest covers weights and spectral norm's vectors; equal steps from here need equal moments too.
    assert resumed.weights_sha256() == state.weights_sha256()
    for name in ("generator_optimizer", "discriminator_optimizer"):
        mine, theirs = (getattr(s, name).state_dict()["state"] for s in (state, resumed))
        assert mine.keys() == theirs.keys() and mine
        assert all(torch.equal(mine[i][key], theirs[i][key]) for i in mine for key in mine[i])


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
    checkpoint.save(state, tiny, tmp_path)
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
    with pytest.raises(CheckpointError, match="format 7, this package reads 1"):
        checkpoint.load_generator(saved[1])


def test_failing_disk_is_a_clear_error(tiny: Config, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot write a checkpoint to .*free space"):
        checkpoint.save(TrainingState.build(tiny), tiny, tmp_path / "absent")
