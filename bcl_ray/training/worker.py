"""What each Ray Train worker does: restore, then train, evaluate and report, epoch by epoch.

Not in `train`, which its processes would import with all of the driver's libraries.
"""

import contextlib
import logging
import secrets
import time
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
from ray.train import CheckpointConsistencyMode, CheckpointUploadMode
from ray.train.collective import broadcast_from_rank_zero

from bcl_ray.data.plan import epoch_plan
from bcl_ray.data.shards import Manifest
from bcl_ray.data.views.transfer import Sent
from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.overrides import from_yaml
from bcl_ray.method.collectives import rank, sum_over_workers, world_size
from bcl_ray.method.learner import TERMS, Learner, NonFiniteLossError
from bcl_ray.method.loop import SIGNALS, Step, train_epoch
from bcl_ray.method.optim import learning_rate
from bcl_ray.method.precision import chosen
from bcl_ray.ray_runtime.failures import RestartError
from bcl_ray.ray_runtime.watchdog import Watchdog
from bcl_ray.runs import checkpoint, findings
from bcl_ray.runs.run_folder import BEST, LAST
from bcl_ray.storage import files
from bcl_ray.storage.fence import Fence
from bcl_ray.training.feed import Feed, open_feed
from bcl_ray.training.probe import Probe
from bcl_ray.training.residency import UnsupportedError

logger = logging.getLogger(__name__)

TICK = 0.5  # seconds between a worker's progress events


class StoppedError(Exception):
    """Training was asked to stop, and the state has been saved."""


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """One Ray Train worker's whole life: restore, then train and evaluate epoch by epoch.

    A loss that is not finite would only repeat on a restart, so it is returned, not raised; so
    are images that cannot live on a device, and the step at which training was asked to stop.
    """
    experiment = from_yaml(config["experiment"])
    manifest = Manifest.model_validate_json(config["manifest"])
    channel = config["channel"]
    with _warnings_told(channel):
        worker = _Worker(
            experiment, manifest, config["run"], config["uid"], channel, fence=config["fence"]
        )
        try:
            worker.open_feed()
        except UnsupportedError as error:
            return {"error": str(error)}
        worker.restore()
        epochs = worker.feed.training(worker.learner.sender, worker.learner.step)
        try:
            with contextlib.closing(epochs):
                worker.finish_epoch()
                for epoch, batches in worker.watchdog.watched(epochs):
                    worker.run_epoch(epoch, batches)
        except NonFiniteLossError as error:
            return {"error": str(error)}
        except StoppedError:
            return {"stopped": worker.learner.step}
        finally:
            worker.watchdog.pause()  # an error may keep the batches from ending
    return {}


