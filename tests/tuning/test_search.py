"""What a search refuses, and how many trials fit, without Ray."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from tiny import TINY

from scfegan_ray import grids
from scfegan_ray.config import Config, TuneConfig
from scfegan_ray.errors import ConfigError
from scfegan_ray.presets import PRESETS
from scfegan_ray.training import launch
from scfegan_ray.tuning import search
from scfegan_ray.tuning.search import SEARCHED


def test_optuna_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs Optuna: pip install 'scfegan-ray\[optuna\]'"):
        search.search(replace(TINY, run_name="s", tune=TuneConfig(sampler="optuna")))


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ({"a b": {}}, "the variant 'a b' has no usable name"),
        ({"../up": {}}, "has no usable name"),
        ({"wide": {"model.width": 3}}, "the variant wide: unknown setting model.width"),
        ({"wide": {"base_channels": 3}}, "the variant wide: unknown setting base_channels"),
        ({"bad": {"losses.hole": -1.0}}, "the variant bad: losses.hole is -1.0"),
        ({"other": {"data.size_px": 64}}, "the variant other changes data.size_px, which is the same for all"),
        ({"other": {"storage.path": "x"}}, "the variant other changes storage.path"),
    ],
)
def test_variants_are_checked_before_anything_begins(variants: dict[str, dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        search.search(replace(TINY, run_name="s"), variants=variants)


@pytest.mark.parametrize(
    ("cpus", "gpus", "settings", "expected"),
    [
        (2, 0, {"train.num_workers": 1, "train.cpus_per_worker": 1.5}, 1),
        (2, 0, {"train.num_workers": 1, "train.cpus_per_worker": 0.5}, 3),
        (2, 0, {"train.num_workers": 1, "tune.max_concurrent_trials": 2}, 2),
        (8 * 96, 64, {"train.use_gpu": True, "train.num_workers": 8, "train.cpus_per_worker": 8.0}, 8),
        (64, 64, {"train.use_gpu": True, "train.num_workers": 8, "train.cpus_per_worker": 4.0}, 1),
    ],
)  # fmt: skip
def test_trials_at_once_fit_the_cluster(
    monkeypatch: pytest.MonkeyPatch, cpus: int, gpus: int, settings: dict[str, Any], expected: int
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": float(cpus), "GPU": float(gpus)})
    monkeypatch.setattr(launch, "check_resources", lambda config: None)
    assert search._trials_at_once(TINY.changed({"train.batch_size": 64} | settings)) == expected


def test_every_searched_weight_is_a_setting_and_what_is_off_stays_off() -> None:
    assert set(search._weights(Config())) == set(SEARCHED) - {"losses.border"}
    assert set(search._weights(Config().changed({"losses.border": 6.0}))) == set(SEARCHED)


@pytest.mark.parametrize("name", grids.GRIDS)
@pytest.mark.parametrize("preset", PRESETS)
def test_grids_change_settings_of_all_presets(name: str, preset: str) -> None:
    variants = grids.find(name)
    changed = [PRESETS[preset].changed(settings) for settings in variants.values()]
    assert len(variants) > 1
    assert len({json.dumps(one.to_dict()) for one in changed}) >= len(variants) - 1, "one may be the preset itself"
    for variant, settings in variants.items():
        search._check_variant(PRESETS[preset], variant, settings)


def test_a_grid_is_a_name_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "grid.json"
    file.write_text('{"wide": {"model.base_channels": 96}}')
    assert grids.find(str(file)) == {"wide": {"model.base_channels": 96}}
    for content in ("", "[]", "{}", '{"wide": 3}'):
        file.write_text(content)
        with pytest.raises(ConfigError, match=r"--grid .*grid\.json"):
            grids.find(str(file))
    with pytest.raises(
        ConfigError, match="is none of ablations, adversarial, strokes, border, seeds, and no JSON file"
    ):
        grids.find(str(tmp_path / "none.json"))
