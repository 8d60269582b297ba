"""Commands on a cluster's jobs: list, status, logs, stop."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from bcl_ray.cli.job_log import (
    follow_to_exit,
    message_of,
    show_log,
    show_rest_of_log,
    status_of,
)
from bcl_ray.cli.options import Address, CaFile
from bcl_ray.display.terminal import console, print_line
from bcl_ray.machine.errors import UserError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

    from bcl_ray.ops.jobs.client import JobClient

MOST_LISTED = 20

app = typer.Typer()
jobs_app = typer.Typer(help="Jobs on a cluster.", no_args_is_help=True)
app.add_typer(jobs_app, name="jobs")

Name = Annotated[
    str,
    typer.Argument(metavar="JOB", help="Name of the job, as `submit` and `jobs list` print it."),
]


@jobs_app.command("list")
def jobs_list(
    address: Address = None,
    ca_file: CaFile = None,
    every: Annotated[
        bool, typer.Option("--all", help=f"All jobs, not only the latest {MOST_LISTED}.")
    ] = False,
) -> None:
    """List the latest jobs, the newest first."""
    from bcl_ray.display.tables import build_table

    jobs = _connect(address, ca_file).jobs()
    if not jobs:
        typer.echo("no jobs yet")
        return
    rows = [
        (
            str(job.submission_id),
            status_of(job),
            _start_time(job),
            _duration(job),
            (job.metadata or {}).get("run", ""),
        )
        for job in (jobs if every else jobs[:MOST_LISTED])
    ]
    columns = ("job", "status", "started", "took", "run")
    text = ("job", "status", "started", "run")
    console().print(build_table(columns, rows, text=text, wrap=False))


@jobs_app.command("status")
def jobs_status(name: Name, address: Address = None, ca_file: CaFile = None) -> None:
    """Show the state of a job, and its record."""
    job = _connect(address, ca_file).job(name)
    rows = {
        "job": job.submission_id,
        "status": status_of(job),
        "started": _start_time(job),
        "took": _duration(job),
        "message": message_of(job),
        "command": job.entrypoint,
        **{key: text for key, text in sorted((job.metadata or {}).items()) if "job_" not in key},
    }
    width = max(map(len, rows))
    for key, text in rows.items():
        print_line(console(), f"{key:<{width}}  {text}")


@jobs_app.command("logs")
def jobs_logs(
    name: Name,
    address: Address = None,
    ca_file: CaFile = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Follow it until the job ends; Ctrl-C detaches.")
    ] = False,
) -> None:
    """Show the log of a job."""
    cluster = _connect(address, ca_file)
    cluster.job(name)
    screen = console()
    if follow:
        follow_to_exit(cluster, name, address, screen)
    show_log(cluster.get_job_logs(name).splitlines(), screen)


@jobs_app.command("stop")
def jobs_stop(name: Name, address: Address = None, ca_file: CaFile = None) -> None:
    """Stop a job, which gets time for a last checkpoint, and wait for its end."""
    cluster = _connect(address, ca_file)
    job = cluster.job(name)
    if job.status.is_terminal():
        raise UserError(f"job {name} has ended before: {status_of(job)}")
    variables = (job.runtime_env or {}).get("env_vars", {})
    # Jobs not sent by `submit` lack both variables; the head node's defaults apply, which this
    # process does not know.
    signal, seconds = (variables.get(f"RAY_JOB_STOP_{n}") for n in ("SIGNAL", "WAIT_TIME_S"))
    lines_before = len(cluster.get_job_logs(name).split("\n")) - 1
    begin = time.monotonic()
    cluster.stop_job(name)
    screen = console()
    text = "the job was asked to end"
    if seconds:
        text = f"{signal} sent; the job has {seconds} s to end"
    screen.print(text, highlight=False)
    job = show_rest_of_log(cluster, name, lines_before, screen)
    took = time.monotonic() - begin
    killed = " (killed: it had not ended by itself)" if took >= float(seconds or "inf") else ""
    screen.print(f"job {name} {status_of(job)} after {took:.0f} s{killed}", highlight=False)
    if command := _resume_command(job.metadata or {}):
        print_line(screen, f"go on with: {command}")


def _resume_command(record: dict[str, str]) -> str | None:
    """The command that continues a job's work; None if there is none."""
    run, kind = record.get("run", ""), record.get("kind")
    if kind == "train":
        return f"bcl-ray submit train --resume {run}"
    if kind == "search":
        root, _, search = run.rpartition("/")
        return f"bcl-ray submit search --resume {search} tracking.runs={root}"
    if kind == "study":
        return f"bcl-ray submit study {record.get('command', '')}"
    return None


def _connect(address: str | None, ca_file: str | None) -> "JobClient":
    from bcl_ray.ops.jobs.client import JobClient, dashboard_address

    return JobClient(dashboard_address(address), ca_file)


def _start_time(job: "JobDetails") -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime((job.start_time or 0) / 1000))


def _duration(job: "JobDetails") -> str:
    """Time since the start, or between start and end, as H:MM:SS."""
    end = job.end_time or time.time() * 1000
    minutes, seconds = divmod(round((end - (job.start_time or end)) / 1000), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
