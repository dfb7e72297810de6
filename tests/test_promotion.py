"""Who becomes champion, who does not, and that nobody else's choice is overwritten."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from running import ROOT

from scfegan_ray import card, cli, locks, promotion, registry, tracking
from scfegan_ray.config import Config
from scfegan_ray.errors import BusyError, ConfigError, ModelError, StorageError
from scfegan_ray.evaluation import run
from scfegan_ray.evaluation.measure import METRICS
from scfegan_ray.evaluation.references import REFERENCES
from scfegan_ray.training import launch

NAME = "scfegan-generator"
FIRST, SECOND = f"{NAME}-1", f"{NAME}-2"


def interval(low: float, high: float) -> dict[str, float]:
    return {"mean": (low + high) / 2, "low": low, "high": high, "count": 9}


def result_of(
    better_by: dict[str, tuple[float, float]] | None = None,
    models: tuple[str, ...] = (SECOND, FIRST),
    trained_on: int | None = 0,
) -> dict[str, Any]:
    """Give the result of an evaluation in which the first model is a little better on everything, unless told."""
    metrics = {
        name: interval(*((better_by or {}).get(name) or ((0.1, 0.2) if one.better >= 0 else (-0.2, -0.1))))
        for name, one in METRICS.items()
    }
    rivals = [*models[1:], *REFERENCES]
    return {
        "protocol": "faces_64_freeform_v1",
        "images": {"num_images": 9, "source": "faces", "fingerprint": "f"},
        "models": {name: {"trained_on": trained_on, "size_px": 64, "uri": ""} for name in models},
        "candidates": {name: {metric: interval(0.4, 0.6) for metric in METRICS} for name in (*models, *REFERENCES)},
        "differences": [{"first": models[0], "second": rival, "metrics": metrics} for rival in rivals],
        "tracking": {"run_id": "evaluated"},
    }


def test_better_on_everything_is_promoted() -> None:
    assert promotion.verdict(result_of(), SECOND, FIRST) == []
    assert promotion.verdict(result_of(models=(FIRST,)), FIRST, None) == []


@pytest.mark.parametrize("name", promotion.MUST_WIN)
def test_a_win_within_the_interval_is_none(name: str) -> None:
    (reason,) = promotion.verdict(result_of({name: (-0.1, 0.3)}), SECOND, FIRST)
    assert reason == f"{name} does not beat {FIRST}'s: +0.1 (-0.1 to +0.3)"


@pytest.mark.parametrize("name", promotion.GUARDS)
def test_a_guard_may_stay_as_it_is_and_must_not_get_worse(name: str) -> None:
    assert promotion.verdict(result_of({name: (-0.1, 0.1)}), SECOND, FIRST) == []
    worse = (-0.3, -0.1) if METRICS[name].better > 0 else (0.1, 0.3)
    (reason,) = promotion.verdict(result_of({name: worse}), SECOND, FIRST)
    assert reason.startswith(f"{name} is worse than {FIRST}'s: ")


def test_what_no_guard_looks_at_may_get_worse() -> None:
    assert promotion.verdict(result_of({"sensitivity": (-9.0, -8.0), "psnr": (-9.0, -8.0)}), SECOND, FIRST) == []


def test_images_that_the_candidate_knows_prove_nothing() -> None:
    (reason,) = promotion.verdict(result_of(trained_on=3), SECOND, FIRST)
    assert reason == f"{SECOND} was trained on 3 of these images; give images that it has not seen, as --data.source"


def test_first_champion_must_beat_what_needs_no_network() -> None:
    lines = promotion.verdict(result_of({"sketch_f1": (-0.1, 0.1)}, models=(FIRST,)), FIRST, None)
    assert len(lines) == len(REFERENCES) - 1
    assert all(re.match(r"sketch_f1 does not beat \w+'s", reason) for reason in lines)
    # Paint that is put where it was painted is most of the photograph already.
    psnr = promotion.verdict(result_of({"hole_psnr": (-0.1, 0.1)}, models=(FIRST,)), FIRST, None)
    assert {reason.split()[-5].removesuffix("'s:") for reason in psnr} == {"telea", "navier_stokes", "mean_color"}
    for name in promotion.FIRST_GUARDS:
        worse = (-0.3, -0.1) if METRICS[name].better > 0 else (0.1, 0.3)
        assert promotion.verdict(result_of({name: worse}, models=(FIRST,)), FIRST, None)


def test_likeness_that_was_not_measured_is_no_guard() -> None:
    result = result_of()
    del result["differences"][0]["metrics"]["identity"]
    assert promotion.verdict(result, SECOND, FIRST) == []


class Evaluations:
    """Stands for evaluations: says what they found, and what else happens meanwhile."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.found = result_of()
        self.models: list[list[str]] = []
        self.meanwhile: Callable[[], None] = lambda: None

    def evaluate(self, config: Config, models: list[str], *_: Any, **__: Any) -> run.EvaluationResult:
        self.models.append(models)
        self.meanwhile()
        path = self.place / f"result-{len(self.models)}.json"
        path.write_text(json.dumps(self.found))
        return run.EvaluationResult(
            protocol=self.found["protocol"], metrics={}, report="report", result=str(path), num_images=9,
            images_per_second=1.0,
        )  # fmt: skip


