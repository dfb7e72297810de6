"""What Ray Train's worker does around the loop, in this process: its local mode starts nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import ray.train
import ray.train.torch
from tiny import TINY

from scfegan_ray.config import Config
from scfegan_ray.training.outcome import Outcome
from scfegan_ray.training.worker import train_worker

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray Train's, of its own ways


def run(config: Config, dataset: str, folder: Path, run_id: str | None) -> Outcome:
    settings = {
        "config": config.to_dict(),
        "dataset": dataset,
        "feed": "local",
        "checkpoints": str(folder / "checkpoints"),
        "tracking_uri": f"sqlite:///{folder}/mlflow.db",
        "run_id": run_id,
        "features": "random",
        "stop": None,
    }
    trainer = ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config=settings,
        scaling_config=ray.train.ScalingConfig(num_workers=0),
        run_config=ray.train.RunConfig(name="local", storage_path=str(folder / "ray")),
    )
    return Outcome(**trainer.fit().return_value)


def test_run_without_any_record_at_mlflow_says_so_after_its_last_checkpoint(tiny_dataset: str, tmp_path: Path) -> None:
    config = replace(TINY, train=replace(TINY.train, num_workers=1, checkpoint_every_images=1000, images=8))
    outcome = run(config, tiny_dataset, tmp_path, "no-such-run")
    assert outcome.failure is not None
    kind, text = outcome.failure
    assert kind == "StorageError"
    assert text.startswith("none of the ")
    assert f" of run no-such-run arrived at MLflow at sqlite:///{tmp_path}/mlflow.db" in text
    assert (outcome.images_seen, outcome.checkpoint) == (8, f"{tmp_path}/checkpoints/checkpoint-0000000008")
