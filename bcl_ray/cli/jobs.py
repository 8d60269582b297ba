"""Commands on a cluster's jobs: list, status, logs, stop."""

import itertools
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from bcl_ray.display.terminal import console
from bcl_ray.machine.errors import UserError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails
    from rich.console import Console

    from bcl_ray.ops.jobs.client import JobClient

app = typer.Typer()
jobs_app = typer.Typer(help="Jobs on a cluster.", no_args_is_help=True)
app.add_typer(jobs_app, name="jobs")


Address = Annotated[
    str | None,
    typer.Option(
        help="The cluster's dashboard, http(s)://HOST:8265; else RAY_API_SERVER_ADDRESS or "
        "RAY_ADDRESS."
    ),
]
CaFile = Annotated[
    str | None,
    typer.Option(help="Certificates to trust for https; else REQUESTS_CA_BUNDLE or SSL_CERT_FILE."),
]
# What Ray writes into a job's log before the job does.
RAYS_OWN = re.compile(r"Running entrypoint for job |\d{4}-\S+ \S+\s+INFO job_manager\.py:")
Name = Annotated[str, typer.Argument(metavar="JOB", help="As `submit` and `jobs list` print it.")]


@jobs_app.command("list")
def jobs_list(
    address: Address = None,
    ca_file: CaFile = None,
    every: Annotated[bool, typer.Option("--all", help="Those that ended long ago too.")] = False,
) -> None:
    """The latest jobs, the newest first."""
    from rich.table import Table

    jobs = _cluster(address, ca_file).jobs()
    table = Table(box=None, pad_edge=False, header_style="")
    for column in ("job", "status", "started", "took", "run"):
        table.add_column(column, justify="right" if column == "took" else "left", no_wrap=True)
    for job in jobs if every else jobs[:20]:
        run = (job.metadata or {}).get("run", "")
        table.add_row(job.submission_id, _status(job), _clock(job), _took(job), run)
    console().print(table if jobs else "no jobs yet")


@jobs_app.command("status")
def jobs_status(name: Name, address: Address = None, ca_file: CaFile = None) -> None:
    """What became of a job, and what it was sent with."""
    job = _cluster(address, ca_file).job(name)
    rows = {
        "job": job.submission_id,
        "status": _status(job),
        "started": _clock(job),
        "took": _took(job),
        "message": _message(job),
        "command": job.entrypoint,
        **{key: text for key, text in sorted((job.metadata or {}).items()) if "job_" not in key},
    }
    width = max(map(len, rows))
    for key, text in rows.items():
        _print(console(), f"{key:<{width}}  {text}")


@jobs_app.command("logs")
def jobs_logs(
    name: Name,
    address: Address = None,
    ca_file: CaFile = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Until the job ends; Ctrl-C detaches.")
    ] = False,
) -> None:
    """What a job has said so far."""
    cluster = _cluster(address, ca_file)
    cluster.job(name)
    screen = console()
    if follow:
        attend(cluster, name, address, screen)
    with _shown(screen) as show:
        for line in cluster.get_job_logs(name).splitlines():
            show(line)


@jobs_app.command("stop")
def jobs_stop(name: Name, address: Address = None, ca_file: CaFile = None) -> None:
    """End a job: it gets time for a last checkpoint, and is waited for."""
    cluster = _cluster(address, ca_file)
    job = cluster.job(name)
    if job.status.is_terminal():
        raise UserError(f"job {name} has ended before: {_status(job)}")
    settings = (job.runtime_env or {}).get("env_vars", {})
    # A job that `submit` did not send has those of the head, which the client is not told.
    signal, given = (settings.get(f"RAY_JOB_STOP_{n}") for n in ("SIGNAL", "WAIT_TIME_S"))
    seconds = float(given or "inf")
    said = len(cluster.get_job_logs(name).split("\n")) - 1
    begun = time.monotonic()
    cluster.stop_job(name)
    screen = console()
    has = f"{signal} sent; the job has {given} s to end" if given else "the job was asked to end"
    screen.print(has, highlight=False)
    from bcl_ray.ops.jobs.follow import follow

    job = follow(cluster, name, _last_words(said, screen), _note)
    took = time.monotonic() - begun
    killed = " (killed: it had not ended by itself)" if took >= seconds else ""
    screen.print(f"job {name} {_status(job)} after {took:.0f} s{killed}", highlight=False)
    run, kind = ((job.metadata or {}).get(key, "") for key in ("run", "kind"))
    if kind == "train":
        _print(screen, f"go on with: bcl-ray submit train --resume {run}")
    if kind == "search":
        root, _, search = run.rpartition("/")
        again = f"--resume {search} tracking.runs={root}"
        _print(screen, f"go on with: bcl-ray submit search {again}")