@pytest.fixture
def evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluations:
    found = Evaluations(tmp_path)
    monkeypatch.setattr(run, "evaluate", found.evaluate)
    return found


@pytest.fixture
def versions(tracked: Config) -> list[str]:
    """Register three versions without files; return their URIs."""
    client = MlflowClient(tracking.tracking_uri(tracked))
    client.create_registered_model(NAME)
    return [f"models:/{NAME}/{client.create_model_version(NAME, 'file:///nowhere').version}" for _ in range(3)]


def champion(config: Config) -> str | None:
    return registry.version_of_alias(config, NAME, "champion")


def test_promoted_refused_and_rolled_back(tracked: Config, versions: list[str], evaluations: Evaluations) -> None:
    first, second, third = versions
    evaluations.found = result_of(models=(FIRST,))
    found = promotion.promote(tracked, first)
    assert (found.promoted, found.model_uri, found.alias, found.report) == (True, first, "champion", "report")
    assert "better than the references" in found.reason
    assert champion(tracked) == first

    evaluations.found = result_of()
    assert promotion.promote(tracked, second).promoted
    assert champion(tracked) == second
    tags = registry.tags_of(tracked, second)
    assert tags["replaced"] == first
    assert tags["promoted_by"] == "faces_64_freeform_v1, images f"
    assert tags["evaluation_run"] == "evaluated"
    description = MlflowClient(tracking.tracking_uri(tracked)).get_model_version(NAME, "2").description
    for text in (
        f"# {SECOND}",
        "## Uses",
        "## Bias, risks and limits",
        "| hole_psnr (dB) | 0.5 (0.4 to 0.6) |",
        "evaluated",
        "of these\nit was trained on none.",
    ):
        assert text in description

    evaluations.found = result_of({"seam": (0.1, 0.2)}, models=(f"{NAME}-3", SECOND))
    refused = promotion.promote(tracked, third)
    assert (refused.promoted, refused.report) == (False, "report")
    assert refused.reason.startswith(f"seam is worse than {SECOND}'s: +0.15 (+0.1 to +0.2)")
    assert champion(tracked) == second
    assert evaluations.models == [[first], [second, first], [third, second]]

    back = promotion.roll_back(tracked)
    assert (back.model_uri, back.promoted, back.reason) == (first, True, f"rolled back from {second}")
    assert champion(tracked) == first
    with pytest.raises(ConfigError, match=f"{first} replaced no other champion"):
        promotion.roll_back(tracked)


def test_champion_itself_is_not_measured(tracked: Config, versions: list[str], evaluations: Evaluations) -> None:
    registry.set_alias(tracked, versions[1], "champion")
    found = promotion.promote(tracked, f"models:/{NAME}@champion")
    assert (found.promoted, found.reason) == (False, f"{versions[1]} is the champion already")
    assert evaluations.models == []


