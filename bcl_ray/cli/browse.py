"""Commands for who looks at runs: compare, register, ui."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bcl_ray.display.terminal import console, quiet
from bcl_ray.experiment.metric_names import RESULTS

if TYPE_CHECKING:
    from rich.table import Table

    from bcl_ray.use.compare import Row

app = typer.Typer()

Runs = Annotated[str, typer.Option("--runs", help="Folder or URI that holds runs.")]


@app.command()
def compare(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...", help="Names, folders or URIs; or names or ids of runs of MLflow."
        ),
    ],
    runs: Runs = "runs",
    best: Annotated[
        bool, typer.Option("--best", help="Each run's best epoch, instead of the last.")
    ] = False,
    figure: Annotated[Path, typer.Option(help="File of the figure.")] = Path("comparison.png"),
    as_json: Annotated[bool, typer.Option("--json", help="As JSON; draws nothing.")] = False,
) -> None:
    """Runs side by side; seeds of one configuration are one row, with mean and deviation."""
    quiet()
    from bcl_ray.use.compare import compare as read

    rows = read(names, runs, best=best)
    if as_json:
        typer.echo(json.dumps([_plain(row) for row in rows], indent=1))
        return
    screen = console()
    screen.print(_table(rows))
    if any(len(row.names) == 1 for row in rows):
        screen.print("of one seed: differences under 0.5 points mean nothing", highlight=False)
    _draw(rows, figure)
    screen.print(f"figure: {figure}", highlight=False)


def _plain(row: "Row") -> dict[str, object]:
    metrics = {name: row.values(name) for name in RESULTS.values()}
    return {"runs": row.names, "options": row.label, "metrics": metrics}


def _table(rows: "list[Row]") -> "Table":
    from rich.table import Table

    table = Table(title="accuracy in per cent, means over classes", title_justify="left")
    table.add_column("runs")
    table.add_column("options", overflow="fold")
    epochs = [
        ", ".join(sorted({f"{record['epoch'] + 1:.0f}" for record in row.at})) for row in rows
    ]
    if len(set(epochs)) > 1:
        table.add_column("epoch", justify="right")
    for name, metric in RESULTS.items():
        if any(row.values(metric) for row in rows):
            table.add_column(name, justify="right", no_wrap=True)
    for row, epoch in zip(rows, epochs, strict=True):
        cells = [epoch] if len(set(epochs)) > 1 else []
        cells += [
            _cell(row.mean_and_spread(metric))
            for metric in RESULTS.values()
            if any(other.values(metric) for other in rows)
        ]
        table.add_row("\n".join(row.names), row.label.replace(", ", "\n"), *cells)
    return table


def _cell(found: tuple[float, float | None] | None) -> str:
    if found is None:
        return "-"
    mean, spread = found
    return f"{mean:.1f}" if spread is None else f"{mean:.1f} ± {spread:.1f}"


def _draw(rows: "list[Row]", file: Path) -> None:
    from bcl_ray.report.figures import png
    from bcl_ray.report.figures.comparison import Line, comparison

    lines = [
        Line(
            _short(row.label) if row.label and len(row.names) > 1 else ", ".join(row.names),
            {name: row.values(metric) for name, metric in RESULTS.items() if name != "ECE"},
            row.curves,
        )
        for row in rows
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(png(comparison(lines)))


def _short(label: str) -> str:
    """Options without their sections."""
    return ", ".join(option.partition(".")[2] or option for option in label.split(", "))


@app.command()
def register(
    name: Annotated[str, typer.Argument(metavar="RUN", help="Name, folder or URI.")],
    model: Annotated[str, typer.Option("--as", help="Name of the model in MLflow's registry.")],
    alias: Annotated[
        str | None,
        typer.Option(help="What this version shall be called; champion must be better."),
    ] = None,
    metric: Annotated[str, typer.Option(help="What champions are compared by.")] = "accuracy/all",
    force: Annotated[
        bool, typer.Option("--force", help="Move champion without comparing.")
    ] = False,
    last: Annotated[
        bool, typer.Option("--last", help="The last checkpoint, instead of the best.")
    ] = False,
    runs: Runs = "runs",
) -> None:
    """Register a run's best checkpoint as a model; then models:/NAME@ALIAS names it."""
    from bcl_ray.runs import run_folder

    run, _ = run_folder.open_run(run_folder.run_uri(name, runs))
    quiet()
    from bcl_ray.runs import checkpoint
    from bcl_ray.tracking.registry import register as put
    from bcl_ray.use.models import find_checkpoint

    folder = find_checkpoint(run.uri, runs, last=last)
    state = checkpoint.load(folder)
    for line in put(run, folder, state, model, alias=alias, metric=metric, force=force):
        typer.echo(line)


@app.command()
def ui(
    runs: Runs = "runs",
    port: Annotated[
        int | None, typer.Option(help="Of the server; none: 5000, or another that is free.")
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open a browser, too.")] = False,
) -> None:
    """Show runs in MLflow: the server's address, or a server for local runs until Ctrl-C."""
    import signal
    import webbrowser

    from bcl_ray.storage import paths
    from bcl_ray.tracking.tracker import store
    from bcl_ray.tracking.ui import served

    uri = store(None, paths.absolute(runs))
    if uri.startswith("http"):
        typer.echo(f"MLflow: {uri}")
        if open_browser:
            webbrowser.open(uri)
        return
    for signum in (signal.SIGINT, signal.SIGTERM):  # a shell starts jobs of & without the first
        signal.signal(signum, signal.default_int_handler)
    try:
        with served(uri, port) as (address, process):
            typer.echo(f"MLflow: {address}  (Ctrl-C ends it)")
            if open_browser:
                webbrowser.open(address)
            raise OSError(f"MLflow's server ended, with exit status {process.wait()}")
    except KeyboardInterrupt:
        typer.echo("ended")
