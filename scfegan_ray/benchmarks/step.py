"""How fast one update and one edit are, against the same written straight from the paper (`plain`)."""

from __future__ import annotations

import functools
import json
import logging
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from scfegan_ray.allocation import num_cores, training_memory
from scfegan_ray.benchmarks.calls import Calls, ordinary_update
from scfegan_ray.benchmarks.plain import PlainGenerator, PlainStep
from scfegan_ray.config import Config
from scfegan_ray.data import examples, prepare, sources
from scfegan_ray.data.codecs import decode_row
from scfegan_ray.images import Batch
from scfegan_ray.models.features import Features, load_features
from scfegan_ray.precision import autocast, check_available, name_of, resolve_precision, set_tf32
from scfegan_ray.training.hooks import Means
from scfegan_ray.training.state import TrainingState
from scfegan_ray.training.step import Pass, train_step

logger = logging.getLogger(__name__)

KeyT = TypeVar("KeyT")
ResultT = TypeVar("ResultT")

_REPEATS = 5
_EMBEDDED = 64
_SETTLING_ITERATIONS = 30
_MATRIX_SIDE = 2048


def run(config: Config) -> dict[str, Any]:
    """Measure, in turns so that both meet the same machine, log a table, and keep nothing.

    Args:
        config: `model`, `losses`, `optimization`, `data.size_px`, `train.batch_size` (all on one device),
            `train.precision`, `train.tf32`, `train.use_gpu` and `train.threads_per_worker` are read.

    Returns:
        step_seconds and inference_seconds: medians by variant (plain, float32, and the configured precision);
        step_ratio and inference_ratio: those of the configured precision over plain; part_differences: by variant and
        part of the loss, |ours - plain| / max(|plain|, 1) on the first update; flops_per_step, flops_per_second and
        peak_flops_per_second (of matrix products of that precision, or of float32 where the hardware lacks it), and
        peak_share, the one over the other; calls_per_update and synchronizations_per_update, as `calls` counts them in
        one update as a run makes it; gradient_bytes and sent_bytes, of `sent_per_update`. On a GPU also mfu (model
        FLOPs utilization: peak_share, with the peak measured on this very GPU) and peak_memory_bytes of such an update,
        with the batch, networks and optimizers that it needs.
    """
    device = set_up(config)
    precision = resolve_precision(config.train.precision, device)
    kinds, chosen = dict.fromkeys((torch.float32, precision)), name_of(precision)
    features = load_features(config.losses.features).to(device)
    state = TrainingState.build(config, device)
    batch, interpolation = make_batch(config, device)
    _settle_spectral_norms(state)

    plain = PlainStep(state, features, config.losses, config.optimization)
    steps: dict[str, Callable[[], dict[str, Tensor]]] = {"plain": functools.partial(plain, batch, interpolation)}
    for kind in kinds:
        steps[name_of(kind)] = _our_step(config, state, batch, interpolation, features, kind)
    step_seconds, first_parts = in_turns(steps, device)
    first = {name: {part: float(value) for part, value in parts.items()} for name, parts in first_parts.items()}
    differences = {
        name: {part: abs(one[part] - value) / max(abs(value), 1.0) for part, value in first["plain"].items()}
        for name, one in first.items()
        if name != "plain"
    }

    packed = batch.generator_input()[:1]
    plain_generator = PlainGenerator(state.generator).to(device).eval()
    forwards: dict[str, Callable[[], object]] = {"plain": functools.partial(plain_generator, packed)}
    for kind in kinds:
        forwards[name_of(kind)] = _our_forward(state, packed, kind)
    with torch.no_grad():
        inference_seconds, _ = in_turns(forwards, device)

    # Nothing but the state that is updated, so that memory is what a run takes.
    del plain, plain_generator, steps, forwards
    means, passes = Means(), [Pass(batch, interpolation)]
    ordinary_update(state, passes, features, config, means, precision)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    # Calls are counted first: to count FLOPs takes some of them apart.
    with FlopCounterMode(display=False) as counter, Calls() as calls:
        ordinary_update(state, passes, features, config, means, precision)
    on_gpu: dict[str, float] = {}
    if device.type == "cuda":
        on_gpu["peak_memory_bytes"] = torch.cuda.max_memory_allocated(device)
    flops = counter.get_total_flops()
    native = precision if precision == resolve_precision("auto", device) else torch.float32
    peak = _matmul_flops_per_second(native, device)
    reached = flops / step_seconds[chosen]

    logger.info("%d images at %d px on %s", config.train.batch_size, config.data.size_px, device)
    for what, seconds in (("step", step_seconds), ("generator alone, one image", inference_seconds)):
        for name, value in seconds.items():
            logger.info("%-28s %-9s %8.3f s  %.2f of plain", what, name, value, value / seconds["plain"])
    for name, values in differences.items():
        worst = max(values, key=lambda part: values[part])
        logger.info("loss parts of %s differ from plain by %.1e at most (%s)", name, values[worst], worst)
    logger.info(
        "%.2f TFLOP a step; %.3f TFLOP/s, %.0f %% of this machine's %.3f TFLOP/s in matrix products of %s",
        flops / 1e12,
        reached / 1e12,
        100 * reached / peak,
        peak / 1e12,
        name_of(native),
    )
    logger.info("%d calls of ATen and %d synchronizations an update", calls.total, calls.synchronizations)
    gradient_bytes, sent_bytes = sent_per_update(state, config)
    logger.info(
        "%.1f MB of gradients an update (counted), of which a worker sends %.1f MB where there are %d (assumed: summed "
        "around a ring)",
        gradient_bytes / 1e6,
        sent_bytes / 1e6,
        config.train.num_workers,
    )
    if on_gpu:
        on_gpu["mfu"] = reached / peak
        logger.info("MFU %.2f; %.2f GiB of memory", on_gpu["mfu"], on_gpu["peak_memory_bytes"] / 2**30)
    return {
        "step_seconds": step_seconds,
        "inference_seconds": inference_seconds,
        "step_ratio": step_seconds[chosen] / step_seconds["plain"],
        "inference_ratio": inference_seconds[chosen] / inference_seconds["plain"],
        "part_differences": differences,
        "flops_per_step": flops,
        "flops_per_second": reached,
        "peak_flops_per_second": peak,
        "peak_share": reached / peak,
        "calls_per_update": calls.total,
        "synchronizations_per_update": calls.synchronizations,
        "gradient_bytes": gradient_bytes,
        "sent_bytes": sent_bytes,
        **on_gpu,
    }


