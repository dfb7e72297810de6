"""The whole loop on a GPU: of one rank, of two that share it over gloo, and over NCCL where each has one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from prepared_set import write_dataset
from rank_processes import Ranks, Trained, assert_same_on_all, networks_of, running
from tiny import TINY

from scfegan_ray.config import Config, SentinelConfig
from scfegan_ray.models.features import vgg_random
from scfegan_ray.tracking import NullTracker
from scfegan_ray.training import loop
from scfegan_ray.training.store import CheckpointStore

pytestmark = pytest.mark.gpu

CONFIG = replace(
    TINY,
    train=replace(TINY.train, batch_size=5, images=30, checkpoint_every_images=1000, gradient_norms_every_images=0),
)
IMAGES = CONFIG.train.images


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    with running(tmp_path_factory.mktemp("ranks")) as processes:
        yield processes


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("prepared") / "set")


@pytest.fixture(scope="module")
def on_cpu(ranks: Ranks, dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train on one rank on a CPU; return its checkpoints."""
    place = tmp_path_factory.mktemp("cpu") / "run"
    ranks.train(1, CONFIG, dataset, str(place))
    return place


TrainOnGpu = Callable[..., list[Trained]]


@pytest.fixture(params=["one", "two, gloo", "two, NCCL"])
def train(request: pytest.FixtureRequest, ranks: Ranks, dataset: str, tmp_path: Path, gpu: torch.device) -> TrainOnGpu:
    """Return what trains on the GPU, with checkpoints in the test's folder."""
    number = 1 if request.param == "one" else 2
    backend = "nccl" if request.param == "two, NCCL" else "gloo"
    if backend == "nccl" and torch.cuda.device_count() < number:
        pytest.skip(f"NCCL wants a GPU for each rank, and torch sees {torch.cuda.device_count()}")

    def train(config: Config, **spoils: Any) -> list[Trained]:
        place = str(tmp_path / "run")
        return ranks.train(number, config, dataset, place, device=gpu.type, backend=backend, on=number - 1, **spoils)

    return train


def changed(**train: Any) -> Config:
    return replace(CONFIG, train=replace(CONFIG.train, **train))


def away(found: Path, wanted: Path) -> float:
    """Return how far a run's weights are from another's, as a share of the way that these went."""
    ours, theirs, began = networks_of(found), networks_of(wanted), networks_of(wanted, "checkpoint-0000000000")
    assert ours.keys() == theirs.keys() == began.keys()
    apart = sum(float((ours[name] - value).double().square().sum()) for name, value in theirs.items())
    way = sum(float((began[name] - value).double().square().sum()) for name, value in theirs.items())
    return float((apart / way) ** 0.5)


def test_weights_are_those_of_one_rank_on_a_cpu(
    train: TrainOnGpu, on_cpu: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    found = train(CONFIG)
    assert_same_on_all(found)
    assert (found[0].outcome.images_seen, found[0].outcome.failure) == (IMAGES, None)
    share = away(tmp_path / "run", on_cpu)
    record_property("away, as a share of the way", share)
    record_property("images/s", found[0].outcome.images_per_second)
    assert share < 0.05


def test_compiled_it_goes_the_same_way(
    train: TrainOnGpu, on_cpu: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    found = train(changed(compile=True))
    assert_same_on_all(found)
    assert (found[0].outcome.images_seen, found[0].outcome.failure) == (IMAGES, None)
    share = away(tmp_path / "run", on_cpu)
    record_property("away, as a share of the way", share)
    assert share < 0.05


def test_run_of_a_cpu_goes_on_on_the_gpu(
    train: TrainOnGpu,
    ranks: Ranks,
    dataset: str,
    on_cpu: Path,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    ranks.train(1, changed(images=15), dataset, str(tmp_path / "run"))
    found = train(CONFIG)
    assert "resuming at 15 images" in found[0].log
    assert_same_on_all(found)
    share = away(tmp_path / "run", on_cpu)
    record_property("away, as a share of the way", share)
    assert share < 0.05


def test_damaged_batch_is_skipped(train: TrainOnGpu, tmp_path: Path) -> None:
    found = train(CONFIG, damaged=(10,))
    assert_same_on_all(found)
    assert found[0].sentinel["num_skipped"] == 1
    for one in found:
        assert [line for line in one.log if line.startswith("skipped")] == [
            "skipped the batch at 10: the discriminator's loss is nan"
        ]
    assert all(value.isfinite().all() for value in networks_of(tmp_path / "run").values())


def test_too_many_damaged_batches_lead_back_to_a_checkpoint(train: TrainOnGpu, tmp_path: Path) -> None:
    config = replace(changed(checkpoint_every_images=10), sentinel=SentinelConfig(max_skipped=2))
    found = train(config, damaged=(15, 20), once=True)
    assert_same_on_all(found)
    assert (found[0].outcome.images_seen, found[0].outcome.failure) == (IMAGES, None)
    sentinel = found[0].sentinel
    assert (tuple(sentinel["reseeded_at"]), sentinel["rate_scale"], sentinel["num_skipped"]) == ((10,), 0.5, 2)
    assert all(value.isfinite().all() for value in networks_of(tmp_path / "run").values())


def test_told_to_stop_it_ends_soon_and_keeps_what_it_has(train: TrainOnGpu, tmp_path: Path) -> None:
    found = train(changed(images=4000), stops=15)
    seen = found[0].outcome.images_seen
    assert [(one.outcome.stopped, one.outcome.images_seen) for one in found] == [(True, seen)] * len(found)
    assert 15 <= seen < 60
    assert CheckpointStore(str(tmp_path / "run")).names()[-1] == f"checkpoint-{seen:010d}"


def set_sync_debug_mode(gpu: torch.device, mode: str) -> None:
    if gpu.type == "cuda":
        torch.cuda.set_sync_debug_mode(mode)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_nothing_waits_for_the_gpu_in_ordinary_updates(
    gpu: torch.device, dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """From the start of one step of the loop to that of a later one: feed, step, verdict, means, record."""
    if precision == "bfloat16" and gpu.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bfloat16")
    settling, watched = 5, 10
    step, modes = loop.train_step, []

    def watched_step(*arguments: Any, **options: Any) -> Any:
        modes.append("error" if settling <= len(modes) < settling + watched else "default")
        set_sync_debug_mode(gpu, modes[-1])
        return step(*arguments, **options)

    monkeypatch.setattr(loop, "train_step", watched_step)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)  # the loop sets it, for the whole process
    config = changed(images=5 * (settling + watched + 5), log_every_images=10, loader_processes=2, precision=precision)
    try:
        outcome = loop.train(
            config, dataset, CheckpointStore(str(tmp_path / "run")), vgg_random(), NullTracker(), device=gpu
        )
    finally:
        set_sync_debug_mode(gpu, "default")
    assert outcome.images_seen == config.train.images
    assert modes.count("error") == watched
