"""The command that searches: search."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import bcl_ray
from bcl_ray.cli.chosen import one_of
from bcl_ray.cli.ending import exit_status
from bcl_ray.cli.training import Overrides
from bcl_ray.machine.errors import UserError
from bcl_ray.tuning.choices import SCHEDULERS, SEARCHERS

if TYPE_CHECKING:
    from bcl_ray.experiment.options import Experiment

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
            metavar="NAME",
            help=f"Who chooses values. {SEARCHERS.described()}; random by default.",
            callback=one_of(SEARCHERS),
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"Which trials are stopped early. {SCHEDULERS.described()}; asha by default.",
            callback=one_of(SCHEDULERS),
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
    experiment, options = arguments(locals())
    with exit_status():
        bcl_ray.search(experiment, **options)


def arguments(given: dict[str, Any]) -> "tuple[Experiment | None, dict[str, Any]]":
    """The command's options as `bcl_ray.search` takes them."""
    options = dict(given)
    recipe, changes = options.pop("recipe"), list(options["overrides"] or [])
    if options["resume"] is not None and recipe is not None and "=" in recipe:
        recipe, changes = None, [recipe, *changes]
    space, confirm = options["space"], options["confirm"]
    options |= {
        "overrides": changes,
        "workers": options.pop("workers_per_trial"),
        "space": None if space is None else _text(space),
        "confirm": None if confirm is None else parse_confirm(confirm),
    }
    return None if recipe is None else bcl_ray.recipe(recipe), options


def parse_confirm(text: str) -> tuple[int, int]:
    """K,N of --confirm.

    Raises:
        ValueError: it is not two positive integers.
    """
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"--confirm {text} must be K,N: two positive integers, as in 3,3")
    k, n = map(int, parts)
    return k, n


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"--space {file}: {str(error.strerror).lower()}; name a YAML file"
        ) from None
