"""The command line. Ray, torch and the rest are imported inside the commands that need them."""

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from bcl_ray.budget import Budget
    from bcl_ray.config import Experiment

app = typer.Typer(
    help="Balanced Contrastive Learning for long-tailed images, on a Ray cluster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
shards_app = typer.Typer(help="Look into a data set of shards.", no_args_is_help=True)
recipes_app = typer.Typer(help="Named, complete experiments.", no_args_is_help=True)
app.add_typer(shards_app, name="shards")
app.add_typer(recipes_app, name="recipes")


class SourceName(StrEnum):
    """Where images come from."""

    digits = "digits"
    cifar10 = "cifar10"
    cifar100 = "cifar100"
    folder = "folder"
    list = "list"
    parquet = "parquet"


class ProfileName(StrEnum):
    """How class sizes fall from head to tail."""

    exponential = "exponential"
    step = "step"
    natural = "natural"


class OnBadImage(StrEnum):
    """What to do with a row that is no image."""

    stop = "stop"
    skip = "skip"


Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SECTION.FIELD=VALUE]...", help="Changes to the experiment, in order."),
]
Target = Annotated[str, typer.Argument(help="Folder or URI of the shards.")]
Runs = Annotated[str, typer.Option("--runs", help="Folder or URI that holds runs.")]


def main() -> None:
    """Entry point of `bcl-ray`: a user's mistake is one line and exit status 2."""
    try:
        app(prog_name="bcl-ray")
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if os.environ.get("BCL_RAY_TRACEBACK"):
            raise
        missing = isinstance(error, ModuleNotFoundError)
        remedy = ": pip install 'bcl-ray[train]' has all that a run needs" if missing else ""
        sys.stderr.write(f"bcl-ray: {error}{remedy}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


@app.command()
def shard(
    source: Annotated[SourceName, typer.Argument(help="Kind of source.")],
    target: Annotated[str, typer.Argument(help="Folder or URI for the shards.")],
    origin: Annotated[
        str | None,
        typer.Option("--from", help="Where the source lies; cifar without it is downloaded."),
    ] = None,
    profile: Annotated[
        ProfileName, typer.Option(help="Class sizes of the training split.")
    ] = ProfileName.natural,
    imbalance_factor: Annotated[
        float | None, typer.Option(help="Largest class / smallest class, at least 1.")
    ] = None,
    max_per_class: Annotated[
        int | None, typer.Option(help="Training images of the largest class.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice and of the order.")] = 0,
    split: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE", help="A split's list file or Parquet file; several may be given."
        ),
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Text file of class names, one a line.")
    ] = None,
    image_column: Annotated[str, typer.Option(help="Parquet: column of images.")] = "image",
    label_column: Annotated[str, typer.Option(help="Parquet: column of labels.")] = "label",
    id_column: Annotated[str | None, typer.Option(help="Parquet: column of unique ids.")] = None,
    shard_mib: Annotated[int, typer.Option(min=1, help="Size of a shard in MiB, about.")] = 256,
    on_bad_image: Annotated[
        OnBadImage, typer.Option(help="skip: list bad rows in a quarantine file.")
    ] = OnBadImage.stop,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Largest width x height of an image.")
    ] = None,
) -> None:
    """Turn a source of images into shards and their manifest."""
    from bcl_ray.shards import MAX_PIXELS, write_shards
    from bcl_ray.sources import open_source

    opened = open_source(
        source.value,
        origin,
        splits=_pairs(split or []) or None,
        classes=classes,
        image_column=image_column,
        label_column=label_column,
        id_column=id_column,
    )
    with _progress() as progress:
        write_shards(
            opened,
            target,
            profile=profile.value,
            imbalance_factor=imbalance_factor,
            max_per_class=max_per_class,
            seed=seed,
            shard_bytes=shard_mib * 2**20,
            on_bad_image=on_bad_image.value,
            max_pixels=MAX_PIXELS if max_pixels is None else max_pixels,
            progress=progress,
        )
    shards_show(target)


