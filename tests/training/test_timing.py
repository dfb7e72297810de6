"""Where a rank's time goes, and how far ranks are apart."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from scfegan_ray.training import timing
from scfegan_ray.training.timing import OwnWork, TimeSpent, skew


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stand for the time, which stands still."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def test_time_is_told_by_purpose_and_begins_anew(clock: SimpleNamespace) -> None:
    spent = TimeSpent()
    for what, seconds in (("data", 1.0), ("step", 2.0), ("data", 0.5)):
        with spent.on(what):
            clock.now += seconds
    clock.now += 0.5
    spent.num_images = 8
    seconds = {"seconds/data": 1.5, "seconds/step": 2.0, "seconds/checkpoint": 0.0, "seconds/evaluation": 0.0}
    assert spent.take() == {"images_per_second": 2.0} | seconds
    assert set(spent.take().values()) == {0.0}


def test_own_work_ends_with_the_last_gradient_of_the_last_pass(clock: SimpleNamespace) -> None:
    class Slow(torch.autograd.Function):
        """Takes a second to hand a gradient on."""

        @staticmethod
        def forward(ctx: object, value: torch.Tensor) -> torch.Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            clock.now += 1.0
            return gradient

    first, last = nn.Linear(2, 2), nn.Linear(2, 2)
    frozen = nn.Linear(2, 2).requires_grad_(False)
    own = OwnWork(torch.device("cpu"))
    for _ in range(2):  # nothing is left of the time before
        with own.timed([*first.parameters(), *last.parameters(), *frozen.parameters()]):
            for _ in range(2):
                clock.now += 3.0
                last(Slow.apply(first(torch.ones(1, 2)))).sum().backward()  # type: ignore[no-untyped-call]
            clock.now += 100.0  # for the others
        assert own.seconds() == 8.0
    last(Slow.apply(first(torch.ones(1, 2)))).sum().backward()  # type: ignore[no-untyped-call]
    assert own.seconds() == 8.0, "what is not timed does not count"


def test_skew_is_what_the_slowest_takes_more_than_the_mean() -> None:
    assert skew([1.0, 2.0, 6.0]) == 3.0
    assert skew([2.0, 2.0]) == skew([5.0]) == skew([]) == 0.0