def attend(cluster: "JobClient", name: str, address: str | None, screen: "Console") -> NoReturn:
    """Follow a job, and end as it ended; Ctrl-C detaches.

    Args:
        cluster: which has it.
        name: of the job.
        address: the option, for the commands that are shown.
        screen: where its progress is shown.
    """
    from bcl_ray.ops.jobs.follow import follow

    try:
        with _shown(screen) as show:
            job = follow(cluster, name, show, _note)
    except KeyboardInterrupt:
        sys.stderr.write(
            f"\nbcl-ray: detached, and the job goes on; {how_to_come_back(name, address)}\n"
        )
        raise typer.Exit(130) from None
    if job.status == "SUCCEEDED":
        raise typer.Exit(0)
    sys.stderr.write(f"bcl-ray: job {name} {_status(job)}: {_message(job)}\n")
    raise typer.Exit(130 if job.status == "STOPPED" else job.driver_exit_code or 1)


def how_to_come_back(name: str, address: str | None) -> str:
    """The commands that follow and stop a job, as a person here would type them."""
    option = f" --address {address}" if address else ""
    return (
        f"follow it with `bcl-ray jobs logs {name} --follow{option}`, "
        f"stop it with `bcl-ray jobs stop {name}{option}`"
    )


@contextmanager
def _shown(screen: "Console") -> Iterator[Callable[[str], None]]:
    """What shows a line of a job's log: events as a display, anything else as it is."""
    from bcl_ray.display.run import RunDisplay
    from bcl_ray.display.search import KINDS, SearchDisplay
    from bcl_ray.runs.events import from_line

    with RunDisplay(screen) as of_run, SearchDisplay(screen) as of_search:

        def show(line: str) -> None:
            text, event = from_line(line)
            if event is not None:
                (of_search if event["kind"] in KINDS else of_run)(event)
            if (text or event is None) and not RAYS_OWN.match(text):
                _print(screen, text)

        yield show


def _last_words(said: int, screen: "Console") -> Callable[[str], None]:
    """What shows the texts of a log that come after the first `said` lines."""
    from bcl_ray.runs.events import from_line

    numbers = itertools.count()

    def show(line: str) -> None:
        text, event = from_line(line)
        if next(numbers) >= said and (text or event is None):
            _print(screen, text)

    return show


def _print(screen: "Console", text: str) -> None:
    screen.print(text, markup=False, highlight=False, soft_wrap=True)


def _note(text: str) -> None:
    sys.stderr.write(f"bcl-ray: {text}\n")


def _cluster(address: str | None, ca_file: str | None) -> "JobClient":
    from bcl_ray.ops.jobs.client import JobClient, address_of

    return JobClient(address_of(address), ca_file)


def _status(job: "JobDetails") -> str:
    return str(job.status.value).lower()


def _message(job: "JobDetails") -> str:
    """What became of a job, in a line; its log has what comes after."""
    lines = (job.message or "").strip().splitlines() or ["no message"]
    return lines[0].removesuffix(", last available logs (truncated to 20,000 chars):")


def _clock(job: "JobDetails") -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime((job.start_time or 0) / 1000))


def _took(job: "JobDetails") -> str:
    end = job.end_time or time.time() * 1000
    minutes, seconds = divmod(round((end - (job.start_time or end)) / 1000), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
