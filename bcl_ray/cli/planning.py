"""The command `plan`: what a run needs, how fast it will be, and what it will cost."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import bcl_ray
from bcl_ray.cli.options import Overrides, Runs
from bcl_ray.display.terminal import console
from bcl_ray.machine.errors import UserError

if TYPE_CHECKING:
    from bcl_ray.experiment.options import Experiment
    from bcl_ray.runs.forecast import Planned

app = typer.Typer()


@app.command()
def plan(
    name: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|RUN", help="A recipe's name, a YAML file, or a run that has begun."
        ),
    ],
    overrides: Overrides = None,
    cluster: Annotated[
        Path | None,
        typer.Option(help="Forecast the run on this cluster, such as cluster/cluster.yaml."),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Forecast the run on this many GPUs, one for each worker, instead of --cluster.",
        ),
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="Kind of GPU, such as h100; by default the description's.")
    ] = None,
    cpus: Annotated[
        float | None,
        typer.Option(min=1, help="With --gpus: CPUs of all nodes; 12 a GPU if left out."),
    ] = None,
    price: Annotated[
        float | None,
        typer.Option(min=0, help="$ an hour and GPU, with its machine, instead of an assumption."),
    ] = None,
    runs: Runs = "runs",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compute what a run needs, and refuse one that cannot work; starts nothing.

    With a cluster or GPUs: how fast it will be, what limits it, and what it will cost. Of a run
    that has begun: how long it still takes, by the rates that it has recorded.
    """
    from bcl_ray.api import forecasts

    changes = overrides or []
    machines: dict[str, Any] = {
        "cluster": cluster,
        "gpus": gpus,
        "gpu": gpu,
        "cpus": cpus,
        "price": price,
    }
    if any(value is not None for value in machines.values()):
        found = forecasts.forecast_cluster(name, *changes, runs=runs, **machines)
        _show_forecast(name, found, as_json=as_json)
    elif forecasts.is_run(name, runs):
        if changes:
            raise UserError(f"'{name}' is a run, whose options stay: leave out {changes[0]}")
        _show_forecast(name, forecasts.forecast_run(name, runs), as_json=as_json)
    else:
        _show_needs(bcl_ray.recipe(name, *changes), as_json=as_json)


def _show_needs(experiment: "Experiment", *, as_json: bool) -> None:
    budget, store = bcl_ray.plan(experiment)
    if as_json:
        typer.echo(json.dumps(asdict(budget), indent=1))
        return
    from bcl_ray.display.plan import budget_rows
    from bcl_ray.display.tables import build_table

    rows = budget_rows(experiment, budget, store).items()
    title = f"{experiment.name}: nothing was started"
    columns = ("quantity", "value")
    console().print(build_table(columns, rows, text=columns, title=title, header=False))


def _show_forecast(name: str, planned: "Planned", *, as_json: bool) -> None:
    if as_json:
        content = {"forecast": asdict(planned.forecast), "budget": asdict(planned.budget)}
        typer.echo(json.dumps(content, indent=1))
        return
    from bcl_ray.display.plan import conclusion, forecast_rows
    from bcl_ray.display.tables import build_table

    columns = ("quantity", "value", "how it is known")
    title = f"{name} {planned.where}: nothing was started"
    screen = console()
    screen.print(build_table(columns, forecast_rows(planned), text=columns, title=title))
    screen.print(conclusion(planned.forecast), markup=False, highlight=False, soft_wrap=True)
