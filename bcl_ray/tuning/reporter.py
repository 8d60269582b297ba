"""What a search reports: events to its caller, and records to MLflow."""

from typing import Any

from bcl_ray.data.shards import Manifest
from bcl_ray.runs import run_folder
from bcl_ray.storage import paths
from bcl_ray.tracking.journal import Subject
from bcl_ray.tracking.tracker import Tracker
from bcl_ray.tuning.ledger import Ledger
from bcl_ray.tuning.trials import Trial
from bcl_ray.tuning.tune_searcher import Follow


class SearchReporter:
    """Passes on events to the caller, and the best score so far to MLflow."""

    def __init__(self, tracker: Tracker, follow: Follow) -> None:
        self._tracker, self._follow = tracker, follow
        self._ended: dict[str, float | None] = {}  # score by trial; None: the trial did not finish

    def __call__(self, event: dict[str, Any]) -> None:
        """Report an event of a trial, or a note."""
        self._follow(event)
        if event["kind"] != "trial" or event["seed"] is not None:  # a repeat is no further trial
            return
        if event["status"] != "running" and event["trial"] not in self._ended:
            self._ended[event["trial"]] = event["score"] if event["status"] == "finished" else None
            scores = [score for score in self._ended.values() if score is not None]
            best = {"score/best": max(scores)} if scores else {}
            self._tracker.metrics({**best, "trials/ended": len(self._ended)}, len(self._ended))

    def show_earlier(self, trial: Trial) -> None:
        """Report a trial of an earlier process."""
        self({**trial.to_event(), "old": True})

    def show_confirmation(self, runs: int) -> None:
        """Report the number of repeats with other seeds, those that have ended included."""
        self._follow({"kind": "confirm", "runs": runs})

    def note(self, text: str) -> None:
        """Show a message to the user."""
        self._follow({"kind": "note", "text": text})


def start_event(ledger: Ledger, capacity: int, tracking_uri: str) -> dict[str, Any]:
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
        "tracking_uri": tracking_uri,
    }


def subject(ledger: Ledger) -> Subject:
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


def record_start(tracker: Tracker, ledger: Ledger, manifest: Manifest) -> None:
    """Record the start of a search, its experiment and its data."""
    experiment, data = ledger.experiment, ledger.experiment.data
    tracker.start()
    tracker.text(run_folder.EXPERIMENT_FILE, experiment.to_yaml())
    tracker.dataset(manifest, data.path, data.train_split, "training")
    tracker.dataset(manifest, data.path, data.eval_split, "test")
