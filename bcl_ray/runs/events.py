"""A run's events as lines of text, so that a run can be followed from another machine."""

import json
import os
import sys
import time
from dataclasses import asdict
from typing import Any

from bcl_ray.experiment.options import Experiment
from bcl_ray.machine.errors import UserError
from bcl_ray.runs.budget import Budget

SWITCH = "BCL_RAY_EVENTS"  # in a job's environment: json, for lines instead of a display
MARK = "bcl_ray event: "
TICK = 1.0  # seconds between two lines of steps, which stay in the job's log for good

Event = dict[str, Any]


def to_line(event: Event) -> str:
    """One event of `training.driver.fit` as a line of text, with what a display needs of it."""
    content = {name: value for name, value in event.items() if name != "history"}
    if "records" in event:
        content["records"] = event["records"][-1:]  # a log of all of them would grow as a square
    if "experiment" in event:
        content["experiment"] = event["experiment"].model_dump(mode="json")
    if "budget" in event:
        content["budget"] = asdict(event["budget"])
    return MARK + json.dumps(content, separators=(",", ":"))


def from_line(line: str) -> tuple[str, Event | None]:
    """The text of a line, and the event at its end; a line without one is all text."""
    text, mark, tail = line.partition(MARK)
    if not mark:
        return line, None
    try:
        event = json.loads(tail)
        if not isinstance(event["kind"], str):
            return line, None
        if "experiment" in event:
            event["experiment"] = Experiment.model_validate(event["experiment"])
        if "budget" in event:
            event["budget"] = Budget(**event["budget"])
    except (ValueError, TypeError, KeyError):
        return line, None
    return text, event


def requested() -> bool:
    """Whether this process was asked to tell its events in lines.

    Raises:
        ValueError: a value that is not known.
    """
    value = os.environ.get(SWITCH, "")
    if value not in ("", "json"):
        raise UserError(f"{SWITCH} is '{value}': it must be json, or not set")
    return value == "json"


class EventWriter:
    """Prints a run's events as lines, each with the seconds since the command, as `at`."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._told = -TICK  # seconds of the last step

    def __enter__(self) -> "EventWriter":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is left to end."""

    def __call__(self, event: Event) -> None:
        """Print one event; steps that follow each other closely are left out."""
        at = time.monotonic() - self._began
        if event["kind"] == "step":
            if at - self._told < TICK:
                return
            self._told = at
        sys.stdout.write(to_line({**event, "at": round(at, 1)}) + "\n")
        sys.stdout.flush()
