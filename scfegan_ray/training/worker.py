"""The training loop of one Ray Train worker, to be read from top to bottom."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

from scfegan_ray.config import Config
from scfegan_ray.data import examples, prepared
from scfegan_ray.evaluation import Evaluator
from scfegan_ray.images import Batch
from scfegan_ray.models.features import load_features
from scfegan_ray.precision import name_of, resolve_precision
from scfegan_ray.progress import Progress
from scfegan_ray.tracking import open_tracker
from scfegan_ray.training import checkpoint
from scfegan_ray.training.state import TrainingState
from scfegan_ray.training.step import train_step

logger = logging.getLogger(__name__)

GRID_SIDE_PX = 128


def train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Train until `train.images` images were seen, from the last checkpoint where there is one.

    Args:
        settings: config: `Config.to_dict()`; dataset: URI of the prepared dataset; tracking_uri, run_id: the MLflow
            run that rank 0 writes to; features: which VGG weights, settled for all workers.

    Returns:
        On rank 0: images_seen, weights_sha256, features (which VGG weights were used), first_metrics and
        last_metrics of the held-back images.
    """
    config = Config.from_dict(settings["config"])
    context = ray.train.get_context()
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    _set_up_log(logging.INFO if rank == 0 else logging.WARNING)
    device = ray.train.torch.get_device()
    assert isinstance(device, torch.device), "one device per worker"
    torch.set_num_threads(config.train.threads_per_worker or _share_of_cores(context.get_local_world_size()))

    # State: built from the seed, then brought to the last checkpoint.
    state = TrainingState.build(config, device)
    last = ray.train.get_checkpoint()
    if last is not None:
        with last.as_directory() as folder:
            checkpoint.load(state, Path(folder))
        logger.info("resuming at %d images", state.images_seen)
    precision = resolve_precision(config.train.precision, device)
    generator = _distribute(state.generator)
    discriminator = _distribute(state.discriminator)
    features = load_features(settings["features"]).to(device)

    # Data: this worker's share of each global batch.
    dataset = prepared.PreparedDataset.open(settings["dataset"])
    batch_size, masks = config.train.batch_size, config.masks
    batches = examples.training_batches(
        dataset,
        masks,
        seed=config.seed,
        start=state.images_seen,
        batch_size=batch_size,
        rank=rank,
        num_workers=num_workers,
        threads=config.train.loader_threads,
    )

    tracker = open_tracker(settings["tracking_uri"], settings["run_id"] if rank == 0 else None)
    tracker.tags({"features": features.description, "precision": name_of(precision)})
    evaluator = Evaluator(features, device)

    def evaluate() -> dict[str, float]:
        metrics = evaluator.run(
            state.ema,
            examples.evaluation_batches(dataset, masks, config.evaluation.num_images, config.evaluation.batch_size),
        )
        few = examples.evaluation_batches(dataset, masks, config.evaluation.grid_images, config.evaluation.batch_size)
        picture = evaluator.grid(state.ema, few, max(GRID_SIDE_PX, config.data.size_px))
        tracker.metrics({f"val/{name}": value for name, value in metrics.items()}, state.images_seen)
        tracker.picture("grid", picture, state.images_seen)
        logger.info("held-back images at %d: %s", state.images_seen, _readable(metrics))
        return metrics

    first_metrics = last_metrics = evaluate() if rank == 0 else {}
    total = config.train.images
    progress = Progress("train", total=total, start=state.images_seen, log=logger.info)
    sums: dict[str, Tensor] = {}
    num_summed = 0

    while state.images_seen < total:
        arrays = next(batches)
        rates = state.set_learning_rates(config.optimization, total)
        parts = train_step(
            state,
            Batch.from_arrays(arrays, device),
            torch.from_numpy(arrays["interpolation"]).to(device),
            features,
            config.losses,
            generator=generator,
            discriminator=discriminator,
            precision=precision,
        )
        before = state.images_seen
        state.images_seen += batch_size
        state.update_ema(config.optimization.ema_half_life_images, batch_size)
        sums = {name: sums[name] + value if sums else value for name, value in parts.items()}
        num_summed += 1
        done = state.images_seen >= total

        # What depends on the position alone is the same on every rank, so that no rank waits for a missing partner.
        if done or before == 0 or _crossed(before, state.images_seen, config.train.log_every_images):
            means = _mean_over_workers(sums, num_summed, num_workers)
            sums, num_summed = {}, 0
            progress.update(state.images_seen, f"generator {means['generator/total']:.3f}")
            tracker.metrics(
                {f"train/{name}": value for name, value in means.items()}
                | {
                    "train/generator/learning_rate": rates[0],
                    "train/discriminator/learning_rate": rates[1],
                    "train/images_per_second": progress.rate,
                },
                state.images_seen,
            )
        else:
            progress.update(state.images_seen)

        if done or _crossed(before, state.images_seen, config.train.checkpoint_every_images):
            if rank == 0:
                last_metrics = evaluate()
                folder = Path(tempfile.mkdtemp(prefix="checkpoint-"))
                checkpoint.save(state, config, folder)
                ray.train.report(
                    last_metrics | {"images_seen": state.images_seen},
                    checkpoint=ray.train.Checkpoint.from_directory(folder),
                    checkpoint_dir_name=f"checkpoint-{state.images_seen:010d}",
                    delete_local_checkpoint_after_upload=True,
                )
            else:
                ray.train.report({"images_seen": state.images_seen})

    batches.close()
    tracker.close()
    return {
        "images_seen": state.images_seen,
        "weights_sha256": state.weights_sha256(),
        "features": features.description,
        "first_metrics": first_metrics,
        "last_metrics": last_metrics,
    }


def _set_up_log(level: int) -> None:
    # Ray passes what a worker writes to stderr on to the driver. Its own loggers there, one of which is named after a
    # file, follow the root's level.
    logging.getLogger().setLevel(logging.WARNING)
    ours = logging.getLogger("scfegan_ray")
    ours.handlers = [logging.StreamHandler(sys.stderr)]
    ours.propagate = False
    ours.setLevel(level)


def _share_of_cores(num_local_workers: int) -> int:
    return max(1, len(os.sched_getaffinity(0)) // num_local_workers)


def _distribute(network: nn.Module) -> nn.Module:
    # Spectral norm changes its vectors in place in each forward; they follow from the weights, which are the same
    # on every rank, and sending them between forward and backward would break the graph.
    wrapped: nn.Module = ray.train.torch.prepare_model(
        network, parallel_strategy_kwargs={"forward_sync_buffers": False}
    )
    return wrapped


def _crossed(before: int, after: int, every: int) -> bool:
    return before // every != after // every


def _mean_over_workers(sums: dict[str, Tensor], count: int, num_workers: int) -> dict[str, float]:
    values = torch.stack([value.float() for value in sums.values()]) / count
    if num_workers > 1:
        dist.all_reduce(values)
        values /= num_workers
    return dict(zip(sums, values.tolist(), strict=True))


def _readable(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
