"""What a sweep reports: events to its caller, records to MLflow, and files."""

from collections.abc import Mapping
from pathlib import Path

from bcl_ray.runs.events import Event, Follow
from bcl_ray.storage import files
from bcl_ray.tracking.tracker import Tracker
from bcl_ray.tuning.trials import OPEN


class Reporter:
    """Passes on events to the caller, and the number of ended trials to MLflow.

    Args:
        tracker: Tracker of the sweep.
        follow: The caller's function.
        seeks_best: Report the best score so far too. Trials with a seed are then not counted,
            because they repeat others.
    """

    def __init__(self, tracker: Tracker, follow: Follow, *, seeks_best: bool) -> None:
        self._tracker, self._follow, self._seeks_best = tracker, follow, seeks_best
        self._ended: dict[str, float | None] = {}  # score by trial; None: the trial did not finish

    def __call__(self, event: Event) -> None:
        """Report an event of a trial, or a note."""
        self._follow(event)
        if event["kind"] != "trial" or event["status"] in OPEN or event["trial"] in self._ended:
            return
        if self._seeks_best and event["seed"] is not None:
            return
        self._ended[event["trial"]] = event["score"] if event["status"] == "finished" else None
        scores = [score for score in self._ended.values() if score is not None]
        best = {"score/best": max(scores)} if self._seeks_best and scores else {}
        count = len(self._ended)
        self._tracker.metrics({**best, "trials/ended": count}, count)

    def note(self, text: str) -> None:
        """Show a message to the user."""
        self._follow({"kind": "note", "text": text})


def publish(contents: Mapping[str, bytes], uri: str, folder: Path, tracker: Tracker) -> None:
    """Write the files of a result to a folder or URI, to a local folder, and to MLflow.

    Args:
        contents: Content of each file, by its path below the folder.
        uri: The folder.
        folder: Local folder, from which MLflow gets its copy.
        tracker: Tracker of the MLflow run.
    """
    for name, content in contents.items():
        files.write_bytes(files.join(uri, name), content)
        files.write_bytes(str(folder / name), content)
        tracker.artifact(folder / name, str(Path(name).parent) if "/" in name else "")