def sent_per_update(state: TrainingState, config: Config) -> tuple[int, float]:
    """Return what workers exchange in an update, in bytes, but for a few numbers.

    Args:
        state: of the run.
        config: `train.num_workers` and `train.gradient_compression` are read.

    Returns:
        The gradients of both networks, as they travel: counted. What each worker sends, and receives as much, where
        they are summed around a ring, as gloo does and NCCL may: 2 (n - 1) / n times as much; assumed, not measured.
    """
    number = sum(p.numel() for network in (state.generator, state.discriminator) for p in network.parameters())
    gradient_bytes = number * (2 if config.train.gradient_compression == "bfloat16" else 4)
    return gradient_bytes, 2.0 * (config.train.num_workers - 1) / config.train.num_workers * gradient_bytes


def set_up(config: Config) -> torch.device:
    """Settle threads and TF32 of this process, as a worker does; return the device to compute on.

    Raises:
        ConfigError: it is a GPU, and torch sees none.
    """
    torch.set_num_threads(config.train.threads_per_worker or num_cores())
    set_tf32(convolutions=False, products=False)  # as in a worker
    device = torch.device("cuda" if config.train.use_gpu else "cpu")
    check_available(device, "give --train.no-use-gpu")
    return device


def few_faces(config: Config) -> Config:
    """Return a config whose drawn faces are few and all for training, so that nothing is measured in between."""
    number = min(config.data.num_embedded, _EMBEDDED)
    return replace(config, data=replace(config.data, num_embedded=number, test_fraction=0.0))


