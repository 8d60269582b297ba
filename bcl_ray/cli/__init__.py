"""The command line `bcl-ray`. Ray, torch and other slow imports happen inside the commands."""

import json
import os
import sys

import typer

from bcl_ray.cli import (
    browse,
    cluster,
    data,
    doctor,
    jobs,
    planning,
    search,
    study,
    submit,
    training,
    use,
)
from bcl_ray.cli.exits import describe
from bcl_ray.machine.errors import USER_MISTAKE
from bcl_ray.machine.messages import notify

app = typer.Typer(
    help="Balanced Contrastive Learning for long-tailed images, on a Ray cluster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
MODULES = (
    data,
    planning,
    training,
    search,
    study,
    use,
    browse,
    submit,
    jobs,
    cluster,
    doctor,
)
for module in MODULES:
    app.add_typer(module.app)  # without a name: its commands become commands of `bcl-ray`


def main(*command: str) -> None:
    """Entry point of `bcl-ray`, which always raises SystemExit.

    A mistake of the user is one line on standard error and exit status 2. An error that may be
    temporary has exit status 1.

    Args:
        *command: Words to put before those of the command line.
    """
    try:
        _run(*command)
    except SystemExit as end:
        in_ray_job = os.environ.get("BCL_RAY_ON_MISTAKE") == "stop"
        if end.code == USER_MISTAKE and in_ray_job:
            from bcl_ray.ops.jobs.own_job import stop

            stop()
        raise


def _run(*command: str) -> None:
    from bcl_ray.machine.versions import CLIENT, check_same_versions, client_versions

    try:
        if client := os.environ.get(CLIENT):  # only in a job
            check_same_versions(json.loads(client), client_versions())
        app([*command, *sys.argv[1:]], prog_name="bcl-ray")
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if os.environ.get("BCL_RAY_TRACEBACK"):
            raise
        text, status = describe(error)
        notify(text)
        sys.exit(status)