def test_another_alias_is_another_contest(tracked: Config, versions: list[str], evaluations: Evaluations) -> None:
    registry.set_alias(tracked, versions[1], "champion")
    evaluations.found = result_of(models=(FIRST,))
    assert promotion.promote(tracked, versions[0], alias="staging").promoted
    assert champion(tracked) == versions[1]


def test_two_promotions_at_once_cannot_both_win(tracked: Config, versions: list[str], evaluations: Evaluations) -> None:
    registry.set_alias(tracked, versions[0], "champion")
    evaluations.meanwhile = lambda: registry.set_alias(tracked, versions[2], "champion")
    with pytest.raises(BusyError, match=r"is models:/scfegan-generator/3 now, no longer models:/scfegan-generator/1"):
        promotion.promote(tracked, versions[1])
    assert champion(tracked) == versions[2]
    assert "replaced" not in registry.tags_of(tracked, versions[1])

    evaluations.meanwhile = lambda: None
    evaluations.found = result_of(models=(SECOND, f"{NAME}-3"))
    with (
        locks.held(f"{tracked.storage.path}/promotions/{NAME}", "the lock"),
        pytest.raises(BusyError, match="the champion of scfegan-generator is in use by"),
    ):
        promotion.promote(tracked, versions[1])
    assert champion(tracked) == versions[2]


@pytest.mark.parametrize("fails", ["tag_version", "describe_version", "set_alias"])
def test_server_that_goes_away_leaves_the_old_champion(
    tracked: Config, versions: list[str], evaluations: Evaluations, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def away(*_: Any) -> None:
        raise StorageError("the server is away")

    registry.set_alias(tracked, versions[0], "champion")
    with monkeypatch.context() as patch:
        patch.setattr(registry, fails, away)
        with pytest.raises(StorageError, match="the server is away"):
            promotion.promote(tracked, versions[1])
    assert champion(tracked) == versions[0]
    assert promotion.promote(tracked, versions[1]).promoted


def test_card_says_who_made_the_weights(tracked: Config, versions: list[str]) -> None:
    registry.tag_version(tracked, versions[0], {"kind": "released", "data_license": "CC BY-NC 4.0"})
    released, trained = (card.write(tracked, uri, result_of()) for uri in versions[:2])
    assert "published by its authors, imported by scfegan_ray" in released and "CC BY-NC 4.0" in released
    assert "ICCV 2019), trained by scfegan_ray" in trained


def test_what_cannot_be_promoted(tracked: Config, versions: list[str], evaluations: Evaluations) -> None:
    with pytest.raises(ConfigError, match="'runs/mine' is no version of a registry; give models:/NAME/VERSION"):
        promotion.promote(tracked, "runs/mine")
    with pytest.raises(ModelError, match="no model models:/scfegan-generator/9"):
        promotion.promote(tracked, f"models:/{NAME}/9")
    with pytest.raises(ConfigError, match="scfegan-generator has no champion that could be rolled back"):
        promotion.roll_back(tracked)
    assert evaluations.models == []


def test_training_promotes_on_what_it_held_back(tracked: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "jobs"))
    job = importlib.import_module("train")
    trained = launch.TrainingResult(
        run_name="r", run_id="1", model_uri=f"models:/{NAME}/1", checkpoint="c", images_seen=1, weights_sha256="w",
        first_metrics={}, last_metrics={}, images_per_second=1.0, dataset="/prepared",
    )  # fmt: skip
    asked: list[tuple[str | None, str]] = []

    def promote(config: Config, model: str, **_: Any) -> promotion.Promotion:
        asked.append((config.data.prepared, model))
        return promotion.Promotion(model_uri=model, alias="champion", promoted=False, reason="no")

    monkeypatch.setattr(launch, "train", lambda *_, **__: trained)
    monkeypatch.setattr(promotion, "promote", promote)
    arguments = cli.parse("", job.Arguments, ["--promote", "--data.source", "/photographs"])
    assert job.job(arguments)["model_uri"] == trained.model_uri
    assert asked == [("/prepared", f"models:/{NAME}/1")], "not on all photographs of --data.source"