def in_a_process(function: str, config: Config, *, failure: str, trains: bool = True) -> str:
    """Call a function in a process of its own.

    Args:
        function: its name within this package, after the module's; it takes a config as JSON.
        config: for it.
        failure: what an error begins with.
        trains: whether it has the memory settings of a worker that trains, or those of anybody.

    Returns:
        What it returned, as the last line of text.

    Raises:
        RuntimeError: it failed.
    """
    module, _, name = function.rpartition(".")
    code = f"import sys; from scfegan_ray.benchmarks import {module}; print({module}.{name}(sys.stdin.read()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(config.to_dict()),
        env=os.environ | (training_memory(config.train.use_gpu) if trains else {}),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{failure}: {done.stderr[-2000:]}")
    return done.stdout.splitlines()[-1]


def make_batch(config: Config, device: torch.device) -> tuple[Batch, Tensor]:
    """Return drawn faces with their holes, and where the gradient penalty looks."""
    sketch = replace(config.data.sketch, detector="opencv")
    data = replace(config.data, source=sources.EMBEDDED, num_embedded=config.train.batch_size, sketch=sketch)
    source, listing = sources.open_source(replace(data, max_images=None), config.seed)
    maker = prepare.ShardMaker(data, source, "", {})
    loaded = [face for key in listing.keys.to_pylist() for face in maker.load(key)[0]]
    edges = maker.detect(maker.equalize([face for _, face in loaded]))
    made = [
        examples.make_example(decode_row(row), config.masks, np.random.default_rng([config.seed, index]))
        for index, row in enumerate(maker.finish(loaded, edges))
    ]
    arrays = examples.stack(made)
    return Batch.from_arrays(arrays, device), torch.from_numpy(arrays["interpolation"]).to(device)


def _settle_spectral_norms(state: TrainingState) -> None:
    """Let the power iterations converge: plain runs one more of them per image set, which must not matter."""
    for _ in range(_SETTLING_ITERATIONS):
        state.discriminator.advance_spectral_norm()


def _our_step(
    config: Config, source: TrainingState, batch: Batch, interpolation: Tensor, features: Features, kind: torch.dtype
) -> Callable[[], dict[str, Tensor]]:
    state = TrainingState.build(config, batch.mask.device)
    for name, network in state.networks().items():
        network.load_state_dict(source.networks()[name].state_dict())
    return lambda: update(state, batch, interpolation, features, config, kind)


def update(
    state: TrainingState, batch: Batch, interpolation: Tensor, features: Features, config: Config, kind: torch.dtype
) -> dict[str, Tensor]:
    """Make one update of both networks, computed in `kind`; return the parts of its loss."""
    return train_step(
        state,
        [Pass(batch, interpolation)],
        features,
        config.losses,
        generator=state.generator,
        discriminator=state.discriminator,
        precision=kind,
        allow_tf32=config.train.tf32,
    )


def _our_forward(state: TrainingState, packed: Tensor, kind: torch.dtype) -> Callable[[], object]:
    def forward() -> object:
        with autocast(kind, packed.device):
            return state.ema(packed)

    return forward


def in_turns(
    work: Mapping[KeyT, Callable[[], ResultT]], device: torch.device
) -> tuple[dict[KeyT, float], dict[KeyT, ResultT]]:
    """Return the median seconds of each, after one call of each that does not count, and what that call gave."""
    seconds: dict[KeyT, list[float]] = defaultdict(list)
    first: dict[KeyT, ResultT] = {}
    for turn in range(_REPEATS + 1):
        for name, call in work.items():
            wait(device)
            started = time.perf_counter()
            result = call()
            wait(device)
            if turn:
                seconds[name].append(time.perf_counter() - started)
            else:
                first[name] = result
    return {name: statistics.median(values) for name, values in seconds.items()}, first


def wait(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _matmul_flops_per_second(precision: torch.dtype, device: torch.device) -> float:
    """Return the most that large matrix products reach here."""
    a, b = (torch.randn(_MATRIX_SIDE, _MATRIX_SIDE, device=device).to(precision) for _ in range(2))
    best = float("inf")
    for _ in range(2 * _REPEATS):
        wait(device)
        started = time.perf_counter()
        a @ b
        wait(device)
        best = min(best, time.perf_counter() - started)
    return 2.0 * _MATRIX_SIDE**3 / best
