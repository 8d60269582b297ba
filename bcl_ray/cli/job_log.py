"""How the log of a job is shown: its events as a display, its other lines as they are."""

import contextlib
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NoReturn

import typer

from bcl_ray.display.terminal import print_line
from bcl_ray.machine.messages import notify

if TYPE_CHECKING:
    from ray.job_submission import JobDetails
    from rich.console import Console

    from bcl_ray.ops.jobs.client import JobClient

# Lines that Ray writes into a log before the job does.
RAY_LINES = re.compile(r"Running entrypoint for job |\d{4}-\S+ \S+\s+INFO job_manager\.py:")


def follow_to_exit(
    cluster: "JobClient", name: str, address: str | None, screen: "Console"
) -> NoReturn:
    """Follow a job, and exit with the status of its driver; Ctrl-C detaches."""
    from bcl_ray.ops.jobs.follow import follow

    try:
        with _viewer(screen) as show:
            job = follow(cluster, name, show, notify)
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        notify(f"detached, and the job goes on; {follow_commands(name, address)}")
        raise typer.Exit(130) from None
    if job.status == "SUCCEEDED":
        raise typer.Exit(0)
    notify(f"job {name} {status_of(job)}: {message_of(job)}")
    raise typer.Exit(130 if job.status == "STOPPED" else job.driver_exit_code or 1)


def follow_commands(name: str, address: str | None) -> str:
    """The commands that follow and stop a job, with the address if it was an option."""
    option = f" --address {address}" if address else ""
    return (
        f"follow it with `bcl-ray jobs logs {name} --follow{option}`, "
        f"stop it with `bcl-ray jobs stop {name}{option}`"
    )


def show_log(lines: Iterable[str], screen: "Console") -> None:
    """Show all lines of a log."""
    with _viewer(screen) as show:
        for line in lines:
            show(line)


def show_rest_of_log(
    cluster: "JobClient", name: str, lines_before: int, screen: "Console"
) -> "JobDetails":
    """Follow a job, and show what it writes from now on, but for its events.

    Args:
        lines_before: Number of lines that the log has now, which are not shown.

    Returns:
        The record of the ended job.
    """
    from bcl_ray.ops.jobs.follow import follow
    from bcl_ray.runs.events import from_line

    numbers = itertools.count()

    def show(line: str) -> None:
        text, event = from_line(line)
        if next(numbers) >= lines_before and (text or event is None):
            print_line(screen, text)

    return follow(cluster, name, show, notify)


def status_of(job: "JobDetails") -> str:
    """Status of a job in lower case, such as `running`."""
    return str(job.status.value).lower()


def message_of(job: "JobDetails") -> str:
    """The first line of Ray's message on a job, which may go on with the end of its log."""
    lines = (job.message or "").strip().splitlines() or ["no message"]
    return lines[0].removesuffix(", last available logs (truncated to 20,000 chars):")


@contextlib.contextmanager
def _viewer(screen: "Console") -> Iterator[Callable[[str], None]]:
    """A function that shows one line of a log, or passes the event in it to its display."""
    from bcl_ray.display.run import RunDisplay
    from bcl_ray.display.search import SearchDisplay
    from bcl_ray.display.study import StudyDisplay
    from bcl_ray.runs.events import from_line

    displays = [RunDisplay(screen), SearchDisplay(screen), StudyDisplay(screen)]
    by_first_event = {display.first_event: display for display in displays}
    current = displays[0]
    with contextlib.ExitStack() as stack:
        for display in displays:
            stack.enter_context(display)

        def show(line: str) -> None:
            nonlocal current
            text, event = from_line(line)
            if event is not None:
                current = by_first_event.get(event["kind"], current)
                current(event)
            if (text or event is None) and not RAY_LINES.match(text):
                print_line(screen, text)

        yield show
