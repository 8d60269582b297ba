"""The command that searches: search."""

import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bcl_ray.cli.terminal import console, quiet
from bcl_ray.cli.training import Overrides, _experiment
from bcl_ray.search.choices import SCHEDULERS, SEARCHERS

if TYPE_CHECKING:
    from bcl_ray.experiment.options import Experiment
    from bcl_ray.search.settings import Extent, Settings

app = typer.Typer()


@app.command()
def search(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe's name, or a YAML file; not with --resume.")
    ] = None,
    overrides: Overrides = None,
    name: Annotated[str | None, typer.Option(help="Name of the search, and of its folder.")] = None,
    resume: Annotated[str | None, typer.Option(metavar="NAME", help="Go on with a search.")] = None,
    restartable: Annotated[
        bool, typer.Option("--restartable", help="Go on with the search --name, if there is one.")
    ] = False,
    trials: Annotated[
        int | None,
        typer.Option(
            min=1, help="Trials in all, 20 by default; number 0 has the published values."
        ),
    ] = None,
    workers_per_trial: Annotated[
        int | None, typer.Option(min=1, help="Workers of each trial; 1 by default.")
    ] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option(help="Share of a GPU, with one worker per trial.")
    ] = None,
    max_concurrent: Annotated[
        int | None,
        typer.Option(min=1, help="Trials at once; by default as many as there is room for."),
    ] = None,
    space: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What varies, as YAML; by default the loss.")
    ] = None,
    searcher: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help=f"Who chooses values. {SEARCHERS.described()}; random by default."
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"Which trials are stopped early. {SCHEDULERS.described()}; asha by default.",
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="What counts, accuracy/all by default, or 0.5*accuracy/few+0.5*accuracy/all."
        ),
    ] = None,
    validation: Annotated[
        float | None,
        typer.Option(
            help="Share of each class that is cut from the training split; 0.2 by default."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the choice and the cut; 0 by default.")
    ] = None,
    confirm: Annotated[
        str | None,
        typer.Option(metavar="K,N", help="Train the best K again with N other seeds each."),
    ] = None,
) -> None:
    """Try many values of some options, and keep those that are best on validation data."""
    options = locals()
    if options.pop("restartable") and _begun(name, recipe, overrides):
        options |= {"resume": name, "name": None}
    title, experiment, settings, extent = wanted(**options)
    _check(title, experiment, settings, extent)
    quiet()
    from bcl_ray.cli.show_search import follower
    from bcl_ray.search.driver import SearchError
    from bcl_ray.search.driver import search as run

    try:
        with follower(console()) as follow:
            again = options["resume"] is not None
            run(title, experiment, settings, extent, follow=follow, resume=again)
    except SearchError as error:
        sys.stderr.write(f"bcl-ray: {error}\n")
        raise typer.Exit(1) from None
    except KeyboardInterrupt as stop:
        sys.stderr.write(f"bcl-ray: {str(stop) or 'stopped'}\n")
        raise typer.Exit(128 + getattr(stop, "signum", signal.SIGINT)) from None


def _begun(name: str | None, recipe: str | None, overrides: list[str] | None) -> bool:
    """Whether the search of this name was begun before."""
    from bcl_ray.runs import run_folder
    from bcl_ray.search.ledger import SEARCH_FILE
    from bcl_ray.storage import files, paths

    if name is None or recipe is None:
        raise ValueError("--restartable needs a recipe, and --name, by which the search is found")
    root = _experiment(recipe, overrides).tracking.runs
    return files.exists(files.join(paths.absolute(run_folder.run_uri(name, root)), SEARCH_FILE))


def wanted(
    recipe: str | None,
    overrides: list[str] | None,
    name: str | None,
    resume: str | None,
    **options: Any,
) -> tuple[str, "Experiment", "Settings", "Extent"]:
    """What a search is to be: the options given, and for the others their defaults.

    Those of a search that goes on are its own.

    Args:
        recipe: name of a recipe, or a YAML file; or the first override, with `resume`.
        overrides: of the experiment.
        name: of a new search.
        resume: name of one that goes on.
        options: the command's others, None where they are not given.

    Returns:
        Name, experiment, settings and extent.

    Raises:
        ValueError: options that are missing, or that exclude each other.
    """
    from bcl_ray.runs.run_folder import default_name
    from bcl_ray.search.settings import Extent, Settings

    options |= {
        "workers": options.pop("workers_per_trial"),
        "space": None if options["space"] is None else _text(options["space"]),
        "confirm": None if options["confirm"] is None else parse_confirm(options["confirm"]),
    }
    given = {key: value for key, value in options.items() if value is not None}
    settings, extent = (
        {key: value for key, value in given.items() if key in kind.__dataclass_fields__}
        for kind in (Settings, Extent)
    )
    if resume is not None:
        if name is not None:
            raise ValueError("--name and --resume exclude each other: a search keeps its name")
        return _resumed(recipe, overrides or [], resume, settings, extent)
    if recipe is None:
        raise ValueError("search needs a recipe's name or a YAML file; or --resume NAME")
    experiment = _experiment(recipe, overrides)
    name = name or f"search-{default_name(experiment)}"
    return name, experiment, Settings(**settings), Extent(**extent)


def _resumed(
    recipe: str | None,
    overrides: list[str],
    resume: str,
    settings: dict[str, Any],
    extent: dict[str, Any],
) -> tuple[str, "Experiment", "Settings", "Extent"]:
    from bcl_ray.experiment.options import TrackingConfig
    from bcl_ray.experiment.overrides import with_overrides
    from bcl_ray.runs import run_folder
    from bcl_ray.search.ledger import open_search
    from bcl_ray.storage import paths

    if recipe is not None and "=" in recipe:
        overrides, recipe = [recipe, *overrides], None
    roots = [text.partition("=")[2] for text in overrides if text.startswith("tracking.runs=")]
    uri = paths.absolute(run_folder.run_uri(resume, roots[-1] if roots else TrackingConfig().runs))
    ledger = open_search(uri)
    experiment = ledger.experiment if recipe is None else _experiment(recipe, [])
    experiment = with_overrides(experiment, [*overrides, f"tracking.runs={paths.parent(uri)}"])
    return (
        ledger.name,
        experiment,
        replace(ledger.settings, **settings),
        replace(ledger.extent, **extent),
    )


def parse_confirm(text: str) -> tuple[int, int]:
    """K,N of --confirm.

    Raises:
        ValueError: it is not two positive integers.
    """
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise ValueError(f"--confirm {text} must be K,N: two positive integers, as in 3,3")
    k, n = map(int, parts)
    return k, n


def _check(name: str, experiment: "Experiment", settings: "Settings", extent: "Extent") -> None:
    """Refuse what cannot work in a moment, where Ray takes seconds to import."""
    from bcl_ray.data.shards import read_manifest
    from bcl_ray.search.checks import check

    check(name, experiment, settings, extent, read_manifest(experiment.data.path))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"--space {file}: {str(error.strerror).lower()}; name a YAML file"
        ) from None
