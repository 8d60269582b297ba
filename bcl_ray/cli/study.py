"""The command that compares configurations: study."""

from pathlib import Path
from typing import Annotated

import typer

import bcl_ray
from bcl_ray.cli.exits import report_stop
from bcl_ray.cli.options import Overrides

app = typer.Typer()


@app.command()
def study(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="YAML file of a grid of experiments, as in jobs/studies."
        ),
    ],
    overrides: Overrides = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the study, and of its folder; by default the file's."),
    ] = None,
    max_concurrent: Annotated[
        int | None,
        typer.Option(
            min=1, help="Runs at the same time; by default as many as the cluster can train."
        ),
    ] = None,
) -> None:
    """Train configurations with several seeds each, and tabulate means, intervals, differences.

    The same command continues a study: runs that have ended are not trained again.
    """
    with report_stop():
        bcl_ray.study(file, *(overrides or []), name=name, max_concurrent=max_concurrent)
