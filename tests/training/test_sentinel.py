"""What is skipped, when a run goes back, and when it gives up."""

from __future__ import annotations

import json
import math

import pytest
import torch

from scfegan_ray.config import SentinelConfig
from scfegan_ray.errors import DivergenceError
from scfegan_ray.training.sentinel import Sentinel, Verdict

CONFIG = SentinelConfig(explosion_factor=10.0, max_skipped=3, rate_fraction=0.5, max_rollbacks=2)


def batch(
    sentinel: Sentinel, *, discriminator: float = 1.0, generator: float = 2.0, norm: float = 1.0
) -> tuple[list[bool], Verdict]:
    """Tell of a batch's losses, as `train_step` and the loop do; return which updates were made, and the verdict."""
    given = {"discriminator": discriminator, "generator": generator}
    refused = [sentinel.refuses(name, torch.tensor(loss), torch.tensor(norm)) for name, loss in given.items()]
    accepted, values = sentinel.conclude()
    made = [float(one) == 0.0 for one in refused]
    assert bool(accepted) == all(made)
    return made, sentinel.read(values.tolist())


def settled(loss: float = 2.0, updates: int = 20) -> Sentinel:
    sentinel = Sentinel(CONFIG)
    for _ in range(updates):
        assert batch(sentinel, generator=loss) == ([True, True], Verdict("", 0, False))
    return sentinel


def skip(sentinel: Sentinel, times: int) -> Verdict:
    for _ in range(times):
        _, verdict = batch(sentinel, generator=math.nan)
    return verdict


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("updates", [0, 50])
def test_what_is_not_finite_is_refused_from_the_first_update_on(bad: float, updates: int) -> None:
    sentinel = settled(updates=updates)
    made, verdict = batch(sentinel, generator=bad)
    assert (made, verdict.reason) == ([True, False], f"the generator's loss is {bad}")
    made, verdict = batch(sentinel, norm=bad)
    assert (made, verdict.reason) == ([False, False], f"the norm of the discriminator's gradient is {bad}")
    made, _ = batch(sentinel, norm=1e30)
    assert made == [True, True], "a large gradient alone is none of its business"


def test_without_the_discriminators_update_the_generators_is_not_made() -> None:
    sentinel = settled()
    made, verdict = batch(sentinel, discriminator=math.nan)
    assert (made, verdict.reason) == ([False, False], "the discriminator's loss is nan")
    assert sentinel.state()["num_accepted"] == {"discriminator": 20, "generator": 20}
    batch(sentinel, generator=math.nan)
    assert sentinel.state()["num_accepted"] == {"discriminator": 21, "generator": 20}, "that one is kept"


def test_a_loss_explodes_only_against_what_is_usual() -> None:
    assert batch(settled(updates=19), generator=1e9)[0] == [True, True], "after 19 updates nothing is usual yet"
    assert batch(settled(), generator=19.9)[0] == [True, True]
    made, verdict = batch(settled(), generator=20.1)
    assert (made, verdict.reason) == ([True, False], "the generator's loss is 20.1, where 2 is usual")
    assert batch(settled(), generator=-20.1)[0] == [True, False], "either way"
    assert batch(settled(), discriminator=20.1)[0] == [False, False], "each network has a usual size of its own"


def test_small_losses_may_grow_to_the_floor() -> None:
    assert batch(settled(loss=1e-3), generator=9.9)[0] == [True, True]
    assert batch(settled(loss=1e-3), generator=10.1)[0] == [True, False]


def test_the_usual_size_follows_slowly_and_forgets_signs() -> None:
    sentinel = Sentinel(CONFIG)
    for loss in (1.0, -2.0, 3.0):
        batch(sentinel, generator=loss)
    assert sentinel.state()["usual"]["generator"] == pytest.approx(2.0), "at first the mean"
    sentinel = settled(loss=2.0, updates=200)
    batch(sentinel, generator=12.0)
    assert sentinel.state()["usual"]["generator"] == pytest.approx(0.99 * 2.0 + 0.01 * 12.0)


def test_refused_losses_do_not_become_usual() -> None:
    sentinel = settled()
    before = sentinel.state()["usual"]
    for _ in range(100):
        assert batch(sentinel, discriminator=1e6, generator=1e6)[0] == [False, False]
    assert sentinel.state()["usual"] == before


def test_skipped_batches_are_counted_and_too_many_in_a_row_lead_back() -> None:
    sentinel = settled()
    assert skip(sentinel, 2) == Verdict("the generator's loss is nan", 2, False)
    assert batch(sentinel)[1] == Verdict("", 2, False)
    assert skip(sentinel, 2) == Verdict("the generator's loss is nan", 4, False), "one good batch is enough"
    assert skip(sentinel, 1) == Verdict("the generator's loss is nan", 5, True)
    assert batch(sentinel)[1] == Verdict("", 5, False)


def test_verdicts_may_be_read_late() -> None:
    sentinel, kept = settled(), []
    for loss in (math.nan, 2.0, math.nan, math.nan, math.nan, 2.0):
        for name, value in (("discriminator", 1.0), ("generator", loss)):
            sentinel.refuses(name, torch.tensor(value), torch.tensor(1.0))
        kept.append(sentinel.conclude()[1])
    found = [sentinel.read(values.tolist()) for values in kept]
    assert [one.num_skipped for one in found] == [1, 1, 2, 3, 4, 4]
    assert [one.must_roll_back for one in found] == [False, False, False, False, True, False]
    assert [bool(one.reason) for one in found] == [True, False, True, True, True, False]


def test_going_back_slows_down_and_draws_anew() -> None:
    sentinel = settled()
    for position in (400, 400):
        skip(sentinel, 3)
        sentinel.roll_back(position)
        assert sentinel.state()["skipped_in_a_row"] == 0
    assert sentinel.rate_scale == 0.25
    assert sentinel.reseeded_at == (400, 400)
    assert sentinel.state()["num_skipped"] == 6, "over the whole run"


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


def test_memory_survives_json_and_decides_alike() -> None:
    sentinel = settled(updates=19)
    sentinel.roll_back(80)
    skip(sentinel, 2)
    heir = Sentinel(CONFIG)
    heir.load(json.loads(json.dumps(sentinel.state())))
    assert heir.state() == sentinel.state()
    assert (heir.rate_scale, heir.reseeded_at, heir.state()["num_skipped"]) == (0.5, (80,), 2)
    told: list[dict[str, float]] = [
        {"generator": 1e3}, {"generator": 1e6}, {"discriminator": 1e6}, {"generator": math.nan}, {},
    ]  # fmt: skip
    for values in told * 3:
        assert batch(sentinel, **values) == batch(heir, **values), values
    assert heir.state() == sentinel.state()


def test_what_was_loaded_is_not_shared() -> None:
    sentinel, heir = settled(), Sentinel(CONFIG)
    heir.load(sentinel.state())
    before = json.dumps(sentinel.state())
    batch(heir, generator=9.0)
    skip(heir, 1)
    assert json.dumps(sentinel.state()) == before


def test_a_run_that_saw_no_update_is_loaded() -> None:
    sentinel = Sentinel(CONFIG)
    sentinel.load(sentinel.state() | {"usual": {}, "num_accepted": {}})
    assert sentinel.state() == Sentinel(CONFIG).state()
