"""How runs usually go, and what is said of one that goes another way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import DATASET, TINY

from scfegan_ray.config import Config
from scfegan_ray.data.dataset import DatasetInfo
from scfegan_ray.errors import ConfigError
from scfegan_ray.presets import PRESETS
from scfegan_ray.training import curves, launch
from scfegan_ray.training.curves import LOSS, QUALITY, ReferenceCurve


def three_runs() -> ReferenceCurve:
    histories = [
        {LOSS: [(0, 9.0), (10, 1.0 + run), (20, 0.5 + run)], QUALITY: [(0, 9.0), (20, 20.0)]} for run in range(3)
    ]
    histories[1][LOSS].insert(1, (5, 7.0))  # which the others have not
    histories[1][LOSS].insert(1, (10, 99.0))  # done again after a restart
    return ReferenceCurve.of(TINY, histories)


def test_the_usual_range_is_that_of_all_runs_and_as_much_again() -> None:
    curve = three_runs()
    assert curve.images[LOSS] == [0, 10, 20]
    assert curve.usual(LOSS, 10) == (-1.0, 5.0)
    assert curve.usual(LOSS, 15) == pytest.approx((-1.25, 4.75))
    assert curve.usual(LOSS, 21) is None
    assert curve.usual("val/objective_db", 10) is None


def test_remarks() -> None:
    curve = three_runs()
    assert curve.remark(LOSS, 10, 1.0) == "within the usual -1.000 to 5.000"
    assert curve.remark(LOSS, 10, 5.1) == "above the usual -1.000 to 5.000"
    assert curve.remark(QUALITY, 20, 19.9) == "below the usual 20.000 to 20.000"
    assert curve.remark(LOSS, 30, 1.0) == ""


def test_only_runs_of_the_same_settings_are_held_against_it() -> None:
    curve = three_runs()
    assert curve.agrees(replace(TINY, seed=9, run_name="another"))
    assert curve.agrees(TINY.changed({"train.num_workers": 1, "data.prepared": "/elsewhere", "storage.path": "/x"}))
    for changed in ({"train.images": 32}, {"train.batch_size": 8}, {"losses.hole": 5.0}, {"data.num_embedded": 13}):
        assert not curve.agrees(TINY.changed(changed))


def test_file_and_back() -> None:
    curve = three_runs()
    content = curve.to_json()
    assert ReferenceCurve.read(content) == curve
    for damaged in (b"", b"[]", b"{}", content.replace(b'"images"', b'"pictures"'), content.replace(b"seed", b"sead")):
        with pytest.raises(ConfigError, match="no reference curve"):
            ReferenceCurve.read(damaged)


def test_drawing_shows_both() -> None:
    drawing = three_runs().draw({LOSS: [(0, 9.0), (10, 1.5)], QUALITY: []}).decode()
    assert "<svg" in drawing
    assert three_runs().draw({LOSS: [(0, 9.0), (10, 4.5)]}).decode() != drawing


def test_quickstart_has_one_and_the_others_have_none_yet() -> None:
    quickstart = PRESETS["quickstart"].changed({"losses.features": "hed"})
    curve = curves.find(quickstart)
    assert curve is not None
    assert {name: np.shape(runs)[0] for name, runs in curve.values.items()} == dict.fromkeys(curves.NAMES, 5)
    low, high = curve.usual(LOSS, quickstart.train.images) or (0.0, 0.0)
    assert 0 < high - low < high
    assert curve.config.storage == Config().storage, "no place of the machine that made it"
    assert (curve.config.data.prepared, curve.config.run_name) == (None, None)
    for name in ("small_256", "paper_512"):
        assert curves.find(PRESETS[name]) is None


def test_a_file_that_is_no_curve_is_refused_before_anything_is_prepared(
    tracked: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "curve.json"
    file.write_text("{}")
    monkeypatch.setattr(launch.prepare, "ensure_prepared", lambda *arguments, **more: pytest.fail("it was prepared"))
    with pytest.raises(ConfigError, match="no reference curve"):
        launch.train(replace(tracked, run_name="r").changed({"train.reference_curve": str(file)}))


def test_photographs_are_not_held_against_drawn_faces() -> None:
    quickstart = PRESETS["quickstart"].changed({"losses.features": "hed"})

    def learning_from(dataset: DatasetInfo) -> Config:
        return replace(quickstart, data=dataset.named_in(quickstart.data, "/prepared"))

    drawn = replace(DATASET, test_fraction=quickstart.data.test_fraction)
    assert curves.find(learning_from(drawn)) is not None
    assert curves.find(learning_from(replace(drawn, source="/photographs"))) is None
    assert curves.find(learning_from(replace(drawn, test_fraction=0.5))) is None
