"""A study: every cell of a grid is trained with every seed, and none is stopped early."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bcl_ray.machine.versions import versions
from bcl_ray.ray_runtime.connection import Resources
from bcl_ray.runs import identity
from bcl_ray.runs.events import Event, Follow
from bcl_ray.storage import paths
from bcl_ray.storage.fence import Fence
from bcl_ray.tracking.connection import tracking_uri
from bcl_ray.tracking.journal import Subject
from bcl_ray.tracking.tracker import Tracker
from bcl_ray.tuning.driver import Sweep, check_ended, check_result, drive
from bcl_ray.tuning.study_ledger import CheckedStudy, StudyLedger
from bcl_ray.tuning.study_report import write_report
from bcl_ray.tuning.trials import Trial
from bcl_ray.tuning.tune_run import TuneRunner


def run_study(
    checked: CheckedStudy, *, follow: Follow, max_concurrent: int | None = None
) -> dict[str, Any]:
    """Run a study to its end, and return the content of its event `result`.

    Args:
        checked: The study; trials that ended before are not run again, unless they failed.
        follow: Called from any thread with events: `study`, `trial`, `note`, `result`.
        max_concurrent: Trials at once, at most; None: as many as fit.

    Raises:
        ValueError, LeaseHeldError, LeaseLostError, UnfinishedError, Stopped: As of `driver.drive`.
    """
    tracking_uri(checked.study.cells[0].experiment)  # a wrong address is an error right now
    return drive(_Study(checked, max_concurrent), follow)


class _Study(Sweep):
    """A study, checked."""

    kind, last_event, seeks_best = identity.STUDY, "result", False
    _ledger: StudyLedger

    def __init__(self, checked: CheckedStudy, max_concurrent: int | None) -> None:
        self._checked, self._study = checked, checked.study
        super().__init__(
            checked.uri,
            begun=checked.recorded is not None,
            samples=[(cell.experiment, checked.manifest(cell)) for cell in checked.study.cells],
            count=len(checked.study.cells) * len(checked.study.seeds),
            max_concurrent=max_concurrent,
        )

    def open(self, resources: Resources, fence: Fence) -> StudyLedger:
        self._hardware = resources.described
        self._ledger = self._checked.write(fence)
        return self._ledger

    def start_event(self, capacity: int) -> Event:
        experiments = [cell.experiment for cell in self._study.cells]
        return {
            "kind": "study",
            "study": self._ledger.name,
            "folder": paths.for_display(self.uri),
            "file": self._study.file,
            "data": [paths.for_display(path) for path in self._checked.manifests],
            "cells": len(self._study.cells),
            "seeds": list(self._study.seeds),
            "trials": self.count,
            "slots": capacity,
            "epochs": max(experiment.train.epochs for experiment in experiments),
            "metric": self._ledger.metric,
        }

    def subject(self) -> Subject:
        study, ledger = self._study, self._ledger
        axes = {axis: {cell.labels[axis]: None for cell in study.cells} for axis in study.axes}
        parameters = {axis: ", ".join(labels) for axis, labels in axes.items()}
        parameters["seeds"] = ", ".join(map(str, study.seeds))
        tags = {"kind": "study", "digest": ledger.digest, "data.fingerprint": ledger.fingerprint}
        experiment = ledger.experiment.tracking.experiment
        return Subject(ledger.uid, ledger.name, experiment, parameters, tags)

    def record_start(self, tracker: Tracker) -> None:
        tracker.text("study.yaml", self._study.text)
        for path, manifest in self._checked.manifests.items():
            cell = next(c for c in self._study.cells if c.experiment.data.path == path)
            data = cell.experiment.data
            tracker.dataset(manifest, path, data.train_split, "training")
            tracker.dataset(manifest, path, data.eval_split, "test")

    def trial_options(self) -> list[str]:
        return []  # cells have their own data and workers

    def run(self, runner: TuneRunner) -> list[Trial]:
        """Train all cells with the first seed, then with the next one."""
        commit = versions().get("git.commit")
        earlier = {trial.name: trial for trial in self._ledger.trials()}
        trials = []
        for seed in self._study.seeds:
            for number, cell in enumerate(self._study.cells):
                name = cell.run_name(seed)
                trial = earlier.get(name) or Trial(name, number, dict(cell.labels), seed)
                trial.number = number  # which may have changed with the file
                if trial.status == "failed":  # perhaps for a reason that is gone
                    trial.status = "running"
                if trial.is_open:
                    trial.hardware = trial.hardware or self._hardware
                    trial.commit = trial.commit or commit
                else:
                    runner.engine.follow(trial.to_event(old=True))
                trials.append(trial)
        trials = runner.run(trials)
        check_result(trials, len(trials))
        check_ended(self._ledger, trials)
        return trials

    def conclude(
        self, trials: list[Trial], tracker: Tracker, folder: Path, notify: Callable[[str], None]
    ) -> dict[str, Any]:
        del notify
        return write_report(self._checked, trials, tracker, folder)
