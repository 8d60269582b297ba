"""Commands on experiments and runs: recipes, plan, train, evaluate, sync."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import bcl_ray
from bcl_ray.cli.exits import exit_status
from bcl_ray.cli.options import Overrides, Run, Runs
from bcl_ray.display.terminal import console, quiet
from bcl_ray.machine.errors import UserError
from bcl_ray.machine.versions import command

if TYPE_CHECKING:
    from bcl_ray.experiment.options import Experiment
    from bcl_ray.runs.budget import Budget

app = typer.Typer()
recipes_app = typer.Typer(help="Recipes: named, complete experiments.", no_args_is_help=True)
app.add_typer(recipes_app, name="recipes")

MIB = 2**20


@recipes_app.command("list")
def recipes_list() -> None:
    """List the recipes, one a line."""
    from bcl_ray.experiment.recipes import RECIPES

    for name, recipe in RECIPES.items():
        typer.echo(f"{name:<12} {str(recipe.__doc__).splitlines()[0]}")


@recipes_app.command("show")
def recipes_show(name: str, overrides: Overrides = None) -> None:
    """Print a complete experiment as YAML, which `train` takes in a recipe's place."""
    typer.echo(bcl_ray.recipe(name, *(overrides or [])).to_yaml(), nl=False)


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a YAML file.")],
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compute what a run needs, and refuse one that cannot work; starts nothing."""
    experiment = bcl_ray.recipe(recipe, *(overrides or []))
    budget, store = bcl_ray.plan(experiment)
    if as_json:
        typer.echo(json.dumps(asdict(budget), indent=1))
        return
    from bcl_ray.display.tables import build_table

    rows = _budget_rows(experiment, budget, store).items()
    title = f"{experiment.name}: nothing was started"
    columns = ("quantity", "value")
    console().print(build_table(columns, rows, text=columns, title=title, header=False))


def _budget_rows(experiment: "Experiment", budget: "Budget", store: float | None) -> dict[str, str]:
    """What a run needs, as text.

    Args:
        store: Size of Ray's object store in bytes; None if unknown.
    """
    workers, batch = experiment.scale.min_workers, experiment.optim.global_batch_size
    data_cpus = "the rest" if budget.data_cpus is None else f"{budget.data_cpus:g}"
    rows = {
        "steps per epoch": f"{budget.steps_per_epoch:,} of {batch} images",
        "steps": f"{budget.steps:,} in {experiment.train.epochs} epochs",
        "images per epoch": f"{budget.images_per_epoch:,} ({budget.left_out} left out, others "
        "each epoch)",
        "images to evaluate": f"{budget.eval_images:,}",
        "read per epoch": f"{budget.bytes_per_epoch / MIB:,.1f} MiB",
        "workers": f"{experiment.scale.workers} x {batch // workers} images, "
        f"{budget.batch_bytes / MIB:,.1f} MiB of views a batch",
        "mixing": budget.mixing,
        "CPUs": f"{budget.worker_cpus:g} for workers, {data_cpus} for data",
        "object store": f"{budget.store_bytes / MIB:,.1f} MiB in flight"
        + (f" of {store / MIB:,.0f}" if store else ""),
    }
    if budget.resident_bytes:
        rows["images on the device"] = f"{budget.resident_bytes / MIB:,.1f} MiB, of every worker"
    return rows


@app.command()
def train(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe's name, or a YAML file; not with --resume.")
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Continue a run, by name, folder or URI.")
    ] = None,
    restartable: Annotated[
        bool, typer.Option("--restartable", help="Continue the run tracking.run, if it exists.")
    ] = False,
) -> None:
    """Train, evaluate and track a run."""
    experiment, changes = None, overrides or []
    if resume is not None:  # the first argument is an override too
        changes = [*([recipe] if recipe else []), *changes]
    elif recipe is not None:
        experiment = bcl_ray.recipe(recipe)
    else:
        raise UserError("train needs a recipe's name or a YAML file, or --resume RUN")
    with exit_status():
        trained = bcl_ray.train(
            experiment, resume=resume, overrides=changes, restartable=restartable
        )
    from bcl_ray.display.run import method
    from bcl_ray.display.tables import accuracy_table
    from bcl_ray.storage.paths import for_display

    screen = console()
    screen.print(accuracy_table([(trained.run, method(trained.experiment), trained.metrics)]))
    if trained.report:
        screen.print(f"report: {for_display(trained.report)}", highlight=False, soft_wrap=True)
    screen.print(f"next: {command()} evaluate {trained.reference}", highlight=False)


@app.command()
def evaluate(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...", help="Runs, checkpoints' folders, or models:/NAME@ALIAS."
        ),
    ],
    runs: Runs = "runs",
    best: Annotated[
        bool, typer.Option("--best", help="A run's best checkpoint, instead of the last.")
    ] = False,
    data: Annotated[
        str | None, typer.Option(help="Shards to evaluate on, instead of the model's own.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Split of the shards; by default the one that the run evaluated."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for predictions, figures and a report.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Evaluate models again, from their checkpoints, side by side."""
    evaluated = bcl_ray.evaluate(*names, runs=runs, best=best, data=data, split=split, out=out)
    if as_json:
        by_name = {name: metrics for name, (_, metrics) in evaluated.items()}
        typer.echo(json.dumps(by_name, indent=1))
        return
    from bcl_ray.display.run import method
    from bcl_ray.display.tables import accuracy_table

    rows = [
        (name, method(experiment), metrics) for name, (experiment, metrics) in evaluated.items()
    ]
    console().print(accuracy_table(rows))


@app.command()
def sync(
    name: Run,
    runs: Runs = "runs",
    patience: Annotated[float, typer.Option(help="Seconds to wait for the server.")] = 120.0,
) -> None:
    """Send MLflow what a run recorded while the server was down."""
    from bcl_ray.runs import run_folder

    run, experiment = run_folder.open_run(run_folder.run_uri(name, runs))
    quiet()
    from bcl_ray.tracking.connection import tracking_uri
    from bcl_ray.tracking.tracker import subject
    from bcl_ray.tracking.tracker import sync as deliver

    uri = tracking_uri(experiment)
    deliver(subject(run, experiment), uri, run_folder.local_folder(run), patience)
    typer.echo(f"{run.name}: MLflow at {uri} has everything")
