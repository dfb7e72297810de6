"""Successive halving that goes on with what it knew."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from scfegan_ray.tuning.halving import RememberingASHA, first_scores


def begun(place: Path) -> RememberingASHA:
    scheduler = RememberingASHA(str(place), time_attr="images_seen", max_t=101, grace_period=10, reduction_factor=2)
    scheduler.set_search_properties("objective_db", "max")
    return scheduler


def report(scheduler: RememberingASHA, trial: Any, images_seen: int, objective: float) -> str:
    return scheduler.on_trial_result(None, trial, {"images_seen": images_seen, "objective_db": objective})


def test_a_weak_trial_is_told_from_those_before_the_interruption(tmp_path: Path) -> None:
    place = tmp_path / "halving.pkl"
    good, weak = SimpleNamespace(trial_id="good"), SimpleNamespace(trial_id="weak")
    before = begun(place)
    before.on_trial_add(None, good)
    assert report(before, good, 0, 1.0) == "CONTINUE"
    assert report(before, good, 10, 20.0) == "CONTINUE"

    fresh = begun(tmp_path / "other.pkl")
    fresh.on_trial_add(None, weak)
    assert report(fresh, weak, 10, 5.0) == "CONTINUE", "there is nothing to compare it with"

    after = begun(place)
    after.on_trial_add(None, weak)
    assert report(after, weak, 0, 0.0) == "CONTINUE"
    assert report(after, weak, 10, 5.0) == "STOP"
    assert first_scores(str(place)) == {"good": 20.0, "weak": 5.0}


def test_the_first_comparison_is_kept(tmp_path: Path) -> None:
    place = tmp_path / "halving.pkl"
    trial = SimpleNamespace(trial_id="one")
    scheduler = begun(place)
    scheduler.on_trial_add(None, trial)
    for images_seen in (0, 10, 20):
        report(scheduler, trial, images_seen, float(images_seen))
    assert first_scores(str(place)) == {"one": 10.0}
