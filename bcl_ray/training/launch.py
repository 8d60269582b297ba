"""Starts the workers of a run, waits for their end, and turns Ray's errors into ours."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray.train
import ray.train.torch
from ray.exceptions import RayError
from ray.train.v2.api.config import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

from bcl_ray.data.shards import Manifest
from bcl_ray.experiment.options import Experiment
from bcl_ray.machine.versions import command
from bcl_ray.ray_runtime.channel import request_restart, send_note
from bcl_ray.ray_runtime.connection import resources
from bcl_ray.ray_runtime.failures import find_cause
from bcl_ray.ray_runtime.stopping import Stopped, StopRequest, run_stoppable
from bcl_ray.ray_runtime.trainer import Trainer
from bcl_ray.runs import run_folder
from bcl_ray.runs.checkpoint import UnusableCheckpointError
from bcl_ray.runs.run_folder import Run
from bcl_ray.storage import files
from bcl_ray.storage.fence import LeaseLostError
from bcl_ray.storage.lease import Lease
from bcl_ray.training.monitor import RunMonitor
from bcl_ray.training.outcome import TrainingError, failure_text
from bcl_ray.training.preparation import rank_zero_labels
from bcl_ray.training.worker import train_worker


@dataclass(frozen=True)
class Launch:
    """What the workers of a run are started with."""

    run: Run
    experiment: Experiment
    manifest: Manifest
    lease: Lease
    per_worker: Mapping[str, float]
    """Resources of one worker."""
    callbacks: Sequence[Any]
    """Callbacks of Ray Train's controller."""

    def trainer(self, channel: Any) -> Trainer:
        """The trainer; its `fit` starts the workers.

        Args:
            channel: Handle of the run's `Channel`.
        """
        scale = self.experiment.scale
        cluster = resources()  # now: nodes may have come since the run was checked
        return Trainer(
            train_worker,
            experiment=self.experiment,
            notify=functools.partial(send_note, channel),
            request_restart=functools.partial(request_restart, channel),
            train_loop_config={
                "experiment": self.experiment.to_yaml(),
                "manifest": self.manifest,
                "run": self.run.uri,
                "uid": self.run.uid,
                "channel": channel,
                "fence": self.lease.fence,
            },
            # Longer than the watchdog takes to notice a hang and to log where training hangs.
            torch_config=ray.train.torch.TorchConfig(timeout_s=int(2 * scale.hang_timeout) + 1),
            scaling_config=ScalingConfig(
                num_workers=(scale.min_workers, scale.max_workers),
                use_gpu="GPU" in self.per_worker,
                resources_per_worker=dict(self.per_worker),
                label_selector=rank_zero_labels(scale.max_workers, cluster),
            ),
            run_config=self._run_config(),
        )

    def _run_config(self) -> RunConfig:
        filesystem, path = files.atomic_filesystem(self.run.uri, self.lease.fence)
        parent, _, name = path.rstrip("/").rpartition("/")
        return RunConfig(
            name=name,
            storage_path=parent or "/",
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=self.experiment.scale.max_failures),
            # The last one, and the one before in case the last is damaged.
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            callbacks=list(self.callbacks),
        )


def run_workers(
    run: Run, trainer: Trainer, monitor: RunMonitor, *, stop_request: StopRequest, lease: Lease
) -> Any:
    """Run the workers until training is complete; the monitor handles their events meanwhile.

    Returns:
        Ray Train's result.

    Raises:
        TrainingError: The workers failed.
        LeaseLostError: Another driver has taken the run over.
        Stopped: A stop was requested.
    """
    resume = f"{command()} train --resume {run_folder.reference(run)}"
    monitor.start()
    try:
        result = run_stoppable(
            trainer.fit,
            stop_request,
            monitor.request_stop,
            terminate=trainer.terminate,
            failure=lambda: lease.lost,
        )
    # A RayError: the controller died, or found its snapshot damaged.
    except (ray.train.TrainingFailedError, RayError) as failure:
        # Workers also fail when this driver has lost its lease: then that is the error to raise.
        if (lost := find_cause(failure, LeaseLostError) or lease.poll()) is not None:
            lease.mark_lost(lost)
            raise lost from None
        text = failure_text(failure, run, monitor.tracker)
        if find_cause(failure, UnusableCheckpointError):
            raise TrainingError(f"{text}\nbegin another run") from None
        raise TrainingError(f"{text}\ncontinue with: {resume}") from None
    except Stopped as stop:
        raise Stopped(f"{stop}; go on with: {resume}", stop.signum) from None
    finally:
        monitor.stop()
    returned = result.return_value or {}
    if "error" in returned:
        raise TrainingError(returned["error"])
    if "stopped" in returned:
        text = f"stopped at step {returned['stopped']:,}; go on with: {resume}"
        raise Stopped(text, stop_request.signum)
    lease.check()
    return result