@contextlib.contextmanager
def _warnings_told(channel: Any) -> Iterator[None]:
    """Pass warnings of our own modules on to the person, from every worker."""

    class Forward(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = f"worker {rank()}: {record.getMessage()}"
            channel.put.remote({"kind": "note", "text": text})

    handler, ours = Forward(logging.WARNING), logging.getLogger("bcl_ray")
    ours.addHandler(handler)
    try:
        yield
    finally:
        ours.removeHandler(handler)


class _Worker:
    """What a worker holds while it trains, and what it tells Ray and the driver."""

    def __init__(
        self,
        experiment: Experiment,
        manifest: Manifest,
        run: str,
        uid: str,
        channel: Any,
        *,
        fence: Fence,
    ) -> None:
        self.experiment, self.manifest = experiment, manifest
        self.run, self.uid, self.channel, self.fence = run, uid, channel, fence
        self.watchdog = Watchdog(channel, experiment.scale.hang_timeout)
        self.class_counts = np.array(manifest.splits[experiment.data.train_split].class_counts)
        self.steps = epoch_plan(experiment, manifest, 0).steps
        self.device = ray.train.torch.get_device()
        self.learner = Learner(experiment, self.class_counts, self.steps, self.device)
        self.probe = Probe(
            experiment, manifest, self.class_counts, self.device, self.watchdog.watched
        )
        self.feed: Feed
        self.history: list[dict[str, float]] = []
        self.told = time.monotonic()

    def open_feed(self) -> None:
        """Open the stream, or bring the images to the device.

        Raises:
            UnsupportedError: they cannot live there.
        """
        try:
            opened = open_feed(self.experiment, self.manifest, self.device, self.watchdog.watched)
        finally:
            self.watchdog.pause()
        self.feed, why = opened
        if why:
            self.send("note", text=f"images are streamed, not kept on the GPU: {why}")

    def restore(self) -> None:
        """Continue from the last checkpoint that can be read, if there is one."""
        if ray.train.get_checkpoint() is not None:
            # One worker chooses, lest a file that comes back meanwhile divides them.
            folder = broadcast_from_rank_zero(self._usable() if rank() == 0 else None)
            state = checkpoint.load(folder)
            self.learner.restore(state)
            self.history = list(state.history)
        precision = chosen(self.experiment.train.precision, self.device)
        about = {"precision": precision, "residency": self.feed.kind, "records": self.history}
        self.send("start", step=self.learner.step, workers=world_size(), **about)

    def finish_epoch(self) -> None:
        """Evaluate and report an epoch whose training had been saved, and no more."""
        epoch, within = divmod(self.learner.step, self.steps)
        if within == 0 and len(self.history) < epoch:
            self.run_epoch(epoch - 1, iter(()))

    def _usable(self) -> str:
        """The last checkpoint's folder, or that of the one before where the last is damaged.

        Raises:
            UnusableCheckpointError: none can be read; to begin again would lose the run.
        """
        kept = ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)
        names = [PurePosixPath(found.checkpoint.path).name for found in kept]
        problems = []
        for folder in [files.join(self.run, name) for name in reversed(names)]:
            try:
                checkpoint.load(folder)
            except checkpoint.UnusableCheckpointError as error:
                problems.append(str(error))
                continue
            for problem in problems:
                logger.warning("%s; going on from the checkpoint before", problem)
            self._clear(names)
            return folder
        raise checkpoint.UnusableCheckpointError("; ".join(problems))

    def _clear(self, kept: list[str]) -> None:
        """Remove checkpoints that were written when their workers died, and so never noted."""
        self.fence.check()
        for name in files.list_folders(self.run):
            if name.startswith(LAST) and name not in kept:
                files.delete_folder(files.join(self.run, name))

    def send(self, kind: str, **content: Any) -> None:
        """Send the driver an event; from one worker, without waiting."""
        if rank() == 0:
            self.channel.put.remote({"kind": kind, **content})

    def run_epoch(self, epoch: int, batches: Iterator[Sent]) -> None:
        """Train on what is left of an epoch, evaluate where it is due, and report."""
        begun, waited, images = time.perf_counter(), 0.0, 0
        every = self.experiment.train.checkpoint_every_steps
        for step in train_epoch(
            self.learner, self.watchdog.watched(batches), epoch=epoch, signals=self.watchdog.signals
        ):
            waited += step.waited
            images += step.images
            self._progress(epoch, step)
            signals, in_epoch = step.signals, step.step % self.steps != 0
            if in_epoch and (signals or (every and step.step % every == 0)):
                self.learner.check()
                self._report({"step": step.step})
            if in_epoch and signals:
                self._leave(signals)
        record = {"epoch": float(epoch), **self._training_record(begun, waited, images)}
        signals, epochs = self._requests(), self.experiment.train.epochs
        if (epoch + 1) % self.experiment.train.eval_every == 0 or epoch + 1 == epochs:
            # An evaluation may take longer than a notice, or a person, would wait.
            self._report({"step": self.learner.step})
            if signals:
                self._leave(signals)
            record |= self._evaluation_record(epoch)
        accuracies = [r["accuracy/all"] for r in self.history if "accuracy/all" in r]
        best = record.get("accuracy/all", -1.0) > max(accuracies, default=-1.0)
        self.history.append(record)
        self.learner.sums.zero_()
        self._report({"step": self.learner.step, **record}, best=best)
        self.send("epoch", epochs=epochs, records=[record])
        if epoch + 1 < epochs and (signals := self._requests()):
            self._leave(signals)

    def _requests(self) -> frozenset[str]:
        """Which of SIGNALS any worker gives now; the same on all of them, which wait for it.

        Within an epoch they travel with the gradients, one step late; between epochs nothing does.
        """
        signals = self.watchdog.signals()
        given = torch.tensor([float(name in signals) for name in SIGNALS], device=self.device)
        found = zip(SIGNALS, sum_over_workers(given).tolist(), strict=True)
        return frozenset(name for name, workers in found if workers)

    def _progress(self, epoch: int, step: Step) -> None:
        if time.monotonic() - self.told > TICK:
            self.told = time.monotonic()
            within = step.step - epoch * self.steps
            self.send("step", epoch=epoch, step=within, steps=self.steps)

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
            "time/data_share": 100 * waited / seconds,
            "throughput/images_per_second": images / seconds,
            "scale/workers": float(world_size()),
        }

    def _evaluation_record(self, epoch: int) -> dict[str, float]:
        begun = time.perf_counter()
        found = self.probe.evaluate(self.learner.evaluated, self.feed.evaluation())
        if rank() == 0 and epoch + 1 == self.experiment.train.epochs:
            self.fence.check()
            findings.write(self.probe.findings(found, epoch=epoch), self.run)
        return {**found.metrics, "time/evaluate": time.perf_counter() - begun}

    def _report(self, metrics: dict[str, float], *, best: bool = False) -> None:
        """Report on every worker at once; the first one has written the checkpoint.

        It becomes the last one only when Ray Train has noted it; Ray Train keeps two.

        Raises:
            LeaseLostError: another driver has the run.
        """
        found = None
        if rank() == 0:
            self.fence.check()
            # The name is new even if an earlier start of the workers wrote the same step.
            step = f"{self.learner.step:08d}"
            folder = files.join(self.run, f"{LAST}{step}_{secrets.token_hex(4)}")
            bests = [files.join(self.run, BEST + step)] if best else []
            checkpoint.save(self._state(), folder, *bests)
            self.fence.check()
            for name in files.list_folders(self.run) if best else []:
                if name.startswith(BEST) and name != BEST + step:
                    files.delete_folder(files.join(self.run, name))
            filesystem, path = files.atomic_filesystem(folder, self.fence)
            found = ray.train.Checkpoint(path, filesystem)
        ray.train.report(
            metrics, checkpoint=found, checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD
        )

    def _leave(self, signals: frozenset[str]) -> None:
        """End this worker's training; the state has been saved.

        Raises:
            StoppedError: training was asked to stop.
            RestartError: a node is to go, or there is room for more workers.
        """
        # Returns when Ray Train has noted the checkpoint, which a failure could overtake.
        ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)
        if "stop" in signals:
            raise StoppedError
        why = "a node is being taken away" if self.watchdog.has_notice else "there are more nodes"
        raise RestartError(f"{why}: everything up to step {self.learner.step:,} is saved")

    def _state(self) -> checkpoint.State:
        return self.learner.state(
            history=self.history,
            fingerprint=self.manifest.fingerprint,
            class_names=list(self.manifest.class_names),
            class_counts=self.class_counts.tolist(),
            uid=self.uid,
        )