@shards_app.command("show")
def shards_show(
    target: Target,
    as_json: Annotated[bool, typer.Option("--json", help="The manifest itself.")] = False,
) -> None:
    """Describe a data set: its splits, class sizes and fingerprint."""
    from rich.markup import escape
    from rich.table import Table

    from bcl_ray.longtail import shot_groups
    from bcl_ray.shards import read_manifest

    manifest = read_manifest(target)
    if as_json:
        typer.echo(manifest.model_dump_json(indent=1))
        return
    table = Table(title=escape(f"{target}  ({manifest.source})"), title_justify="left")
    columns = ("split", "images", "classes", "largest", "smallest", "shards", "MiB", "quarantined")
    for column in columns:
        table.add_column(column, justify="left" if column == "split" else "right")
    for name, split in manifest.splits.items():
        size = sum(info.bytes for info in split.shards) / 2**20
        counts = split.class_counts
        numbers = (split.rows, len(counts), max(counts), min(counts), len(split.shards))
        cells = [f"{number:,}" for number in numbers]
        table.add_row(name, *cells, f"{size:,.1f}", str(split.quarantined))
    console = _console()
    console.print(table)
    groups = shot_groups(manifest.splits["train"].class_counts)
    shown = ", ".join(f"{len(members)} {name}" for name, members in groups.items())
    console.print(f"classes by training images: {shown}", highlight=False)
    console.print(f"fingerprint: {manifest.fingerprint}", highlight=False)


@shards_app.command("verify")
def shards_verify(target: Target) -> None:
    """Read everything again and compare it with the manifest's hashes and counts."""
    from bcl_ray.shards import read_manifest, verify_shards

    with _progress() as progress:
        differences = verify_shards(target, progress=progress)
    if differences:
        raise ValueError(f"{target} is not what its manifest says:\n  " + "\n  ".join(differences))
    shards = sum(len(split.shards) for split in read_manifest(target).splits.values())
    typer.echo(f"{target}: {shards} shards are what the manifest says")


@recipes_app.command("list")
def recipes_list() -> None:
    """The recipes, one a line."""
    from bcl_ray.recipes import RECIPES

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
    from bcl_ray.budget import preflight
    from bcl_ray.shards import read_manifest

    return preflight(experiment, read_manifest(experiment.data.path))


def _print_budget(experiment: "Experiment", wanted: "Budget", store: float | None) -> None:
    from rich.table import Table

    workers, mib = experiment.scale.workers, 2**20
    table = Table(show_header=False, title=f"{experiment.name}: nothing was started")
    batch = experiment.optim.global_batch_size
    rows = {
        "steps per epoch": f"{wanted.steps_per_epoch:,} of {batch} images",
        "steps": f"{wanted.steps:,} in {experiment.train.epochs} epochs",
        "images per epoch": f"{wanted.images_per_epoch:,} ({wanted.left_out} left out, others "
        "each epoch)",
        "images to evaluate": f"{wanted.eval_images:,}",
        "read per epoch": f"{wanted.bytes_per_epoch / mib:,.1f} MiB",
        "workers": f"{workers} x {batch // workers} images, "
        f"{wanted.batch_bytes / mib:,.1f} MiB of views a batch",
        "lanes of the plan": f"{wanted.lanes} (workers may be any divisor)",
        "CPUs": f"{wanted.worker_cpus:g} for workers, "
        + (f"{wanted.data_cpus:g} for data" if wanted.data_cpus else "the rest for data"),
        "object store": f"{wanted.store_bytes / mib:,.1f} MiB in flight"
        + (f" of {store / mib:,.0f}" if store else ""),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    _console().print(table)


@app.command()
def train(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe's name, or a YAML file; not with --resume.")
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Continue a run, by name, folder or URI.")
    ] = None,
) -> None:
    """Train, evaluate and track a run."""
    if resume is not None:
        changes = [text for text in (recipe, *(overrides or [])) if text]
        resume, experiment = _resumed(resume, changes)
    elif recipe is not None:
        experiment = _experiment(recipe, overrides)
    else:
        raise ValueError("train needs a recipe's name or a YAML file, or --resume RUN")
    _budget(experiment)  # refuses what cannot work in a moment, where Ray takes seconds to import
    quiet()
    from bcl_ray.display import Follower, accuracy_table, method
    from bcl_ray.train import TrainingError, fit

    console = _console()
    try:
        with Follower(console) as follower:
            outcome = fit(experiment, follow=follower, resume=resume)
    except TrainingError as error:
        sys.stderr.write(f"bcl-ray: {error}\n")
        raise typer.Exit(1) from None
    except KeyboardInterrupt as stop:
        sys.stderr.write(f"bcl-ray: {stop or 'stopped'}\n")
        raise typer.Exit(130) from None
    last = outcome["history"][-1]
    console.print(accuracy_table([(outcome["run"], method(experiment), last)]))
    console.print(f"next: bcl-ray evaluate {outcome['reference']}", highlight=False)


