"""Trials through Ray Tune, from those that are known to those that are wanted."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune

from bcl_ray.ray_runtime.stopping import Stopped, StopRequest, stoppable
from bcl_ray.storage.lease import Lease
from bcl_ray.tuning.freed_resources import ResourceWatcher
from bcl_ray.tuning.ledger import Ledger
from bcl_ray.tuning.samplers import Searcher
from bcl_ray.tuning.schedulers import make_scheduler
from bcl_ray.tuning.trials import Trial
from bcl_ray.tuning.tune_searcher import Conductor, Follow, Interruption
from bcl_ray.tuning.tune_trial import TrialRun

RETRIES = 3  # of a trial whose process dies; its run goes on
SETTINGS = {  # of Tune, which would write to the terminal and into folders
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # not every step is an evaluation
    "TUNE_WARN_THRESHOLD_S": "60",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "3600",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True)
class Tuning:
    """What all trials of a search have in common.

    Args:
        ledger: of the search.
        slots: trials at once.
        options: of every trial: where its data and its run lie, and its share of the cluster.
        follow: takes events.
        watcher: watches what trials hold.
        stop_request: to end all of them.
        lease: of the search.
    """

    ledger: Ledger
    slots: int
    options: Sequence[str]
    follow: Follow
    watcher: ResourceWatcher
    stop_request: StopRequest
    lease: Lease

    def run(
        self, known: Sequence[Trial], *, total: int = 0, chooser: Searcher | None = None
    ) -> list[Trial]:
        """Run trials that have not ended, and new ones; returns all of them.

        Args:
            known: trials that were begun, or are to be.
            total: trials in all.
            chooser: of new ones; without it there are none, and none is stopped early.

        Raises:
            Stopped: it was stop_request.
        """
        conductor = Conductor(
            self.ledger,
            known,
            total,
            chooser=chooser,
            options=self.options,
            follow=self.follow,
            watcher=self.watcher,
        )
        scheduler = make_scheduler(
            self.ledger.settings.scheduler if chooser else "none",
            self.ledger.experiment.train,
            {trial.number: trial for trial in known}.get,
            [trial for trial in known if trial.status != "running"],
        )
        self._run(conductor, scheduler)
        if conductor.interrupted:
            raise Stopped("search stopped", self.stop_request.signum)
        return list(conductor.trials.values())

    def _run(self, conductor: Conductor, scheduler: Any) -> None:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        # Tune's own state goes with the process: what is needed of it is in the ledger.
        scratch = Path(tempfile.gettempdir()) / f"bcl_ray-tune-{self.ledger.uid}"
        shutil.rmtree(scratch, ignore_errors=True)  # of a driver of this search that was killed
        scratch.mkdir(mode=0o700)
        tuner = tune.Tuner(
            tune.with_resources(TrialRun, _beside_us()),
            tune_config=tune.TuneConfig(
                search_alg=conductor,
                scheduler=scheduler,
                num_samples=-1,
                max_concurrent_trials=self.slots,
                reuse_actors=True,  # a trial's driver imports for seconds
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(scratch),
                stop=Interruption(conductor, self.stop_request),
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )
        try:
            # Trials end with this process's Ray, where they have not when they were asked to.
            stoppable(
                tuner.fit,
                self.stop_request,
                lambda: True,
                end=conductor.interrupt,
                lost=lambda: self.lease.lost,
            )
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def our_node() -> dict[str, Any]:
    """What Ray knows of the node that this process runs on."""
    here = ray.get_runtime_context().get_node_id()
    return next(node for node in ray.nodes() if node["NodeID"] == here)


def _beside_us() -> dict[str, float]:
    """Trials' drivers run on this node, which a search cannot lose anyway, and take no CPU."""
    names = [name for name in our_node()["Resources"] if name.startswith("node:")]
    return {next(name for name in names if "__" not in name): 0.001}
