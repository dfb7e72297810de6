"""What is skipped, when a run goes back, and when it gives up."""

from __future__ import annotations

import json
import math

import pytest

from scfegan_ray.config import SentinelConfig
from scfegan_ray.errors import DivergenceError
from scfegan_ray.training.sentinel import Sentinel

CONFIG = SentinelConfig(explosion_factor=10.0, max_skipped=3, rate_fraction=0.5, max_rollbacks=2)


def settled(loss: float = 2.0, updates: int = 20) -> Sentinel:
    sentinel = Sentinel(CONFIG)
    for _ in range(updates):
        assert sentinel.accept("generator", loss, 1.0)
        sentinel.conclude(True)
    return sentinel


def skip(sentinel: Sentinel, times: int) -> str:
    reason = ""
    for _ in range(times):
        reason = sentinel.conclude(sentinel.accept("generator", math.nan, 1.0))
    return reason


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("updates", [0, 50])
def test_what_is_not_finite_is_refused_from_the_first_update_on(bad: float, updates: int) -> None:
    sentinel = settled(updates=updates)
    assert not sentinel.accept("generator", bad, 1.0)
    assert sentinel.conclude(False) == f"the generator's loss is {bad}"
    assert not sentinel.accept("generator", 2.0, bad)
    assert sentinel.conclude(False) == f"the norm of the generator's gradient is {bad}"
    assert sentinel.accept("generator", 2.0, 1e30), "a large gradient alone is none of its business"


def test_a_loss_explodes_only_against_what_is_usual() -> None:
    assert settled(updates=19).accept("generator", 1e9, 1.0), "after 19 updates nothing is usual yet"
    sentinel = settled()
    assert sentinel.accept("generator", 19.9, 1.0)
    sentinel = settled()
    assert not sentinel.accept("generator", 20.1, 1.0)
    assert sentinel.conclude(False) == "the generator's loss is 20.1, where 2 is usual"
    assert not settled().accept("generator", -20.1, 1.0), "either way"
    assert sentinel.accept("discriminator", 20.1, 1.0), "the other network has a usual size of its own"


def test_small_losses_may_grow_to_the_floor() -> None:
    sentinel = settled(loss=1e-3)
    assert sentinel.accept("generator", 9.9, 1.0)
    assert not settled(loss=1e-3).accept("generator", 10.1, 1.0)


def test_the_usual_size_follows_slowly_and_forgets_signs() -> None:
    sentinel = Sentinel(CONFIG)
    for loss in (1.0, -2.0, 3.0):
        sentinel.accept("generator", loss, 1.0)
    assert sentinel.state()["usual"]["generator"] == pytest.approx(2.0), "at first the mean"
    sentinel = settled(loss=2.0, updates=200)
    sentinel.accept("generator", 12.0, 1.0)
    assert sentinel.state()["usual"]["generator"] == pytest.approx(0.99 * 2.0 + 0.01 * 12.0)


def test_refused_losses_do_not_become_usual() -> None:
    sentinel = settled()
    before = json.dumps(sentinel.state())
    for _ in range(100):
        assert not sentinel.accept("generator", 1e6, 1.0)
    assert json.dumps(sentinel.state()) == before


def test_skipped_batches_are_counted_and_too_many_in_a_row_lead_back() -> None:
    sentinel = settled()
    assert sentinel.last_was_accepted
    assert skip(sentinel, 2) == "the generator's loss is nan"
    assert not sentinel.last_was_accepted and not sentinel.must_roll_back
    assert sentinel.conclude(sentinel.accept("generator", 2.0, 1.0)) == ""
    assert sentinel.last_was_accepted, "one good batch is enough"
    skip(sentinel, 2)
    assert not sentinel.must_roll_back
    skip(sentinel, 1)
    assert sentinel.must_roll_back
    assert sentinel.num_skipped == 5


def test_going_back_slows_down_and_draws_anew() -> None:
    sentinel = settled()
    for position in (400, 400):
        skip(sentinel, 3)
        sentinel.roll_back(position)
        assert sentinel.last_was_accepted and not sentinel.must_roll_back
    assert sentinel.rate_scale == 0.25
    assert sentinel.reseeded_at == (400, 400)
    assert sentinel.num_skipped == 6, "over the whole run"


def test_giving_up_says_what_was_tried() -> None:
    sentinel = settled()
    for position in (400, 1200):
        sentinel.roll_back(position)
    skip(sentinel, 3)
    with pytest.raises(DivergenceError) as caught:
        sentinel.roll_back(1600)
    text = str(caught.value)
    assert "the generator's loss is nan, after 2 returns to a checkpoint (at 400, 1200 images)" in text
    assert "learning rates scaled by 0.25" in text
    assert "lower --optimization.generator-learning-rate" in text
    assert (sentinel.reseeded_at, sentinel.rate_scale) == ((400, 1200), 0.25), "it stays as it was"


def test_no_return_may_be_allowed() -> None:
    sentinel = Sentinel(SentinelConfig(max_rollbacks=0))
    with pytest.raises(DivergenceError, match=r"after 0 returns to a checkpoint \(at - images\)"):
        sentinel.roll_back(0)


def test_memory_survives_json_and_judges_alike() -> None:
    sentinel = settled(updates=19)
    sentinel.accept("discriminator", 0.5, 1.0)
    sentinel.roll_back(80)
    skip(sentinel, 2)
    heir = Sentinel(CONFIG)
    heir.load(json.loads(json.dumps(sentinel.state())))
    assert heir.state() == sentinel.state()
    assert (heir.rate_scale, heir.reseeded_at, heir.num_skipped) == (0.5, (80,), 2)
    told = [("generator", 1e3), ("generator", 1e6), ("discriminator", 1e6), ("generator", math.nan), ("generator", 2.0)]
    for name, loss in told * 3:
        mine, theirs = (judge.accept(name, loss, 1.0) for judge in (sentinel, heir))
        assert mine == theirs, (name, loss)
        assert sentinel.conclude(mine) == heir.conclude(theirs)
        assert sentinel.must_roll_back == heir.must_roll_back
    assert heir.state() == sentinel.state()


def test_what_was_loaded_is_not_shared() -> None:
    sentinel, heir = settled(), Sentinel(CONFIG)
    heir.load(sentinel.state())
    before = json.dumps(sentinel.state())
    heir.accept("generator", 9.0, 1.0)
    skip(heir, 1)
    assert json.dumps(sentinel.state()) == before
