"""Order and randomness of training: pure functions of seed and position, whatever the number of workers."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prepared_set import NUM, SIZE, write_dataset

from scfegan_ray.config import MaskConfig, StrokeConfig
from scfegan_ray.data import examples
from scfegan_ray.data.dataset import is_test_key
from scfegan_ray.data.feed import Feed
from scfegan_ray.data.order import Order
from scfegan_ray.data.rows import PreparedDataset

MASKS = MaskConfig(hair_probability=0.5, strokes=StrokeConfig(wobble=0.05, color_shift=9.0))


@pytest.fixture
def dataset(tmp_path: Path) -> PreparedDataset:
    return PreparedDataset.open(write_dataset(tmp_path / "set"))


def training(dataset: PreparedDataset, window_images: int = 0) -> examples.TrainingExamples:
    return examples.TrainingExamples(dataset, MASKS, 3, window_images)


def batches(dataset: PreparedDataset, count: int, **overrides: Any) -> list[examples.Example]:
    settings = {"seed": 3, "start": 0, "batch_size": 8, "rank": 0, "num_workers": 1, "reseeded_at": ()} | overrides
    start, reseeded_at = settings.pop("start"), settings.pop("reseeded_at")
    made = examples.TrainingExamples(dataset, MASKS, settings.pop("seed"))
    feed = Feed(made, num_processes=0, device=torch.device("cpu"), **settings)
    found = itertools.islice(feed.batches(start, reseeded_at), count)
    return [{name: maps.numpy() for name, maps in batch.items()} for batch in found]


def same(a: examples.Example, b: examples.Example) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_rows_are_in_key_order_whatever_the_shards(dataset: PreparedDataset) -> None:
    assert [dataset.key(i) for i in range(len(dataset))] == [f"face-{i:02d}" for i in range(NUM)]
    row = dataset.row(7)
    assert (row["key"], int(row["image"][0, 0, 0])) == ("face-07", 7)
    assert set(np.unique(row["sketch"])) == {0, 1}
    assert set(np.unique(row["hair"])) == {0, 1}
    assert dataset.row(8)["hair"] is None


def test_split_is_a_function_of_the_key(dataset: PreparedDataset) -> None:
    assert sorted([*dataset.train_rows, *dataset.test_rows]) == list(range(NUM))
    for at in dataset.test_rows:
        assert is_test_key(dataset.key(at), 0.25)
    share = np.mean([is_test_key(f"k{i}", 0.25) for i in range(4000)])
    assert share == pytest.approx(0.25, abs=0.03)
    # A larger share keeps what was already held back.
    assert all(is_test_key(f"k{i}", 0.5) for i in range(500) if is_test_key(f"k{i}", 0.25))


def test_every_image_once_per_epoch_in_another_order() -> None:
    epochs = [[Order(3, [15]).at(e * 15 + i)[1] for i in range(15)] for e in range(3)]
    assert all(sorted(order) == list(range(15)) for order in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert Order(3, [15]).at(15)[0] == 1
    assert [Order(4, [15]).at(i)[1] for i in range(15)] != epochs[0]


@pytest.mark.parametrize("num_workers", [2, 3, 4, 5, 7, 8])
def test_shares_of_any_number_of_workers_are_the_same_global_batch(dataset: PreparedDataset, num_workers: int) -> None:
    whole = batches(dataset, 3)
    shares = [batches(dataset, 3, rank=r, num_workers=num_workers) for r in range(num_workers)]
    for step in range(3):
        joined = {name: np.concatenate([share[step][name] for share in shares]) for name in whole[step]}
        assert same(whole[step], joined)
        sizes = {len(share[step]["interpolation"]) for share in shares}
        assert max(sizes) - min(sizes) == (8 % num_workers > 0)


def test_batches_are_the_examples_of_their_positions(dataset: PreparedDataset) -> None:
    for step, batch in enumerate(batches(dataset, 4)):
        expected = [training(dataset).at(8 * step + at) for at in range(8)]
        assert same(batch, examples.stack(expected))
        assert all(array.dtype == expected[0][name].dtype for name, array in batch.items())


def test_resuming_goes_on_where_it_stopped(dataset: PreparedDataset) -> None:
    whole = batches(dataset, 5)
    assert all(same(a, b) for a, b in zip(whole[2:], batches(dataset, 3, start=16), strict=True))


def test_masks_are_fresh_in_each_epoch_and_depend_on_the_key(dataset: PreparedDataset) -> None:
    n = len(dataset.train_rows)
    seen: dict[int, list[bytes]] = {}
    for position in range(3 * n):
        example = training(dataset).at(position)
        seen.setdefault(int(example["image"][0, 0, 0]), []).append(example["mask"].tobytes())
    assert sorted(seen) == sorted(int(r) for r in dataset.train_rows)
    drawn = [mask for masks in seen.values() for mask in masks]
    assert len(set(drawn)) == len(drawn) == 3 * n


def order(epoch: int, *reseeded_at: int, num_rows: int = 15) -> list[int]:
    return [Order(3, [num_rows]).at(epoch * num_rows + at, reseeded_at)[1] for at in range(num_rows)]


def test_reseeding_changes_what_is_left_of_the_epoch() -> None:
    plain = [order(epoch) for epoch in range(4)]
    # At position 20, 5 images into epoch 1.
    reseeded = [order(epoch, 20) for epoch in range(4)]
    assert reseeded[0] == plain[0]
    assert reseeded[1][:5] == plain[1][:5]
    assert reseeded[1][5:] != plain[1][5:]
    assert sorted(reseeded[1]) == list(range(15)), "each image still comes once"
    assert reseeded[2:] == plain[2:]


def test_each_return_to_a_position_gives_another_order() -> None:
    orders = [order(1), order(1, 20), order(1, 20, 20), order(1, 20, 20, 20)]
    assert len({tuple(one) for one in orders}) == 4
    assert all(one[:5] == orders[0][:5] and sorted(one) == list(range(15)) for one in orders)


def test_later_reseeding_keeps_what_lies_between() -> None:
    once, twice = order(1, 18), order(1, 18, 23)
    assert twice[:8] == once[:8]
    assert twice[8:] != once[8:]
    assert sorted(twice) == list(range(15))
    assert order(1, 15) != order(1), "also from an epoch's first image on"
    assert order(1, 30) == order(1) and order(1, 14) == order(1), "epochs of their own"


def test_reseeding_draws_other_holes_from_its_position_on(dataset: PreparedDataset) -> None:
    def masks(*reseeded_at: int) -> dict[int, bytes]:
        """Return by position, over an epoch and a half."""
        positions = range(n * 3 // 2)
        return {p: training(dataset).at(p, reseeded_at)["mask"].tobytes() for p in positions}

    n = len(dataset.train_rows)
    plain, once, twice = masks(), masks(4), masks(4, 4)
    for position in plain:
        drawn = {plain[position], once[position], twice[position]}
        assert len(drawn) == (1 if position < 4 else 3), position
    # Later epochs come in the same order, so that these are other holes in the same images.
    assert Order(3, [n]).at(n + 1, (4,)) == Order(3, [n]).at(n + 1)


def test_stream_from_a_reseeded_position(dataset: PreparedDataset) -> None:
    stream = batches(dataset, 2, start=8, reseeded_at=(8,))
    expected = [training(dataset).at(8 + at, (8,)) for at in range(16)]
    assert same(stream[0], examples.stack(expected[:8]))
    assert same(stream[1], examples.stack(expected[8:]))
    assert not same(stream[0], batches(dataset, 1, start=8)[0])


def test_example_obeys_its_contract(dataset: PreparedDataset) -> None:
    for position in range(12):
        example = training(dataset).at(position)
        mask = example["mask"]
        assert {name: (a.shape, a.dtype.name) for name, a in example.items()} == {
            "image": ((SIZE, SIZE, 3), "uint8"),
            "mask": ((SIZE, SIZE, 1), "uint8"),
            "sketch": ((SIZE, SIZE, 1), "uint8"),
            "color": ((SIZE, SIZE, 3), "uint8"),
            "noise": ((SIZE, SIZE, 1), "uint8"),
            "interpolation": ((), "float32"),
        }
        assert set(np.unique(mask)) == {0, 1}
        for name in ("sketch", "color", "noise"):
            assert not (example[name] * (1 - mask)).any(), f"{name} outside the hole"
        assert 0.0 <= example["interpolation"] < 1.0


def test_evaluation_ignores_the_seed_and_uses_held_back_images(dataset: PreparedDataset) -> None:
    first = list(examples.evaluation_batches(dataset, MASKS, 4, 2))
    again = list(examples.evaluation_batches(dataset, MASKS, 4, 2))
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    shown = {int(v) for batch in first for v in batch["image"][:, 0, 0, 0]}
    assert shown <= {int(r) for r in dataset.test_rows}


def test_training_images_are_never_held_back(dataset: PreparedDataset) -> None:
    assert set(dataset.held_back(99)) == set(dataset.test_rows.tolist())
    dataset.test_rows = np.array([], np.int64)
    assert dataset.held_back(3) == []
    assert list(examples.evaluation_batches(dataset, MASKS, 3, 2)) == []
