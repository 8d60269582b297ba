"""The command line. Ray, torch and the rest are imported inside the commands that need them."""

import os
import sys
from subprocess import SubprocessError

import typer

from bcl_ray.cli import browse, data, insight, jobs, machines, search, submit, training, use

app = typer.Typer(
    help="Balanced Contrastive Learning for long-tailed images, on a Ray cluster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for part in (
    data.app,
    training.app,
    search.app,
    use.app,
    insight.app,
    browse.app,
    submit.app,
    jobs.app,
    machines.app,
):  # without a name: their commands are ours
    app.add_typer(part)


def main(*command: str) -> None:
    """Entry point of `bcl-ray`: an error is one line and exit status 2, or 1 if it may pass.

    Args:
        command: words that come before those of the command line.
    """
    try:
        _run(*command)
    except SystemExit as end:
        if end.code == 2 and os.environ.get("BCL_RAY_ON_MISTAKE") == "stop":  # a RayJob
            from bcl_ray.ops.jobs.own_job import stop

            stop()
        raise


def _run(*command: str) -> None:
    from bcl_ray.machine.versions import CLIENT, check_client

    try:
        if client := os.environ.get(CLIENT):  # a job
            check_client(client)
        app([*command, *sys.argv[1:]], prog_name="bcl-ray")
    except (ValueError, OSError, ModuleNotFoundError, SubprocessError) as error:
        if os.environ.get("BCL_RAY_TRACEBACK"):
            raise
        missing = isinstance(error, ModuleNotFoundError)
        remedy = ": pip install 'bcl-ray[train]' has all that a run needs" if missing else ""
        sys.stderr.write(f"bcl-ray: {error}{remedy}\n")
        from bcl_ray.storage.retry import PassingError

        sys.exit(1 if isinstance(error, PassingError | ConnectionError | TimeoutError) else 2)
    except KeyboardInterrupt:
        sys.exit(130)
