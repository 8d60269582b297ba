"""What a search or a study reports: events to its caller, and records to MLflow."""

from typing import Any

from bcl_ray.storage import paths
from bcl_ray.tracking.journal import Subject
from bcl_ray.tracking.tracker import Tracker
from bcl_ray.tuning.search_ledger import SearchLedger
from bcl_ray.tuning.trials import OPEN
from bcl_ray.tuning.tune_searcher import Follow


class Reporter:
    """Passes on events to the caller, and the number of ended trials to MLflow."""

    def __init__(self, tracker: Tracker, follow: Follow) -> None:
        self._tracker, self._follow = tracker, follow
        self._ended: dict[str, float | None] = {}  # score by trial; None: the trial did not finish

    def __call__(self, event: dict[str, Any]) -> None:
        """Report an event of a trial, or a note."""
        self._follow(event)
        if event["kind"] != "trial" or not self._counts(event):
            return
        if event["status"] not in OPEN and event["trial"] not in self._ended:
            self._ended[event["trial"]] = event["score"] if event["status"] == "finished" else None
            count = len(self._ended)
            self._tracker.metrics({**self._best(), "trials/ended": count}, count)

    def _counts(self, event: dict[str, Any]) -> bool:  # noqa: ARG002  a search looks at it
        """Whether a trial is one of those that are counted."""
        return True

    def _best(self) -> dict[str, float]:
        """The best score so far, if trials are compared by it."""
        return {}

    def note(self, text: str) -> None:
        """Show a message to the user."""
        self._follow({"kind": "note", "text": text})


class SearchReporter(Reporter):
    """Reports the best score so far too."""

    def _counts(self, event: dict[str, Any]) -> bool:
        return event["seed"] is None  # a repeat is no further trial

    def _best(self) -> dict[str, float]:
        scores = [score for score in self._ended.values() if score is not None]
        return {"score/best": max(scores)} if scores else {}


def start_event(ledger: SearchLedger, capacity: int) -> dict[str, Any]:
    """The event at the start of a search; `slots` is the number of trials that run at once."""
    settings, extent, experiment = ledger.settings, ledger.extent, ledger.experiment
    return {
        "kind": "search",
        "search": ledger.name,
        "folder": paths.for_display(ledger.uri),
        "recipe": experiment.name,
        "data": paths.for_display(experiment.data.path),
        "trials": extent.trials,
        "slots": capacity,
        "workers": extent.of_trial(experiment).scale.shown_workers,
        "epochs": experiment.train.epochs,
        "searcher": settings.searcher,
        "scheduler": settings.scheduler,
        "metric": settings.metric,
        "space": [str(parameter) for parameter in ledger.space.parameters],
    }


def search_subject(ledger: SearchLedger) -> Subject:
    """The identity, parameters and tags of a search's run in MLflow."""
    settings, experiment = ledger.settings, ledger.experiment
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
