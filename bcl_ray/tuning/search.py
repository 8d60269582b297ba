"""A search: its own trials, then repeats of the best ones with other seeds, then the winner."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bcl_ray.data.shards import MANIFEST, read_manifest
from bcl_ray.data.shards.holdout import hold_out, own_validation
from bcl_ray.experiment.open_options import resolved
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.ray_runtime.connection import Resources
from bcl_ray.runs import identity
from bcl_ray.runs.budget import budget
from bcl_ray.runs.events import Event, Follow
from bcl_ray.storage import files, paths
from bcl_ray.storage.fence import Fence
from bcl_ray.tracking.journal import Subject
from bcl_ray.tracking.tracker import Tracker
from bcl_ray.tuning.driver import Sweep, check_ended, check_result, drive
from bcl_ray.tuning.samplers import make_sampler
from bcl_ray.tuning.search_ledger import CheckedSearch, SearchLedger
from bcl_ray.tuning.trials import Trial, own_trials, with_repeats
from bcl_ray.tuning.tune_run import TuneRunner
from bcl_ray.tuning.tune_searcher import NewTrials
from bcl_ray.tuning.winner import conclude


def run_search(checked: CheckedSearch, *, follow: Follow) -> dict[str, Any]:
    """Run a search to its end, and return the content of its event `winner`.

    Args:
        checked: The search.
        follow: Called from any thread with events: `search`, `trial`, `confirm`, `note`, `winner`.

    Raises:
        ValueError, LeaseHeldError, LeaseLostError, UnfinishedError, Stopped: As of `driver.drive`.
    """
    return drive(_Search(checked), follow)


class _Search(Sweep):
    """A search, checked."""

    kind, last_event, seeks_best = identity.SEARCH, "winner", True
    _ledger: SearchLedger

    def __init__(self, checked: CheckedSearch) -> None:
        self._checked, self._manifest = checked, checked.manifest
        self._experiment, self._settings = checked.experiment, checked.settings
        self._extent = extent = checked.extent
        super().__init__(
            checked.uri,
            begun=checked.ledger is not None,
            samples=[(resolved(extent.of_trial(checked.experiment)), checked.manifest)],
            count=extent.trials,
            max_concurrent=extent.max_concurrent,
        )

    def open(self, resources: Resources, fence: Fence) -> SearchLedger:
        del resources  # of no interest to a search
        self._ledger = self._checked.write(fence)
        return self._ledger

    def start_event(self, capacity: int) -> Event:
        settings, extent, experiment = self._settings, self._extent, self._experiment
        return {
            "kind": "search",
            "search": self._ledger.name,
            "folder": paths.for_display(self.uri),
            "recipe": experiment.name,
            "data": paths.for_display(experiment.data.path),
            "trials": extent.trials,
            "slots": capacity,  # trials at once
            "workers": extent.of_trial(experiment).scale.shown_workers,
            "epochs": experiment.train.epochs,
            "searcher": settings.searcher,
            "scheduler": settings.scheduler,
            "metric": settings.metric,
            "space": [str(parameter) for parameter in self._ledger.space.parameters],
        }

    def subject(self) -> Subject:
        ledger, settings, experiment = self._ledger, self._settings, self._experiment
        parameters = {
            "searcher": settings.searcher,
            "scheduler": settings.scheduler,
            "metric": settings.metric,
            "validation": str(settings.validation),
            **{parameter.name: str(parameter) for parameter in ledger.space.parameters},
        }
        tags = {
            "recipe": experiment.name,
            "digest": ledger.digest,
            "kind": "search",
            "data.fingerprint": ledger.fingerprint,
        }
        return Subject(ledger.uid, ledger.name, experiment.tracking.experiment, parameters, tags)

    def record_start(self, tracker: Tracker) -> None:
        data = self._experiment.data
        tracker.dataset(self._manifest, data.path, data.train_split, "training")
        tracker.dataset(self._manifest, data.path, data.eval_split, "test")

    def trial_options(self) -> list[str]:
        """The options of workers and data; cuts the validation split, unless there is one.

        Raises:
            ValueError: No trial can work with these options.
        """
        ((trial, _),) = self.samples
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
            runner.engine.follow(trial.to_event(old=True))
        own = self._run_own_trials(runner, own_trials(trials))
        trials = [*own, *(trial for trial in trials if trial.seed is not None)]
        if self._extent.confirm is None:
            return trials
        k, n = self._extent.confirm
        trials = with_repeats(trials, k, n, self._experiment.train.seed)
        runner.engine.follow({"kind": "confirm", "runs": len(trials) - len(own)})
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
        trials = runner.run(trials, NewTrials(total, sampler, settings.scheduler))
        check_result(trials, total)
        check_ended(self._ledger, trials)
        return list(trials)

    def conclude(
        self, trials: list[Trial], tracker: Tracker, folder: Path, notify: Callable[[str], None]
    ) -> dict[str, Any]:
        return conclude(
            self._ledger, trials, self._manifest, tracker=tracker, folder=folder, notify=notify
        )
