"""What all displays of events have in common."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Self

from rich.console import Console

from bcl_ray.display.terminal import print_line
from bcl_ray.runs.events import Event


class Display(ABC):
    """Shows the events of one command; a context that ends what moves on the screen.

    Events from a log have their own times; for others, it is the time at which they are shown.
    """

    first_event: str
    """The kind of event with which the command begins."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._start_time = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def __call__(self, event: Event) -> None:
        """Show one event; ignore kinds of later versions."""
        if show := self._shown_by().get(event["kind"]):
            show(event)

    @abstractmethod
    def _shown_by(self) -> Mapping[str, Callable[[Event], None]]:
        """For each kind of event, the method that shows it."""

    @abstractmethod
    def _stop(self) -> None:
        """End what moves on the screen."""

    def _seconds(self, event: Event) -> float:
        """The time of an event, in seconds since the command began."""
        return float(event.get("at", time.monotonic() - self._start_time))

    def _print(self, line: str, style: str | None = None) -> None:
        print_line(self.console, line, style)

    def _note(self, event: Event) -> None:
        self._print(event["text"], style="yellow")

    def _warn_untracked(self, event: Event, remedy: str = "") -> None:
        """Tell why MLflow does not have everything at the end."""
        text = f"MLflow did not accept everything ({event['problem']}){remedy}"
        self._print(text, style="yellow")
