"""The command that searches: search."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import bcl_ray
from bcl_ray.cli.exits import report_stop
from bcl_ray.cli.options import Overrides, one_of, with_recipe_as_override
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
    resume: Annotated[str | None, typer.Option(metavar="NAME", help="Continue a search.")] = None,
    restartable: Annotated[
        bool, typer.Option("--restartable", help="Continue the search --name, if it exists.")
    ] = False,
    trials: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of trials, 20 by default; trial 0 has the recipe's own values."
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
        typer.Option(
            min=1, help="Trials at the same time; by default as many as the cluster can run."
        ),
    ] = None,
    space: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="YAML file of the options to vary; by default those of the loss."
        ),
    ] = None,
    searcher: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"How values are chosen. {SEARCHERS.described()}; random by default.",
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
            help="Metric to maximize, or a sum such as 0.5*accuracy/few+0.5*accuracy/all; "
            "accuracy/all by default."
        ),
    ] = None,
    validation: Annotated[
        float | None,
        typer.Option(
            help="Share of each class that is cut from the training split for validation; 0.2 by "
            "default."
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Seed of the values and of the validation split; 0 by default."),
    ] = None,
    confirm: Annotated[
        str | None,
        typer.Option(metavar="K,N", help="Train the best K trials again, with N other seeds each."),
    ] = None,
) -> None:
    """Try many values of some options, and find the best ones on validation data."""
    experiment, options = api_arguments(locals())  # at this point, all options and nothing else
    with report_stop():
        bcl_ray.search(experiment, **options)


def api_arguments(options: dict[str, Any]) -> "tuple[Experiment | None, dict[str, Any]]":
    """The command's options as `bcl_ray.search` takes them."""
    from bcl_ray.experiment.yaml_text import read_text

    options = dict(options)
    recipe, overrides = options.pop("recipe"), list(options["overrides"] or [])
    if options["resume"] is not None and recipe is not None and "=" in recipe:
        recipe, overrides = None, with_recipe_as_override(recipe, overrides)
    space, confirm = options["space"], options["confirm"]
    options |= {
        "overrides": overrides,
        "workers": options.pop("workers_per_trial"),
        "space": None if space is None else read_text(space, option="--space"),
        "confirm": None if confirm is None else parse_confirm(confirm),
    }
    return None if recipe is None else bcl_ray.recipe(recipe), options


def parse_confirm(text: str) -> tuple[int, int]:
    """The two numbers of --confirm K,N.

    Raises:
        ValueError: The text is not two positive integers.
    """
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"--confirm {text} must be K,N: two positive integers, as in 3,3")
    k, n = map(int, parts)
    return k, n
