"""The command line. Ray, torch and the rest are imported inside the commands that need them."""

import os
import sys
import time
import traceback
from subprocess import SubprocessError

import typer

from bcl_ray.cli import browse, data, insight, jobs, machines, search, submit, training, use
from bcl_ray.machine.errors import FailedError, UserError

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
    """Entry point of `bcl-ray`: a mistake is one line and exit status 2; 1, what may pass.

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
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if os.environ.get("BCL_RAY_TRACEBACK"):
            raise
        text, status = _told(error)
        sys.stderr.write(f"bcl-ray: {text}\n")
        sys.exit(status)


def _told(error: Exception) -> tuple[str, int]:
    """What is said of an error, and the exit status."""
    from bcl_ray.storage.paths import user_cache
    from bcl_ray.storage.retry import TransientError

    if isinstance(error, ModuleNotFoundError):
        return f"{error}: pip install 'bcl-ray[train]' has all that a run needs", 2
    if isinstance(error, TransientError | ConnectionError | TimeoutError | FailedError):
        return str(error), 1
    if isinstance(error, UserError | OSError | SubprocessError):
        return str(error), 2
    # Nobody thought of it: whoever reports it needs more than its text.
    lines = traceback.format_exception(error)
    last = lines[-1].strip().replace("\n", " ")
    try:
        folder = user_cache() / "bcl_ray"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"error-{time.strftime('%m%d-%H%M%S')}-{os.getpid()}.txt"
        file.write_text("".join(lines))
    except OSError:
        return "".join(lines).rstrip(), 1
    return f"{last} (a fault of bcl_ray's own? all of it: {file})", 1
