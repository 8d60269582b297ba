"""A Ray Train worker: it restores a checkpoint, then trains and evaluates epoch by epoch.

Workers import this module, and not those of the driver, whose libraries would take longer.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import ray.train.torch

from bcl_ray.data.plan import epoch_plan
from bcl_ray.data.shards import Manifest
from bcl_ray.data.views.transfer import DeviceBatch
from bcl_ray.experiment.metric_names import ACCURACY, CHECKPOINT_SECONDS, EVALUATION_SECONDS
from bcl_ray.experiment.overrides import from_yaml
from bcl_ray.machine.allocator import keep_freed_memory
from bcl_ray.method.collectives import rank, world_size
from bcl_ray.method.learner import TERMS, Learner, NonFiniteLossError
from bcl_ray.method.loop import Step, train_epoch
from bcl_ray.method.precision import resolve_precision
from bcl_ray.ray_runtime.channel import warnings_sent
from bcl_ray.ray_runtime.failures import RestartError
from bcl_ray.ray_runtime.watchdog import Watchdog
from bcl_ray.runs import checkpoint, findings
from bcl_ray.storage import paths
from bcl_ray.storage.fence import Fence
from bcl_ray.training.checkpoints import Checkpoints
from bcl_ray.training.evaluator import Evaluator
from bcl_ray.training.feed import Feed, open_feed
from bcl_ray.training.resident_images import UnsupportedError
from bcl_ray.training.speed import Progress


class StoppedError(Exception):
    """A stop was requested, and the state has been saved."""


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Run one worker from its start to its end; Ray Train calls this in each worker's process.

    Args:
        config: `experiment` (YAML), `manifest`, `run` (the folder), `uid` (of the run),
            `channel` (handle of the run's `Channel`) and `fence` (of its driver).

    Returns:
        {"stopped": step} if a stop was requested. {"error": text} for a failure that a restart
        would only repeat: a loss that is not finite, or images that the device cannot hold.
    """
    keep_freed_memory()
    with warnings_sent(config["channel"], f"worker {rank()}"):
        worker = Worker(config)
        try:
            worker.open_feed()
        except UnsupportedError as error:
            return {"error": str(error)}
        worker.restore()
        with contextlib.ExitStack() as at_end:  # in reverse order, and whatever happens
            at_end.callback(worker.watchdog.pause)  # after an error no more batches come
            at_end.callback(worker.checkpoints.wait_until_recorded)
            epochs = worker.feed.training(
                worker.learner.sender,
                worker.learner.step,
                evaluate_first=worker.unevaluated_epoch is not None,
            )
            at_end.enter_context(contextlib.closing(epochs))
            try:
                worker.finish_epoch()
                for epoch, batches in worker.watchdog.watched(epochs):
                    worker.run_epoch(epoch, batches)
            except NonFiniteLossError as error:
                return {"error": str(error)}
            except StoppedError:
                return {"stopped": worker.learner.step}
    return {}


