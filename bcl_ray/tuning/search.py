"""A search: its own trials, then repeats of the best ones with other seeds, then the winner."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray

from bcl_ray.data.shards import MANIFEST, read_manifest
from bcl_ray.data.shards.holdout import hold_out, own_validation
from bcl_ray.experiment.open_options import resolved
from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.ray_runtime.connection import Resources
from bcl_ray.runs import identity, run_folder
from bcl_ray.runs.budget import budget
from bcl_ray.storage import files
from bcl_ray.tracking.connection import tracking_uri
from bcl_ray.tracking.journal import Subject
from bcl_ray.tracking.tracker import Tracker
from bcl_ray.tuning import search_ledger
from bcl_ray.tuning.driver import Sweep, check_ended, check_result, drive
from bcl_ray.tuning.reporter import SearchReporter, search_subject, start_event
from bcl_ray.tuning.samplers import make_sampler
from bcl_ray.tuning.search_ledger import SearchLedger
from bcl_ray.tuning.settings import Extent, Settings, check_search
from bcl_ray.tuning.trials import Trial, own_trials, with_repeats
from bcl_ray.tuning.tune_run import TuneRunner
from bcl_ray.tuning.tune_searcher import Follow
from bcl_ray.tuning.winner import conclude


def search(
    name: str,
    experiment: Experiment,
    settings: Settings,
    extent: Extent,
    *,
    follow: Follow,
    resume: bool = False,
) -> dict[str, Any]:
    """Run a search to its end, and return the content of its event `winner`.

    Args:
        name: Name of the search; its folder is <tracking.runs>/<name>.
        experiment: Experiment whose options are searched.
        settings: Settings of the search.
        extent: Size of the search.
        follow: Called from any thread with events: `search`, `trial`, `confirm`, `note`, `winner`.
        resume: Resume a search that exists.

    Raises:
        ValueError: The search cannot work, its name is taken, or it began with another
            configuration. Nothing was written.
        LeaseHeldError, LeaseLostError, UnfinishedError, Stopped: As of `driver.drive`.
    """
    experiment = run_folder.with_absolute_paths(experiment)
    return drive(_Search(name, experiment, settings, extent, resume=resume), follow)


class _Search(Sweep):
    """A search, checked."""

    kind, last_event = identity.SEARCH, "winner"
    _ledger: SearchLedger

    def __init__(
        self,
        name: str,
        experiment: Experiment,
        settings: Settings,
        extent: Extent,
        *,
        resume: bool,
    ) -> None:
        self._experiment, self._settings, self._extent = experiment, settings, extent
        self._manifest = manifest = read_manifest(experiment.data.path)
        uri = run_folder.run_uri(name, experiment.tracking.runs)
        check_search(name, experiment, settings, extent, manifest, connected=ray.is_initialized())
        tracking_uri(experiment)  # a wrong address is an error before anything starts
        if resume:
            self._ledger = search_ledger.open_search(uri)
            fingerprint = manifest.fingerprint
            search_ledger.check_resumable(self._ledger, settings, experiment, fingerprint)
        else:
            search_ledger.check_free(uri, settings, experiment)
        super().__init__(
            uri,
            begun=resume,
            trials=[(resolved(extent.of_trial(experiment)), manifest)],
            count=extent.trials,
            max_concurrent=extent.max_concurrent,
        )

    def open(self, resources: Resources) -> SearchLedger:
        del resources  # of no interest to a search
        if self.begun:
            self._ledger = search_ledger.resume(self._ledger, self._extent, self._experiment)
        else:
            self._ledger = search_ledger.begin(
                self.uri,
                self._settings,
                self._extent,
                self._experiment,
                self._manifest.fingerprint,
            )
        return self._ledger

    def start_event(self, capacity: int) -> dict[str, Any]:
        return start_event(self._ledger, capacity)

    def subject(self) -> Subject:
        return search_subject(self._ledger)

    def record_start(self, tracker: Tracker) -> None:
        data = self._experiment.data
        tracker.dataset(self._manifest, data.path, data.train_split, "training")
        tracker.dataset(self._manifest, data.path, data.eval_split, "test")

    def reporter(self, tracker: Tracker, follow: Follow) -> SearchReporter:
        return SearchReporter(tracker, follow)

    def trial_options(self) -> list[str]:
        """The options of workers and data; cuts the validation split, unless there is one.

        Raises:
            ValueError: No trial can work with these options.
        """
        (trial, _), *_ = self.trials
        options = [
            f"scale.workers={trial.scale.workers}",
            f"scale.gpus_per_worker={trial.scale.gpus_per_worker}",
            *self._data_options(),
        ]
        trial = resolved(with_overrides(self._experiment, options))
        # The whole training split passed this check, but trials have fewer images.
        budget(trial, read_manifest(trial.data.path), None)
        return options

    def _data_options(self) -> list[str]:
        data, settings = self._experiment.data, self._settings
        validation_split = own_validation(self._manifest, data)
        if validation_split is not None:
            return [f"data.eval_split={validation_split}", "data.validation_split=null"]
        target = self._ledger.file("data")
        if not files.exists(files.join(target, MANIFEST)):
            hold_out(data.path, target, settings.validation, settings.seed, split=data.train_split)
        return [f"data.path={target}", "data.train_split=train", "data.eval_split=validation"]

    def run(self, runner: TuneRunner) -> list[Trial]:
        """Run the search's own trials, then repeats of the best ones."""
        trials = self._ledger.trials()
        for trial in trials:
            runner.follow(trial.to_event(old=True))
        own = self._run_own_trials(runner, own_trials(trials))
        trials = [*own, *(trial for trial in trials if trial.seed is not None)]
        if self._extent.confirm is None:
            return trials
        k, n = self._extent.confirm
        trials = with_repeats(trials, k, n, self._experiment.train.seed)
        runner.follow({"kind": "confirm", "runs": len(trials) - len(own)})
        trials = runner.run(trials)
        check_ended(self._ledger, trials)
        return trials

    def _run_own_trials(self, runner: TuneRunner, trials: Sequence[Trial]) -> list[Trial]:
        """Run the search's own trials, at least one of which must finish."""
        settings, total = self._settings, self._extent.trials
        sampler = make_sampler(settings.searcher, self._ledger.space, settings.seed, len(trials))
        for trial in trials:
            if not trial.is_open:
                sampler.tell(trial.number, trial.point, trial.scores, trial.status)
        trials = runner.run(trials, total=total, sampler=sampler)
        check_result(trials, total)
        check_ended(self._ledger, trials)
        return list(trials)

    def conclude(
        self, trials: list[Trial], tracker: Tracker, folder: Path, notify: Callable[[str], None]
    ) -> dict[str, Any]:
        return conclude(
            self._ledger, trials, self._manifest, tracker=tracker, folder=folder, notify=notify
        )
