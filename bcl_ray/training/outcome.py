"""How a run ends: its errors, its result, and its report."""

import json
import logging
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from ray.train.v2.api.exceptions import ControllerError

from bcl_ray.machine.errors import FailedError
from bcl_ray.machine.versions import command
from bcl_ray.ray_runtime.connection import one_line
from bcl_ray.runs import checkpoint, run_folder
from bcl_ray.runs.events import Event
from bcl_ray.runs.run_folder import Run
from bcl_ray.storage import files
from bcl_ray.tracking.tracker import Tracker
from bcl_ray.training.monitor import RunMonitor

logger = logging.getLogger(__name__)


class TrainingError(FailedError):
    """A run ended without a result; the text says why, and how to go on."""


class MissingNodesError(TrainingError):
    """A run did not begin, because the nodes that it needs did not come."""


def failure_text(failure: Exception, run: Run, tracker: Tracker) -> str:
    """The cause of Ray's error in one line.

    The whole error goes to a file of the run's folder. It also goes to MLflow, since the head's
    disk may be lost.
    """
    file = run_folder.local_folder(run) / "error.txt"
    try:
        file.write_text(str(failure))
        tracker.artifact(file)
    except OSError as error:  # a full disk, which the cause names if it has ended training
        logger.warning("%s was not written: %s", file, error)
    if isinstance(failure, ControllerError):
        return one_line(failure.controller_failure)
    causes = list(getattr(failure, "worker_failures", {}).values()) or [failure]
    return f"the workers failed: {one_line(causes[0])} (the whole error is in {file} and in MLflow)"


def collect(run: Run, result: Any, monitor: RunMonitor) -> tuple[Event, checkpoint.State]:
    """The result of a complete run, and its last state; the model goes to MLflow.

    Args:
        run: The run.
        result: Ray Train's result.
        monitor: Monitor of the run, which has stopped.

    Raises:
        TrainingError: Metrics could not be tracked or shown.
    """
    last = files.join(run.uri, PurePosixPath(result.checkpoint.path).name)
    state = checkpoint.load(last)
    monitor.track_records(state.history)  # the last event may come after the end of training
    monitor.tracker.model(last)
    reference = run_folder.reference(run)
    if monitor.failure is not None:
        raise TrainingError(
            f"training is complete, but its metrics were not all tracked or shown: "
            f"{one_line(monitor.failure)}\nsee its results with: {command()} evaluate {reference}"
        )
    return {"run": run.name, "reference": reference, "history": state.history}, state


def write_report(
    run: Run, state: checkpoint.State, tracker: Tracker, notify: Callable[[str], None]
) -> str | None:
    """Draw the figures and the report, and track them; a failure is only shown to the user.

    Returns:
        The report's file.
    """
    folder = run_folder.local_folder(run)
    try:
        # matplotlib takes a second to import, which training need not wait for.
        from bcl_ray.report import results, summary  # noqa: PLC0415

        written = summary.write(results.from_run(run, state), folder)
    except Exception as error:
        logger.exception("the report failed")
        retry = f"bcl-ray report {run_folder.reference(run)}"
        notify(f"the report could not be drawn: {one_line(error)}; try again with: {retry}")
        return None
    for file in written:
        parent = file.parent.relative_to(folder).as_posix()
        tracker.artifact(file, "" if parent == "." else parent)
    tables = [{"path": summary.TABLE, "type": "table"}]
    tracker.tags({"mlflow.loggedArtifacts": json.dumps(tables)})  # MLflow finds its tables there
    return str(folder / summary.REPORT)
