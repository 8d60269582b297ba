"""The command that shows what a run learned: report."""

from pathlib import Path
from typing import Annotated

import typer

from bcl_ray.cli.training import Runs
from bcl_ray.display.terminal import quiet

app = typer.Typer()


@app.command()
def report(
    name: Annotated[str, typer.Argument(metavar="RUN", help="Name, folder or URI.")],
    runs: Runs = "runs",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the files, instead of the run's own.")
    ] = None,
) -> None:
    """Draw a run's figures, table of classes and report again, from what it left."""
    from bcl_ray.runs import run_folder
    from bcl_ray.storage import paths

    run, _ = run_folder.open_run(run_folder.run_uri(name, runs))
    quiet()
    from bcl_ray.report import results, summary
    from bcl_ray.use.models import last_state

    state = last_state(run)
    folder = out or run_folder.local_folder(run)
    files = summary.write(results.of_run(run, state), folder)
    where, pictures = (
        paths.for_display(str(folder.absolute())),
        len(list(folder.glob("figures/*.png"))),
    )
    typer.echo(f"{where}/{summary.REPORT}, {pictures} figures, {len(files)} files in all")