class Worker:
    """One worker's training. All workers call each method together.

    Args:
        config: As of `train_worker`.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.experiment = experiment = from_yaml(config["experiment"])
        manifest: Manifest = config["manifest"]
        self.manifest = manifest
        self.run: str = config["run"]
        self.uid: str = config["uid"]
        self.channel = config["channel"]
        self.fence: Fence = config["fence"]
        self.checkpoints = Checkpoints(self.run, self.fence)
        self.watchdog = Watchdog(self.channel, experiment.scale.hang_timeout)
        self.class_counts = np.array(manifest.splits[experiment.data.train_split].class_counts)
        self.steps_per_epoch = epoch_plan(experiment, manifest, 0).steps
        self.device = ray.train.torch.get_device()
        self.learner = Learner(experiment, self.class_counts, self.steps_per_epoch, self.device)
        self.evaluator = Evaluator(
            experiment, manifest, self.class_counts, self.device, self.watchdog.watched
        )
        self.feed: Feed
        self.history: list[dict[str, float]] = []  # a record of metrics per finished epoch
        self.progress = Progress(paths.name(self.run), self.device)

    def open_feed(self) -> None:
        """Open the stream, or copy the images to the device.

        Raises:
            UnsupportedError: The device cannot hold the images.
        """
        try:
            self.feed, reason = open_feed(
                self.experiment, self.manifest, self.device, self.watchdog.watched
            )
        finally:
            self.watchdog.pause()
        if reason:
            self.send("note", text=f"images are streamed, not kept on the GPU: {reason}")

    def restore(self) -> None:
        """Continue from the last checkpoint that can be read, if there is one."""
        if (state := self.checkpoints.load()) is not None:
            self.learner.restore(state)
            self.history = list(state.history)
        elif self.learner.note is not None:
            self.send("note", text=self.learner.note)
        self.send(
            "start",
            step=self.learner.step,
            workers=world_size(),
            precision=resolve_precision(self.experiment.train.precision, self.device),
            residency=self.feed.kind,
            records=self.history,
        )

    @property
    def unevaluated_epoch(self) -> int | None:
        """The last epoch, if the run was stopped before its evaluation."""
        epochs, step_in_epoch = divmod(self.learner.step, self.steps_per_epoch)
        is_unfinished = step_in_epoch == 0 and len(self.history) < epochs
        is_due = self.experiment.train.evaluates(epochs - 1)
        return epochs - 1 if is_unfinished and is_due else None

    def finish_epoch(self) -> None:
        """Evaluate the last epoch if the run was stopped before its evaluation."""
        if (epoch := self.unevaluated_epoch) is not None:
            self.run_epoch(epoch, iter(()))

    def send(self, kind: str, **content: Any) -> None:
        """Send the driver an event, from rank 0 only, without waiting."""
        if rank() == 0:
            self.channel.put.remote({"kind": kind, **content})

    def run_epoch(self, epoch: int, batches: Iterator[DeviceBatch]) -> None:
        """Train on an epoch's remaining batches, evaluate if that is due, save and send metrics."""
        record = {"epoch": float(epoch), **self._train(epoch, batches)}
        signals, train = self.watchdog.signals_of_all(self.device), self.experiment.train
        if train.evaluates(epoch):
            if signals:
                # An evaluation may take longer than a notice lasts, or than a user wants to wait.
                self._save()
                self._end(signals)
            record |= self._evaluate(epoch)
        accuracies = [r[ACCURACY] for r in self.history if ACCURACY in r]
        best = record.get(ACCURACY, -1.0) > max(accuracies, default=-1.0)
        self.history.append(record)
        self.learner.sums.zero_()
        self._save(best=best)
        self.send("epoch", epochs=train.epochs, records=[record])
        if epoch + 1 < train.epochs and (signals := self.watchdog.signals_of_all(self.device)):
            self._end(signals)

    def _train(self, epoch: int, batches: Iterator[DeviceBatch]) -> dict[str, float]:
        """Train on an epoch's remaining batches.

        Returns:
            Metrics, the same on every worker but for time/checkpoint. An epoch whose steps were all
            done before the last checkpoint has no rates of training.
        """
        every = self.experiment.train.checkpoint_every_steps
        self.progress.begin_epoch()
        for step in train_epoch(
            self.learner, self.watchdog.watched(batches), epoch=epoch, signals=self.watchdog.signals
        ):
            self._send_progress(epoch, step)
            in_epoch = step.step % self.steps_per_epoch != 0
            if in_epoch and (step.signals or (every and step.step % every == 0)):
                self.learner.check()
                self._save()
            if in_epoch and step.signals:
                self._end(step.signals)
        rates = self.progress.epoch_rates()
        return {
            **dict(zip(TERMS, (self.learner.sums / self.steps_per_epoch).tolist(), strict=True)),
            "optim/lr": self.learner.learning_rate_at(self.learner.step - 1),
            **rates,
            CHECKPOINT_SECONDS: self.checkpoints.take_blocked_seconds(),
            "scale/workers": float(world_size()),
        }

    def _evaluate(self, epoch: int) -> dict[str, float]:
        """Evaluate; returns metrics, the same on every worker but for the time and geometry."""
        begun = time.perf_counter()
        evaluation = self.evaluator.evaluate(
            self.learner.evaluation_model,
            self.feed.evaluation(),
            geometry=self.experiment.train.measures_geometry(epoch),
        )
        if rank() == 0 and epoch + 1 == self.experiment.train.epochs:
            self.fence.check()
            findings.write(self.evaluator.findings(evaluation, epoch=epoch), self.run)
        return {**evaluation.metrics, EVALUATION_SECONDS: time.perf_counter() - begun}

    def _send_progress(self, epoch: int, step: Step) -> None:
        if rates := self.progress.add(step, self.checkpoints.blocked):
            in_epoch, steps = step.step - epoch * self.steps_per_epoch, self.steps_per_epoch
            self.send("step", epoch=epoch, step=in_epoch, steps=steps, rates=rates)

    def _save(self, *, best: bool = False) -> None:
        self.checkpoints.save(self._state, self.learner.step, best=best)

    def _state(self) -> checkpoint.State:
        return self.learner.state(
            history=self.history,
            fingerprint=self.manifest.fingerprint,
            class_names=list(self.manifest.class_names),
            class_counts=self.class_counts.tolist(),
            uid=self.uid,
        )

    def _end(self, signals: frozenset[str]) -> None:
        """End this worker's training; `train_worker` waits until the saved state is recorded.

        Raises:
            StoppedError: A stop was requested.
            RestartError: A node will be taken away, or there are nodes for more workers.
        """
        if "stop" in signals:
            raise StoppedError
        reason = "a node is being taken away" if self.watchdog.has_notice else "there are new nodes"
        raise RestartError(f"{reason}: everything up to step {self.learner.step:,} is saved")
