"""The two phases of a search: its own trials, then repeats of the best ones with other seeds."""

from collections.abc import Sequence
from dataclasses import dataclass

from bcl_ray.data.shards import read_manifest
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.machine.errors import FailedError
from bcl_ray.machine.versions import command
from bcl_ray.ray_runtime.connection import Resources
from bcl_ray.ray_runtime.stopping import Stopped, StopRequest
from bcl_ray.runs.budget import budget
from bcl_ray.storage import paths
from bcl_ray.storage.lease import Lease
from bcl_ray.tracking.tracker import tracking_uri
from bcl_ray.tuning.capacity import data_cpus
from bcl_ray.tuning.freed_resources import ResourceWatcher
from bcl_ray.tuning.ledger import Ledger
from bcl_ray.tuning.reporter import SearchReporter
from bcl_ray.tuning.samplers import Sampler, make_sampler
from bcl_ray.tuning.trials import Trial, best_trial, own_trials, with_repeats
from bcl_ray.tuning.tune_run import TuneRunner


class SearchError(FailedError):
    """A search ended without a winner; the message says why."""


@dataclass(frozen=True)
class SearchPhases:
    """The phases of a search that has started."""

    ledger: Ledger
    data_options: Sequence[str]  # options that name the trials' data
    resources: Resources  # of the cluster
    capacity: int  # trials at once
    reporter: SearchReporter
    stop_request: StopRequest
    lease: Lease

    def run(self) -> list[Trial]:
        """Run all trials and repeats, and return them.

        Raises:
            SearchError: No trial finished, or some are to be resumed by a later process.
            Stopped: A stop was requested.
        """
        trials = self.ledger.trials()
        for trial in trials:
            self.reporter.show_earlier(trial)
        options = self._common_options()
        try:
            with ResourceWatcher(self.ledger.uid, self.reporter.note) as watcher:
                runner = TuneRunner(
                    self.ledger,
                    self.capacity,
                    options,
                    self.reporter,
                    watcher,
                    self.stop_request,
                    self.lease,
                )
                return self._run_phases(runner, trials)
        except Stopped as stop:
            text = f"{stop}; go on with: {command()} search --resume {_reference(self.ledger)}"
            raise Stopped(text, stop.signum) from None

    def _run_phases(self, runner: TuneRunner, trials: Sequence[Trial]) -> list[Trial]:
        extent = self.ledger.extent
        repeats = [trial for trial in trials if trial.seed is not None]
        own = own_trials(trials)
        own = runner.run(own, total=extent.trials, sampler=self._sampler(own))
        if best_trial(own) is None:
            raise SearchError(_no_winner(own, extent.trials))
        _check_ended(self.ledger, own)
        if extent.confirm is None:
            return [*own, *repeats]
        k, n = extent.confirm
        trials = with_repeats([*own, *repeats], k, n, self.ledger.experiment.train.seed)
        self.reporter.show_confirmation(len(trials) - len(own))
        trials = runner.run(trials)
        _check_ended(self.ledger, trials)
        return trials

    def _sampler(self, trials: Sequence[Trial]) -> Sampler:
        """The sampler, with the results of the trials that have ended."""
        settings = self.ledger.settings
        sampler = make_sampler(settings.searcher, self.ledger.space, settings.seed, len(trials))
        for trial in trials:
            if trial.status != "running":
                sampler.tell(trial.number, trial.point, trial.scores, trial.status)
        return sampler

    def _common_options(self) -> list[str]:
        """The options that all trials have in common.

        Raises:
            ValueError: No trial can work with these options.
        """
        experiment = self.ledger.experiment
        trial = self.ledger.extent.of_trial(experiment)
        options = [
            f"scale.workers={trial.scale.workers}",
            f"scale.gpus_per_worker={trial.scale.gpus_per_worker}",
            *self.data_options,
            f"tracking.runs={self.ledger.uri}",
            f"tracking.uri={tracking_uri(experiment)}",
        ]
        if not self.resources.grows:  # else nodes are added for each trial's data tasks
            share = data_cpus(trial, self.resources.cpus, self.capacity)
            options.append(f"scale.data_cpus={share:g}")
        trial = with_overrides(experiment, options)
        # The whole training split passed this check, but trials have fewer images.
        budget(trial, read_manifest(trial.data.path), None)
        return options


def _reference(ledger: Ledger) -> str:
    """The arguments that name a search on the command line."""
    root = paths.for_display(paths.parent(ledger.uri))
    return ledger.name if root == "runs" else f"{ledger.name} tracking.runs={root}"


def _check_ended(ledger: Ledger, trials: Sequence[Trial]) -> None:
    """Refuse to continue while some trials were held up by an outage.

    Raises:
        SearchError: These trials, and how to resume them.
    """
    held_up = [trial.name for trial in trials if trial.status == "running"]
    if held_up:
        raise SearchError(
            f"{', '.join(held_up)} did not come to an end, and may yet; go on with: bcl-ray search "
            f"--resume {_reference(ledger)}"
        )


def _no_winner(trials: Sequence[Trial], total: int) -> str:
    reasons = dict.fromkeys(str(trial.reason) for trial in trials if trial.reason)
    return f"no trial finished: {len(trials)} of {total} were started, and failed: " + "; ".join(
        list(reasons)[:3]
    )
