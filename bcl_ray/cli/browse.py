"""Commands that show and publish runs: compare, report, register, ui."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bcl_ray.cli.options import Last, Run, Runs
from bcl_ray.display.terminal import console, quiet
from bcl_ray.experiment.metric_names import ACCURACY, RESULTS

if TYPE_CHECKING:
    from bcl_ray.use.compare import Row

app = typer.Typer()


@app.command()
def compare(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Names, folders or URIs of runs; or names or ids of runs in MLflow.",
        ),
    ],
    runs: Runs = "runs",
    best: Annotated[
        bool, typer.Option("--best", help="Each run's best epoch, instead of the last.")
    ] = False,
    figure: Annotated[Path, typer.Option(help="File of the figure.")] = Path("comparison.png"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, without a figure.")] = False,
) -> None:
    """Compare runs; seeds of one configuration are one row, with mean and deviation."""
    quiet()
    from bcl_ray.use.compare import compare as compare_runs

    rows = compare_runs(names, runs, best=best)
    if as_json:
        typer.echo(json.dumps([_as_dict(row) for row in rows], indent=1))
        return
    from bcl_ray.display.tables import comparison_table

    screen = console()
    screen.print(comparison_table(rows))
    if any(len(row.names) == 1 for row in rows):
        screen.print("of one seed: differences under 0.5 points mean nothing", highlight=False)
    _draw(rows, figure)
    screen.print(f"figure: {figure}", highlight=False)


def _as_dict(row: "Row") -> dict[str, object]:
    metrics = {name: row.values(name) for name in RESULTS.values()}
    return {"runs": row.names, "options": row.label, "metrics": metrics}


def _draw(rows: "list[Row]", file: Path) -> None:
    from bcl_ray.report.figures.comparison import Configuration, comparison
    from bcl_ray.report.figures.style import png

    lines = [
        Configuration(
            _without_sections(row.label)
            if row.label and len(row.names) > 1
            else ", ".join(row.names),
            {name: row.values(metric) for name, metric in RESULTS.items() if name != "ECE"},
            row.curves,
        )
        for row in rows
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(png(comparison(lines)))


def _without_sections(label: str) -> str:
    """Options by their fields alone."""
    return ", ".join(option.partition(".")[2] or option for option in label.split(", "))


@app.command()
def report(
    name: Run,
    runs: Runs = "runs",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the files, instead of the run's own.")
    ] = None,
) -> None:
    """Draw a run's figures, table of classes and report again, from the run's files."""
    from bcl_ray.runs import run_folder
    from bcl_ray.storage import paths

    run, _ = run_folder.open_run(run_folder.run_uri(name, runs))
    quiet()
    from bcl_ray.report import results, summary
    from bcl_ray.use.models import last_state

    state = last_state(run)
    folder = out or run_folder.local_folder(run)
    files = summary.write(results.from_run(run, state), folder)
    where = paths.for_display(str(folder.absolute()))
    pictures = len(list(folder.glob("figures/*.png")))
    typer.echo(f"{where}/{summary.REPORT}, {pictures} figures, {len(files)} files in all")


@app.command()
def register(
    name: Run,
    model: Annotated[str, typer.Option("--as", help="Name of the model in MLflow's registry.")],
    alias: Annotated[
        str | None,
        typer.Option(help="Alias to give this version; champion must be better than the present."),
    ] = None,
    metric: Annotated[str, typer.Option(help="Metric that compares champions.")] = ACCURACY,
    force: Annotated[
        bool, typer.Option("--force", help="Move champion without comparing.")
    ] = False,
    last: Last = None,
    runs: Runs = "runs",
) -> None:
    """Register a run's checkpoint as a model, which models:/NAME@ALIAS then names."""
    from bcl_ray.runs import run_folder

    run, _ = run_folder.open_run(run_folder.run_uri(name, runs))
    quiet()
    from bcl_ray.runs import checkpoint
    from bcl_ray.tracking.registry import register as register_model
    from bcl_ray.use.models import find_checkpoint

    folder = find_checkpoint(run.uri, runs, last=last)
    state = checkpoint.load(folder)
    messages = register_model(run, folder, state, model, alias=alias, metric=metric, force=force)
    for message in messages:
        typer.echo(message)


@app.command()
def ui(
    runs: Runs = "runs",
    port: Annotated[
        int | None, typer.Option(help="Port of the server; by default 5000, or another free one.")
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open a browser too.")] = False,
) -> None:
    """Show runs in MLflow: print the server's address, or serve local runs until Ctrl-C."""
    import signal
    import webbrowser

    from bcl_ray.storage import paths
    from bcl_ray.tracking.connection import mlflow_uri
    from bcl_ray.tracking.ui import served

    uri = mlflow_uri(None, paths.absolute(runs))
    if uri.startswith("http"):
        typer.echo(f"MLflow: {uri}")
        if open_browser:
            webbrowser.open(uri)
        return
    for signum in (signal.SIGINT, signal.SIGTERM):  # shells let background jobs ignore SIGINT
        signal.signal(signum, signal.default_int_handler)
    try:
        with served(uri, port) as (address, process):
            typer.echo(f"MLflow: {address}  (Ctrl-C ends it)")
            if open_browser:
                webbrowser.open(address)
            raise OSError(f"MLflow's server ended, with exit status {process.wait()}")
    except KeyboardInterrupt:
        typer.echo("ended")
