"""Events of a run as lines of text, so that a run can be followed from another machine."""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from bcl_ray.experiment.options import Experiment
from bcl_ray.machine.errors import UserError
from bcl_ray.runs.budget import Budget

SWITCH = "BCL_RAY_EVENTS"  # environment variable of jobs: json, for lines instead of a display
MARK = "bcl_ray event: "  # comes before the JSON of an event
STEP_SECONDS = 1.0  # between two lines of steps: a job's log keeps all lines

Event = dict[str, Any]
Follow = Callable[[Event], None]
"""Takes the events of a run, as a display does."""


def to_line(event: Event) -> str:
    """Encode an event of `training.driver.fit` as a line of text, as far as a display needs it."""
    content = {name: value for name, value in event.items() if name != "history"}
    if "records" in event:
        content["records"] = event["records"][-1:]  # all of them would repeat in every line
    if "experiment" in event:
        content["experiment"] = event["experiment"].model_dump(mode="json")
    if "budget" in event:
        content["budget"] = asdict(event["budget"])
    return MARK + json.dumps(content, separators=(",", ":"))


def from_line(line: str) -> tuple[str, Event | None]:
    """Decode a line of a log.

    Returns:
        The text before the event, and the event; the whole line and None if it has no event.
    """
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
    """Whether this process is to print events as lines, rather than show a display.

    Raises:
        ValueError: The environment variable has an unknown value.
    """
    value = os.environ.get(SWITCH, "")
    if value not in ("", "json"):
        raise UserError(f"{SWITCH} is '{value}': it must be json, or not set")
    return value == "json"


class EventWriter:
    """Prints events of a run as lines; `at` in each is the seconds since the command began."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._last_step = -STEP_SECONDS  # `at` of the last step printed

    def __enter__(self) -> "EventWriter":
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing: only displays, which are used in the same way, need closing."""

    def __call__(self, event: Event) -> None:
        """Print an event, unless it is a step that closely follows another."""
        at = time.monotonic() - self._began
        if event["kind"] == "step":
            if at - self._last_step < STEP_SECONDS:
                return
            self._last_step = at
        sys.stdout.write(to_line({**event, "at": round(at, 1)}) + "\n")
        sys.stdout.flush()
