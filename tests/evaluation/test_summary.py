"""Means, intervals and differences of numbers that are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from scfegan_ray.evaluation.measure import METRICS, SCHEMA
from scfegan_ray.evaluation.summary import Table

NUM = 200


def rows(**candidates: np.ndarray) -> list[dict[str, Any]]:
    """Give rows whose hole_psnr is given and whose holes grow from 0 to 60 %."""
    return [
        {
            "candidate": name,
            "key": f"face-{at:03d}",
            "hole_area": 0.6 * at / len(values),
            "embedding": None,
            **dict.fromkeys(METRICS, float("nan")),
            "hole_psnr": float(value),
        }
        for name, values in candidates.items()
        for at, value in enumerate(values)
    ]


def table(found: list[dict[str, Any]]) -> Table:
    return Table(pa.Table.from_pylist(found, schema=SCHEMA))


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    return np.random.default_rng(0).normal(20.0, 2.0, NUM)


def test_interval_is_as_wide_as_the_standard_error_says(values: np.ndarray) -> None:
    found = table(rows(model=values)).means()["model"]
    assert set(found) == {"hole_psnr"}, "what nobody has is left out"
    interval = found["hole_psnr"]
    assert interval.mean == pytest.approx(values.mean(), rel=1e-12)
    assert interval.count == NUM
    half = 1.96 * values.std() / NUM**0.5
    assert interval.high - interval.mean == pytest.approx(half, rel=0.15)
    assert interval.mean - interval.low == pytest.approx(half, rel=0.15)


def test_differences_are_of_each_image(values: np.ndarray) -> None:
    noise = np.random.default_rng(1).normal(0.0, 0.1, NUM)
    both = table(rows(new=values + 0.1 + noise, old=values))
    difference = both.differences("new", "old")["hole_psnr"]
    assert difference.mean == pytest.approx(0.1 + noise.mean(), abs=1e-9)
    # Far less than both means are uncertain by.
    assert 0.05 < difference.low < difference.high < 0.15
    assert both.means()["new"]["hole_psnr"].high - both.means()["new"]["hole_psnr"].low > 0.4
    backwards = both.differences("old", "new")["hole_psnr"]
    assert (backwards.low, backwards.high) == pytest.approx((-difference.high, -difference.low), abs=0.01)


def test_images_without_a_value_do_not_count(values: np.ndarray) -> None:
    some = values.copy()
    some[::2] = np.nan
    found = table(rows(model=some)).means()["model"]["hole_psnr"]
    assert (found.mean, found.count) == (pytest.approx(values[1::2].mean()), NUM // 2)


def test_one_image_has_a_value_and_no_spread() -> None:
    found = table(rows(model=np.array([7.0]))).means()["model"]["hole_psnr"]
    assert (found.mean, found.low, found.high, found.count) == (7.0, 7.0, 7.0, 1)


def test_digits_do_not_depend_on_the_order_of_parts(values: np.ndarray) -> None:
    given = rows(model=values, old=values - 1)
    mixed = [given[at] for at in np.random.default_rng(2).permutation(len(given))]
    # Candidates are named in the order in which they come.
    first = next(at for at, row in enumerate(mixed) if row["candidate"] == "model")
    mixed.insert(0, mixed.pop(first))
    assert table(given).means() == table(mixed).means()


def test_bins_of_hole_areas(values: np.ndarray) -> None:
    bins = table(rows(model=values, old=values - 1)).by_area("hole_psnr")
    assert [(name, count) for name, count, _ in bins] == [
        ("0% to 10%", 34), ("10% to 20%", 33), ("20% to 30%", 33), ("30% to 40%", 34), ("40% to 50%", 33),
        ("50% and more", 33),
    ]  # fmt: skip
    _, count, means = bins[0]
    assert means == {"model": pytest.approx(values[:count].mean()), "old": pytest.approx(values[:count].mean() - 1)}


def test_worst_tenth_of_the_seam() -> None:
    found = rows(model=np.zeros(11))
    for at, row in enumerate(found):
        row["seam_step"] = float(at)
    assert table(found).others("model") == {"seam_step_p90": 9.0}
