"""Training of several ranks, each a process, over gloo: what they share, agree on, and hear of each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from rank_processes import Ranks, assert_same_on_all, networks_of, running
from tiny import TINY

from scfegan_ray.config import Config, SentinelConfig
from scfegan_ray.errors import DivergenceError, StorageError
from scfegan_ray.evaluation import held_back
from scfegan_ray.training import ranks as ranks_of_training
from scfegan_ray.training.store import CheckpointStore
from scfegan_ray.training.timing import GAUGES

CONFIG = replace(TINY, train=replace(TINY.train, images=32, checkpoint_every_images=1000))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    with running(tmp_path_factory.mktemp("ranks")) as processes:
        yield processes


def changed(config: Config = CONFIG, **train: Any) -> Config:
    return replace(config, train=replace(config.train, **train))


def assert_near(found: Path, expected: Path) -> None:
    """Compare two runs whose sums were taken in another order, after a few updates.

    Adam makes a whole step, 4e-4 long, of a gradient that is nearly nothing.
    """
    ours, theirs = networks_of(found), networks_of(expected)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(
            ours[name], value, rtol=1e-3, atol=4e-4, msg=lambda text, name=name: f"{name} {text}"
        )


@pytest.fixture(scope="module")
def alone(ranks: Ranks, tiny_dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train on one rank; return its checkpoints."""
    place = tmp_path_factory.mktemp("alone") / "run"
    ranks.train(1, changed(batch_size=5, images=30), tiny_dataset, str(place))
    return place


@pytest.mark.parametrize(("number", "per_pass"), [(2, 0), (3, 0), (2, 1)])
def test_shares_and_passes_add_up_to_the_same(
    ranks: Ranks, tiny_dataset: str, tmp_path: Path, alone: Path, number: int, per_pass: int
) -> None:
    """Five images are 2 and 3, or 1, 2 and 2; one at a time they are passes whose gradients are sent once."""
    config = changed(batch_size=5, images=30, max_images_per_pass=per_pass)
    found = ranks.train(number, config, tiny_dataset, str(tmp_path / "shared"))
    assert_same_on_all(found)
    assert_near(tmp_path / "shared", alone)
    assert found[0].outcome.images_seen == 30 and found[0].outcome.failure is None


def test_gradients_may_travel_rounded(ranks: Ranks, tiny_dataset: str, tmp_path: Path, alone: Path) -> None:
    config = changed(batch_size=5, images=30, gradient_compression="bfloat16")
    found = ranks.train(2, config, tiny_dataset, str(tmp_path))
    assert_same_on_all(found)
    ours, theirs = networks_of(tmp_path), networks_of(alone)
    assert any(not torch.equal(ours[name], value) for name, value in theirs.items())
    for name, value in theirs.items():
        assert float((ours[name] - value).norm()) < 0.02 * float(value.norm()) + 1e-2, name


def test_run_goes_on_with_fewer_and_with_more(ranks: Ranks, tiny_dataset: str, tmp_path: Path) -> None:
    whole = str(tmp_path / "whole")
    ranks.train(2, CONFIG, tiny_dataset, whole)
    for number in (1, 3):
        place = str(tmp_path / str(number))
        ranks.train(2, changed(images=16), tiny_dataset, place)
        found = ranks.train(number, CONFIG, tiny_dataset, place)
        assert "resuming at 16 images" in found[0].log
        assert_same_on_all(found)
        assert_near(Path(place), Path(whole))


def test_every_rank_says_who_is_slow_and_the_record_by_how_much(
    ranks: Ranks, tiny_dataset: str, tmp_path: Path
) -> None:
    config = changed(log_every_images=8)
    found = ranks.train(2, config, tiny_dataset, str(tmp_path), on=1, slow=0.4, fed_late=0.2)
    last = [one.observed[-1] for one in found]
    assert all(set(one.observed[-1]) == set(GAUGES) for one in found)
    assert [one["images_seen"] for one in found[1].observed] == [4, 8, 16, 24, 32]
    assert last[1]["compute_seconds"] > last[0]["compute_seconds"] + 0.2
    assert last[1]["data_seconds"] > 0.2 > last[0]["data_seconds"]
    assert 0.5 < last[0]["step_seconds"] / last[1]["step_seconds"] < 2, "the one waits for the other"
    said = dict(found[0].records)[32]
    for name, seconds in (("compute", 0.4), ("data", 0.2)):
        skew = said[f"train/skew_seconds/{name}"]
        assert skew == last[0][f"skew_{name}_seconds"] == last[1][f"skew_{name}_seconds"]
        assert 0.25 * seconds < skew < seconds, "the mean is halfway"


@pytest.mark.parametrize("on", [0, 1])
def test_batch_that_is_bad_on_one_rank_is_skipped_by_all(
    ranks: Ranks, tiny_dataset: str, tmp_path: Path, on: int
) -> None:
    found = ranks.train(2, CONFIG, tiny_dataset, str(tmp_path), on=on, damaged=(8,))
    assert_same_on_all(found)
    assert found[0].sentinel["num_skipped"] == 1
    for one in found:
        assert [line for line in one.log if "skipped" in line] == [
            "skipped the batch at 8: the discriminator's loss is nan"
        ]
    assert all(value.isfinite().all() for value in networks_of(tmp_path).values())
    said = dict(found[0].records)
    assert said[12]["train/skipped_batches"] == 1
    assert "train/generator/total" not in said[12] and "train/generator/total" in said[16]


