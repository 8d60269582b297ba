"""What each Ray Train worker does: restore, then train, evaluate and report, epoch by epoch.

Not in `train`, which its processes would import with all of the driver's libraries.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch

from bcl_ray import checkpoint
from bcl_ray.budget import epoch_plan
from bcl_ray.config import Experiment
from bcl_ray.data import evaluation_batches, training_batches
from bcl_ray.distributed import rank, sum_over_workers, world_size
from bcl_ray.learner import TERMS, Learner, NonFiniteLossError
from bcl_ray.loop import Step, evaluate, train_epoch
from bcl_ray.optim import learning_rate
from bcl_ray.parse import from_yaml
from bcl_ray.shards import Manifest

SCORE = "checkpoint/score"  # ranks checkpoints; below every accuracy where nothing was evaluated
TICK = 0.5  # seconds between a worker's progress events


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """One Ray Train worker's whole life: restore, then train and evaluate epoch by epoch.

    A loss that is not finite would only repeat on a restart, so it is returned, not raised.
    """
    experiment = from_yaml(config["experiment"])
    manifest = Manifest.model_validate_json(config["manifest"])
    worker = _Worker(experiment, manifest, config["uid"], config["mailbox"])
    worker.restore()
    try:
        for epoch, batches in training_batches(
            experiment,
            manifest,
            rank=rank(),
            world_size=world_size(),
            first_step=worker.learner.step,
        ):
            worker.run_epoch(epoch, batches)
    except NonFiniteLossError as error:
        return {"error": str(error)}
    return {}


class _Worker:
    """What a worker holds while it trains, and what it tells Ray and the driver."""

    def __init__(self, experiment: Experiment, manifest: Manifest, uid: str, mailbox: Any) -> None:
        self.experiment, self.manifest = experiment, manifest
        self.uid, self.mailbox = uid, mailbox
        self.class_counts = np.array(manifest.splits[experiment.data.train_split].class_counts)
        self.steps = epoch_plan(experiment, manifest, 0).steps
        self.device = ray.train.torch.get_device()
        self.learner = Learner(experiment, self.class_counts, self.steps, self.device)
        self.history: list[dict[str, float]] = []
        self.told = time.monotonic()

    def restore(self) -> None:
        """Continue from the last checkpoint, if there is one."""
        last = ray.train.get_checkpoint()
        if last is not None:
            with last.as_directory() as folder:
                state = checkpoint.load(Path(folder))
            self.learner.restore(state)
            self.history = list(state.history)
        self.tell("start", step=self.learner.step, workers=world_size(), records=self.history)

    def tell(self, kind: str, **content: Any) -> None:
        """Send the driver an event; from one worker, without waiting."""
        if rank() == 0:
            self.mailbox.put.remote({"kind": kind, **content})

    def run_epoch(self, epoch: int, batches: Iterator[dict[str, np.ndarray]]) -> None:
        """Train on what is left of an epoch, evaluate where it is due, and report."""
        begun, waited, images = time.perf_counter(), 0.0, 0
        every = self.experiment.train.checkpoint_every_steps
        for step in train_epoch(self.learner, batches, epoch=epoch):
            waited += step.waited
            images += step.images
            self._progress(epoch, step)
            if every and step.step % every == 0 and step.step % self.steps:
                self.learner.check()
                self._report({SCORE: -1.0, "step": step.step})
        record = {"epoch": float(epoch), **self._training_record(begun, waited, images)}
        if (epoch + 1) % self.experiment.train.eval_every == 0 or (
            epoch + 1 == self.experiment.train.epochs
        ):
            record |= self._evaluation_record()
        self.history.append(record)
        self.learner.sums.zero_()
        self._report({SCORE: record.get("accuracy/all", -1.0), **record})
        self.tell("epoch", epochs=self.experiment.train.epochs, records=[record])

    def _progress(self, epoch: int, step: Step) -> None:
        if time.monotonic() - self.told > TICK:
            self.told = time.monotonic()
            within = step.step - epoch * self.steps
            self.tell("step", epoch=epoch, step=within, steps=self.steps)

    def _training_record(self, begun: float, waited: float, images: int) -> dict[str, float]:
        """Metrics of the epoch's training, the same on every worker."""
        seconds = time.perf_counter() - begun
        times = torch.tensor([seconds, waited], dtype=torch.float64, device=self.device)
        seconds, waited = (sum_over_workers(times) / world_size()).tolist()
        terms = (self.learner.sums / self.steps).tolist()
        last_step = self.learner.step - 1
        lr = learning_rate(
            last_step, self.steps, self.experiment.train.epochs, self.experiment.optim
        )
        return {
            **dict(zip(TERMS, terms, strict=True)),
            "optim/lr": lr,
            "time/epoch": seconds,
            "time/data": 100 * waited / seconds,
            "throughput/images_per_second": images / seconds,
        }

    def _evaluation_record(self) -> dict[str, float]:
        begun = time.perf_counter()
        rows = self.manifest.splits[self.experiment.data.eval_split].rows
        batches = evaluation_batches(
            self.experiment, self.manifest, rank=rank(), world_size=world_size()
        )
        record, per_class = evaluate(
            self.learner.evaluated,
            batches,
            experiment=self.experiment,
            class_counts=self.class_counts,
            rows=rows,
            device=self.device,
        )
        self.tell("classes", counts=self.class_counts.tolist(), accuracy=per_class.tolist())
        return {**record, "time/evaluate": time.perf_counter() - begun}

    def _report(self, metrics: dict[str, float]) -> None:
        """Report on every worker at once; the first one brings the checkpoint."""
        with tempfile.TemporaryDirectory() as folder:
            found = None
            if rank() == 0:
                checkpoint.save(self._state(), Path(folder))
                found = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=found)

    def _state(self) -> checkpoint.State:
        return self.learner.state(
            history=self.history,
            fingerprint=self.manifest.fingerprint,
            class_names=list(self.manifest.class_names),
            class_counts=self.class_counts.tolist(),
            uid=self.uid,
        )
