"""Commands on experiments and runs: recipes, train, evaluate, sync."""

import json
from pathlib import Path
from typing import Annotated

import typer

import bcl_ray
from bcl_ray.cli.exits import report_stop
from bcl_ray.cli.options import Overrides, Run, Runs, with_recipe_as_override
from bcl_ray.display.terminal import console, quiet
from bcl_ray.machine.errors import UserError
from bcl_ray.machine.versions import command

app = typer.Typer()
recipes_app = typer.Typer(help="Recipes: named, complete experiments.", no_args_is_help=True)
app.add_typer(recipes_app, name="recipes")


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
    if resume is not None:
        changes = with_recipe_as_override(recipe, overrides)
    elif recipe is not None:
        experiment = bcl_ray.recipe(recipe)
    else:
        raise UserError("train needs a recipe's name or a YAML file, or --resume RUN")
    with report_stop():
        trained = bcl_ray.train(
            experiment, resume=resume, overrides=changes, restartable=restartable
        )
    from bcl_ray.display.run import method_title
    from bcl_ray.display.tables import accuracy_table
    from bcl_ray.storage.paths import for_display

    screen = console()
    screen.print(accuracy_table([(trained.run, method_title(trained.experiment), trained.metrics)]))
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
    from bcl_ray.display.run import method_title
    from bcl_ray.display.tables import accuracy_table

    rows = [
        (name, method_title(experiment), metrics)
        for name, (experiment, metrics) in evaluated.items()
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
    from bcl_ray.tracking.tracker import sync as deliver
    from bcl_ray.tracking.tracker import training_subject

    uri = tracking_uri(experiment)
    deliver(training_subject(run, experiment), uri, run_folder.local_folder(run), patience)
    typer.echo(f"{run.name}: MLflow at {uri} has everything")
