"""Commands on experiments and runs: recipes, plan, train, evaluate, sync."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import bcl_ray
from bcl_ray.cli.ending import exit_status
from bcl_ray.display.terminal import console, quiet
from bcl_ray.machine.errors import UserError
from bcl_ray.machine.versions import command

if TYPE_CHECKING:
    from bcl_ray.experiment.options import Experiment
    from bcl_ray.runs.budget import Budget

app = typer.Typer()
recipes_app = typer.Typer(help="Named, complete experiments.", no_args_is_help=True)
app.add_typer(recipes_app, name="recipes")

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SECTION.FIELD=VALUE]...", help="Changes to the experiment, in order."),
]
Runs = Annotated[str, typer.Option("--runs", help="Folder or URI that holds runs.")]


@recipes_app.command("list")
def recipes_list() -> None:
    """The recipes, one a line."""
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
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Work out what a run needs, and refuse one that cannot work; starts nothing."""
    experiment = bcl_ray.recipe(recipe, *(overrides or []))
    wanted, store = bcl_ray.plan(experiment)
    if as_json:
        typer.echo(json.dumps(asdict(wanted), indent=1))
        return
    _print_budget(experiment, wanted, store)


def _print_budget(experiment: "Experiment", wanted: "Budget", store: float | None) -> None:
    from rich.table import Table

    workers, mib = experiment.scale.min_workers, 2**20
    table = Table(show_header=False, title=f"{experiment.name}: nothing was started")
    batch = experiment.optim.global_batch_size
    rows = {
        "steps per epoch": f"{wanted.steps_per_epoch:,} of {batch} images",
        "steps": f"{wanted.steps:,} in {experiment.train.epochs} epochs",
        "images per epoch": f"{wanted.images_per_epoch:,} ({wanted.left_out} left out, others "
        "each epoch)",
        "images to evaluate": f"{wanted.eval_images:,}",
        "read per epoch": f"{wanted.bytes_per_epoch / mib:,.1f} MiB",
        "workers": f"{experiment.scale.workers} x {batch // workers} images, "
        f"{wanted.batch_bytes / mib:,.1f} MiB of views a batch",
        "lanes of the plan": f"{wanted.lanes} (workers may be any divisor)",
        "CPUs": f"{wanted.worker_cpus:g} for workers, "
        + ("the rest" if wanted.data_cpus is None else f"{wanted.data_cpus:g}")
        + " for data",
        "object store": f"{wanted.store_bytes / mib:,.1f} MiB in flight"
        + (f" of {store / mib:,.0f}" if store else ""),
    }
    if wanted.resident_bytes:
        rows["images on the device"] = f"{wanted.resident_bytes / mib:,.1f} MiB, of every worker"
    for name, value in rows.items():
        table.add_row(name, value)
    console().print(table)


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
        bool,
        typer.Option("--restartable", help="Continue the run tracking.run, if there is one."),
    ] = False,
) -> None:
    """Train, evaluate and track a run."""
    experiment, changes = None, overrides or []
    if resume is not None:
        changes = [*([recipe] if recipe else []), *changes]
    elif recipe is not None:
        experiment = bcl_ray.recipe(recipe)
    else:
        raise UserError("train needs a recipe's name or a YAML file, or --resume RUN")
    with exit_status():
        trained = bcl_ray.train(
            experiment, resume=resume, overrides=changes, restartable=restartable
        )
    from bcl_ray.display.run import accuracy_table, method
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
        str | None, typer.Option(help="Of the shards, instead of the one that the run evaluated.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for predictions, figures and a report.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Evaluate models again, from their checkpoints, side by side."""
    found = bcl_ray.evaluate(*names, runs=runs, best=best, data=data, split=split, out=out)
    if as_json:
        typer.echo(json.dumps({name: metrics for name, (_, metrics) in found.items()}, indent=1))
        return
    from bcl_ray.display.run import accuracy_table, method

    rows = [(name, method(experiment), metrics) for name, (experiment, metrics) in found.items()]
    console().print(accuracy_table(rows))


@app.command()
def sync(
    name: Annotated[str, typer.Argument(metavar="RUN", help="Name, folder or URI.")],
    runs: Runs = "runs",
    patience: Annotated[float, typer.Option(help="Seconds to wait for the server.")] = 120.0,
) -> None:
    """Hand MLflow what a run recorded while the server was down."""
    from bcl_ray.runs import run_folder

    run, experiment = run_folder.open_run(run_folder.run_uri(name, runs))
    quiet()
    from bcl_ray.tracking.tracker import subject, tracking_uri
    from bcl_ray.tracking.tracker import sync as deliver

    uri = tracking_uri(experiment)
    deliver(subject(run, experiment), uri, run_folder.local_folder(run), patience)
    typer.echo(f"{run.name}: MLflow at {uri} has everything")
