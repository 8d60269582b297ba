"""Run the trials of a sweep with Ray Tune."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune

from bcl_ray.ray_runtime.stopping import Stopped, StopRequest, run_stoppable
from bcl_ray.storage.lease import Lease
from bcl_ray.tuning.ledger import Ledger
from bcl_ray.tuning.schedulers import make_scheduler
from bcl_ray.tuning.trials import Trial
from bcl_ray.tuning.tune_searcher import Engine, NewTrials, StopOnRequest, TuneSearcher
from bcl_ray.tuning.tune_trial import TrialRun

MAX_RESTARTS = 3  # of a trial whose process dies; its run goes on from its last checkpoint
TUNE_ENVIRONMENT = {  # without these, Tune writes to the terminal and into folders of its own
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # not every step is an evaluation
    "TUNE_WARN_THRESHOLD_S": "60",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "3600",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True)
class TuneRunner:
    """Runs trials of one sweep."""

    engine: Engine
    capacity: int  # trials at once
    stop_request: StopRequest
    lease: Lease  # of the sweep's folder

    @property
    def ledger(self) -> Ledger:
        """The ledger of the sweep."""
        return self.engine.writer.ledger

    def run(self, trials: Sequence[Trial], new: NewTrials | None = None) -> list[Trial]:
        """Run the trials that have not ended, then new ones, and return all of them.

        Args:
            trials: Trials so far.
            new: How new trials are chosen; None: there are none, and no trial is stopped early.

        Raises:
            Stopped: A stop was requested.
            LeaseLostError: Another driver has taken over the sweep.
            OSError: A trial cannot be written.
        """
        searcher = TuneSearcher(self.engine, trials, new)
        scheduler = make_scheduler(
            new.scheduler if new else "none",
            self.ledger.experiment.train,
            {trial.number: trial for trial in trials}.get,
            [trial for trial in trials if not trial.is_open],
        )
        self._run_tuner(searcher, scheduler)
        self.engine.writer.flush()
        if searcher.interrupted:
            raise Stopped(f"{self.ledger.kind.noun} stopped", self.stop_request.signum)
        return list(searcher.trials.values())

    def _run_tuner(self, searcher: TuneSearcher, scheduler: Any) -> None:
        for name, value in TUNE_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # Tune's own state is not needed after this process, because the ledger has everything.
        scratch = Path(tempfile.gettempdir()) / f"bcl_ray-tune-{self.ledger.uid}"
        shutil.rmtree(scratch, ignore_errors=True)  # left by a driver of this sweep that died
        scratch.mkdir(mode=0o700)
        tuner = tune.Tuner(
            tune.with_resources(TrialRun, _driver_resources()),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=-1,  # until the searcher is FINISHED
                max_concurrent_trials=self.capacity,
                reuse_actors=True,  # a new process would need seconds for its imports
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(scratch),
                stop=StopOnRequest(searcher, self.stop_request),
                failure_config=tune.FailureConfig(max_failures=MAX_RESTARTS),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )
        try:
            # A trial that ignores the stop request ends when this process disconnects from Ray.
            run_stoppable(
                tuner.fit,
                self.stop_request,
                lambda: True,  # StopOnRequest asks the trials to end
                terminate=searcher.interrupt,
                failure=lambda: self.lease.lost or self.engine.writer.error,
            )
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def driver_node() -> dict[str, Any]:
    """Ray's description of the node on which this process runs."""
    node_id = ray.get_runtime_context().get_node_id()
    return next(node for node in ray.nodes() if node["NodeID"] == node_id)


def _driver_resources() -> dict[str, float]:
    """Resources that put the drivers of trials on this node, and take no CPU.

    The sweep's driver is on this node anyway: if the node is lost, trials that are driven elsewhere
    would end too.
    """
    names = [name for name in driver_node()["Resources"] if name.startswith("node:")]
    # "__": names such as node:__internal_head__, which are not this node's alone.
    return {next(name for name in names if "__" not in name): 0.001}