def test_all_ranks_go_back_together(ranks: Ranks, tiny_dataset: str, tmp_path: Path) -> None:
    config = replace(changed(checkpoint_every_images=8), sentinel=SentinelConfig(max_skipped=2))
    found = ranks.train(2, config, tiny_dataset, str(tmp_path), on=1, damaged=(12, 16))
    # After the return to 8 the same positions come again, and are damaged again; then the second return is to 8, too.
    assert_same_on_all(found)
    sentinel = found[0].sentinel
    assert set(sentinel["reseeded_at"]) == {8}
    assert sentinel["rate_scale"] == 0.5 ** len(sentinel["reseeded_at"])
    assert found[0].outcome.failure is not None
    kind, text = found[0].outcome.failure
    assert kind == "DivergenceError" and "the discriminator's loss is nan, after 3 returns" in text
    assert sentinel["num_skipped"] == 8, "every one is counted"


def test_a_request_to_one_rank_ends_all_after_the_same_update(ranks: Ranks, tiny_dataset: str, tmp_path: Path) -> None:
    found = ranks.train(2, changed(images=4000), tiny_dataset, str(tmp_path), on=0, stops=12)
    assert_same_on_all(found)
    assert all(one.outcome.stopped for one in found)
    assert found[0].outcome.images_seen < 40, "it ends soon"
    assert CheckpointStore(str(tmp_path)).names()[-1] == f"checkpoint-{found[0].outcome.images_seen:010d}"


@pytest.mark.parametrize("on", [0, 1])
def test_one_rank_that_raises_leaves_none_waiting(ranks: Ranks, tiny_dataset: str, tmp_path: Path, on: int) -> None:
    from rank_processes import Spoils, train

    found = ranks.run(2, train, CONFIG, tiny_dataset, str(tmp_path), Spoils(on=on, raises=8))
    assert isinstance(found[on], RuntimeError) and str(found[on]) == "out of memory"
    assert isinstance(found[1 - on], RuntimeError), "its partner is gone"
    assert CheckpointStore(str(tmp_path)).names() == ["checkpoint-0000000000"]


def test_what_differs_by_rounding_becomes_rank_0s(ranks: Ranks, tiny_dataset: str, tmp_path: Path) -> None:
    config = changed(images=16, checkpoint_every_images=8)
    found = ranks.train(2, config, tiny_dataset, str(tmp_path), on=1, moves=1e-5, moves_at=4)
    assert_same_on_all(found)
    [line] = [line for line in found[0].log if "not quite the same" in line]
    assert line.startswith("generator.encoder.0.weight and ")
    assert found[0].outcome.failure is None


def test_what_differs_by_more_ends_the_run_and_is_named(ranks: Ranks, tiny_dataset: str, tmp_path: Path) -> None:
    config = changed(images=16, checkpoint_every_images=8)
    found = ranks.train(2, config, tiny_dataset, str(tmp_path), on=1, moves=0.1, moves_at=4)
    for one in found:
        assert one.outcome.failure is not None
        kind, text = one.outcome.failure
        assert kind == "DivergenceError"
        assert text.startswith("generator.encoder.0.weight is not the same on all ranks: it differs from rank 0's by 1")
    assert CheckpointStore(str(tmp_path)).names() == ["checkpoint-0000000000"], "nothing of it is kept"


def test_held_back_images_are_shared_and_measured_alike(ranks: Ranks, tiny_dataset: str, tmp_path: Path) -> None:
    config = replace(changed(images=4), evaluation=replace(TINY.evaluation, num_images=3, batch_size=2))
    measured = [
        ranks.train(number, config, tiny_dataset, str(tmp_path / str(number)))[0].outcome.first_metrics
        for number in (1, 2, 3)
    ]
    assert measured[0].keys() == {*held_back.MEASURED, "objective_db"}
    for metrics in measured[1:]:
        assert metrics == pytest.approx(measured[0], rel=1e-5)


@pytest.mark.parametrize("on", [0, 1])
def test_rank_that_cannot_measure_holds_up_none(ranks: Ranks, tiny_dataset: str, tmp_path: Path, on: int) -> None:
    found = ranks.train(2, changed(images=8), tiny_dataset, str(tmp_path), on=on, measures=False)
    assert_same_on_all(found)
    for one in found:
        assert (one.outcome.images_seen, one.outcome.last_metrics, one.outcome.failure) == (8, {}, None)
    [*_, line] = [line for line in found[on].log if "could not be measured" in line]
    assert "division by zero" in line
    assert not any(name.startswith("val/") for _, values in found[0].records for name in values)


def compare(values: list[float]) -> str | list[float]:
    tensor = torch.tensor(values) if dist.get_rank() == 1 else torch.ones(len(values))
    try:
        ranks_of_training.make_same({"same": torch.ones(3), "other": tensor})
    except DivergenceError as error:
        return str(error)
    return tensor.tolist()


def test_only_what_differs_is_changed(ranks: Ranks) -> None:
    assert ranks.run(2, compare, [1.0, 1.0]) == [[1.0, 1.0]] * 2
    assert ranks.run(2, compare, [1.0, 1.0001]) == [[1.0, 1.0]] * 2
    for beyond in (1.01, float("nan"), float("inf")):
        for text in ranks.run(2, compare, [1.0, beyond]):
            assert text.startswith("other is not the same on all ranks")


def refuse(who: int | None) -> object:
    def work() -> int:
        if dist.get_rank() == who:
            raise StorageError(f"rank {who} cannot read")
        return dist.get_rank()

    try:
        return ranks_of_training.together(work)
    except StorageError as error:
        return str(error)


def test_what_one_rank_meets_all_ranks_hear(ranks: Ranks) -> None:
    assert ranks.run(2, refuse, None) == [0, 0]
    for who in (0, 1):
        assert ranks.run(2, refuse, who) == [f"rank {who} cannot read"] * 2
