"""The benchmark of one update and one edit measures what it names."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from updates import FEATURES, make_batch

from scfegan_ray.benchmarks import step
from scfegan_ray.benchmarks.calls import count_update
from scfegan_ray.config import Config
from scfegan_ray.training.state import TrainingState
from scfegan_ray.training.step import Pass, train_step


def test_benchmark_measures_all_it_names(tiny: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "_REPEATS", 1)
    config = replace(tiny, train=replace(tiny.train, batch_size=2, precision="bfloat16"))
    found = step.run(config)
    assert set(found["step_seconds"]) == set(found["inference_seconds"]) == {"plain", "float32", "bfloat16"}
    assert all(seconds > 0 for seconds in found["step_seconds"].values())
    assert found["step_ratio"] == found["step_seconds"]["bfloat16"] / found["step_seconds"]["plain"]
    assert max(found["part_differences"]["float32"].values()) < 1e-3
    assert max(found["part_differences"]["bfloat16"].values()) < 2e-2
    assert found["flops_per_step"] > 0
    assert 0 < found["flops_per_second"] < found["peak_flops_per_second"]
    assert found["peak_share"] == found["flops_per_second"] / found["peak_flops_per_second"]
    assert found["calls_per_update"] == count_update(config, torch.bfloat16).total, "of tensors without memory, too"
    assert found["synchronizations_per_update"] == 0
    assert (found["gradient_bytes"], found["sent_bytes"]) == step.sent_per_update(TrainingState.build(config), config)


def test_counted_gradients_are_what_ddp_hands_over(tiny: Config) -> None:
    state, seen = TrainingState.build(tiny), list[int]()

    def hand_back(bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        seen.append(bucket.buffer().nbytes)
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        generator, discriminator = (
            DistributedDataParallel(network, forward_sync_buffers=False)
            for network in (state.generator, state.discriminator)
        )
        for network in (generator, discriminator):
            network.register_comm_hook(None, lambda _, bucket: hand_back(bucket))
        train_step(
            state,
            [Pass(*make_batch())],
            FEATURES,
            tiny.losses,
            generator=generator,
            discriminator=discriminator,
        )
    finally:
        dist.destroy_process_group()
    assert sum(seen) == step.sent_per_update(state, tiny)[0]


@pytest.mark.parametrize(
    ("workers", "compression", "times"), [(1, "off", 0.0), (2, "off", 4.0), (4, "off", 6.0), (4, "bfloat16", 3.0)]
)
def test_what_a_worker_sends_by_hand(tiny: Config, workers: int, compression: str, times: float) -> None:
    config = replace(tiny, train=replace(tiny.train, num_workers=workers, gradient_compression=compression))
    state = TrainingState.build(tiny)
    number = sum(p.numel() for network in (state.generator, state.discriminator) for p in network.parameters())
    assert step.sent_per_update(state, config)[1] == times * number
