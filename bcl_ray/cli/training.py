"""Commands on experiments and runs: recipes, plan, train, evaluate, sync."""

import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bcl_ray.cli.terminal import console, quiet

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
    typer.echo(_experiment(name, overrides).to_yaml(), nl=False)


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a YAML file.")],
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Work out what a run needs, and refuse one that cannot work; starts nothing."""
    experiment = _experiment(recipe, overrides)
    wanted, store = _budget(experiment)
    if as_json:
        typer.echo(json.dumps(asdict(wanted), indent=1))
        return
    _print_budget(experiment, wanted, store)


def _budget(experiment: "Experiment") -> tuple["Budget", float | None]:
    from bcl_ray.data.shards import read_manifest
    from bcl_ray.runs.budget import preflight

    manifest = read_manifest(experiment.data.path)
    found = preflight(experiment, manifest)
    if experiment.data.residency == "device":
        from bcl_ray.training.residency import check_residency

        check_residency(experiment, manifest)
    return found


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
    if resume is not None:
        changes = [text for text in (recipe, *(overrides or [])) if text]
        resume, experiment = _resumed(resume, changes)
    elif recipe is not None:
        experiment = _experiment(recipe, overrides)
        if restartable and experiment.tracking.run is None:
            raise ValueError(
                "--restartable needs tracking.run=NAME, by which the run is found again"
            )
    else:
        raise ValueError("train needs a recipe's name or a YAML file, or --resume RUN")
    _budget(experiment)  # refuses what cannot work in a moment, where Ray takes seconds to import
    quiet()
    from bcl_ray.cli.show_run import accuracy_table, follower, method
    from bcl_ray.storage.paths import shown
    from bcl_ray.training.driver import TrainingError, fit

    screen = console()
    try:
        with follower(screen) as follow:
            outcome = fit(experiment, follow=follow, resume=resume, restartable=restartable)
    except TrainingError as error:
        sys.stderr.write(f"bcl-ray: {error}\n")
        raise typer.Exit(1) from None
    except KeyboardInterrupt as stop:
        sys.stderr.write(f"bcl-ray: {str(stop) or 'stopped'}\n")
        raise typer.Exit(128 + getattr(stop, "signum", signal.SIGINT)) from None
    last = outcome["history"][-1]
    screen.print(accuracy_table([(outcome["run"], method(experiment), last)]))
    if outcome["report"]:
        screen.print(f"report: {shown(outcome['report'])}", highlight=False, soft_wrap=True)
    screen.print(f"next: bcl-ray evaluate {outcome['reference']}", highlight=False)


def _resumed(resume: str, changes: list[str]) -> tuple[str, "Experiment"]:
    """The folder of a run, wherever it lies now, and its experiment with changes."""
    from bcl_ray.experiment.options import TrackingConfig
    from bcl_ray.experiment.overrides import with_overrides
    from bcl_ray.runs import run_folder
    from bcl_ray.storage import paths

    roots = [change.partition("=")[2] for change in changes if change.startswith("tracking.runs=")]
    root = roots[-1] if roots else TrackingConfig().runs
    uri = paths.absolute(run_folder.run_uri(resume, root))
    _, experiment = run_folder.open_run(uri)
    return uri, with_overrides(experiment, [*changes, f"tracking.runs={paths.parent(uri)}"])


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
    quiet()
    from bcl_ray.use.models import find_checkpoint

    for name in names:  # before Ray is imported, which takes seconds
        find_checkpoint(name, runs, last=not best)
    from bcl_ray.cli.show_run import accuracy_table, method
    from bcl_ray.use.evaluate import evaluate_models

    found = evaluate_models(names, runs, best=best, data=data, split=split, out=out)
    if as_json:
        typer.echo(json.dumps({model.name: metrics for model, metrics in found}, indent=1))
        return
    rows = [(model.name, method(model.experiment), metrics) for model, metrics in found]
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


def _remote(uri: str) -> "Experiment":
    """An experiment in a YAML file that is not on this machine, such as a search's winner."""
    from bcl_ray.experiment.overrides import from_yaml
    from bcl_ray.storage import files

    return from_yaml(files.read_bytes(uri).decode(), origin=uri)


def _experiment(name: str, overrides: list[str] | None) -> "Experiment":
    from bcl_ray.experiment.overrides import from_file, with_overrides
    from bcl_ray.experiment.recipes import RECIPES, nearest

    if name in RECIPES:
        experiment = RECIPES[name]()
    elif name.endswith((".yaml", ".yml")):
        experiment = _remote(name) if "://" in name else from_file(Path(name))
    else:
        raise ValueError(f"'{name}' is no recipe and no .yaml file: {nearest(name)}")
    return with_overrides(experiment, overrides or [])