def _resumed(resume: str, changes: list[str]) -> tuple[str, "Experiment"]:
    """The folder of a run, wherever it lies now, and its experiment with changes."""
    from bcl_ray import runs
    from bcl_ray.config import TrackingConfig
    from bcl_ray.parse import with_overrides

    roots = [change.partition("=")[2] for change in changes if change.startswith("tracking.runs=")]
    root = roots[-1] if roots else TrackingConfig().runs
    uri = runs.absolute(runs.run_uri(resume, root))
    _, experiment = runs.open_run(uri)
    return uri, with_overrides(experiment, [*changes, f"tracking.runs={runs.parent(uri)}"])


@app.command()
def evaluate(
    names: Annotated[list[str], typer.Argument(metavar="RUN...", help="Names, folders or URIs.")],
    runs: Runs = "runs",
    best: Annotated[
        bool, typer.Option("--best", help="The best checkpoint kept, instead of the last.")
    ] = False,
    data: Annotated[
        str | None, typer.Option(help="Shards to evaluate on, instead of the run's own.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Evaluate runs again, from their checkpoints, side by side."""
    from bcl_ray import runs as folders

    for name in names:  # before Ray is imported, which takes seconds
        folders.open_run(folders.run_uri(name, runs))
    quiet()
    from bcl_ray.display import accuracy_table, method
    from bcl_ray.evaluate import evaluate_runs

    found = evaluate_runs(names, runs, best=best, data=data)
    if as_json:
        typer.echo(json.dumps({run.name: metrics for run, _, metrics in found}, indent=1))
        return
    rows = [(run.name, method(experiment), metrics) for run, experiment, metrics in found]
    _console().print(accuracy_table(rows))


@app.command()
def sync(
    name: Annotated[str, typer.Argument(metavar="RUN", help="Name, folder or URI.")],
    runs: Runs = "runs",
    patience: Annotated[float, typer.Option(help="Seconds to wait for the server.")] = 120.0,
) -> None:
    """Hand MLflow what a run recorded while the server was down."""
    from bcl_ray import runs as folders

    run, experiment = folders.open_run(folders.run_uri(name, runs))
    quiet()
    from bcl_ray.tracking import sync as deliver

    uri = deliver(run, experiment, folders.local_folder(run), patience)
    typer.echo(f"{run.name}: MLflow at {uri} has everything")


def _experiment(name: str, overrides: list[str] | None) -> "Experiment":
    from bcl_ray.parse import from_file, with_overrides
    from bcl_ray.recipes import RECIPES, nearest

    if name in RECIPES:
        experiment = RECIPES[name]()
    elif name.endswith((".yaml", ".yml")):
        experiment = from_file(Path(name))
    else:
        raise ValueError(f"'{name}' is no recipe and no .yaml file: {nearest(name)}")
    return with_overrides(experiment, overrides or [])


def _pairs(texts: list[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, equals, file = text.partition("=")
        if not equals or name in pairs:
            raise ValueError(f"--split '{text}' must be NAME=FILE, each name once")
        pairs[name] = file
    return pairs


def _console() -> "Console":
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120)


def quiet() -> None:
    """Keep the libraries' own messages off the terminal; `fit` sends them to a file."""
    os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")
    logging.getLogger().addHandler(logging.NullHandler())
    logging.captureWarnings(True)


@contextmanager
def _progress() -> Iterator[Any]:
    """A bar with rate and time left, as the callback that writing and verifying shards take."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Remaining())
    rate = TextColumn("{task.fields[rate]}")
    with Progress(*columns, rate, console=_console(), disable=not sys.stdout.isatty()) as bars:
        tasks: dict[str, Any] = {}

        def advance(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total, rate="")
            speed = bars.tasks[tasks[name]].speed
            text = f"{speed:,.0f} images/s" if speed else ""
            bars.update(tasks[name], completed=done, total=total, rate=text)

        yield advance
