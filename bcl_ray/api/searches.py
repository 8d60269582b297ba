"""Search for the best values of options."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bcl_ray.display.search import SearchDisplay
from bcl_ray.display.terminal import console, quiet
from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.machine.errors import UserError
from bcl_ray.runs import run_folder
from bcl_ray.runs.events import receiver
from bcl_ray.runs.identity import SEARCH
from bcl_ray.storage import files, paths
from bcl_ray.tuning.search_ledger import check_search, open_search
from bcl_ray.tuning.settings import Extent, Settings


@dataclass(frozen=True)
class Winner:
    """The best trial of a search."""

    trial: str
    """Name of the trial; its run is <runs>/<search>/<trial>."""
    experiment: str
    """File of its experiment on the whole training split; an argument of `recipe`."""
    event: dict[str, Any]
    """What the command prints: scores, values of options, accuracies on test data."""


def search(
    experiment: Experiment | None = None,
    *,
    name: str | None = None,
    resume: str | None = None,
    restartable: bool = False,
    overrides: Sequence[str] = (),
    **options: Any,
) -> Winner:
    """Try many values of some options, and find those that are best on validation data.

        winner = bcl_ray.search(bcl_ray.recipe("digits_lt"), name="loss", trials=12)
        bcl_ray.train(bcl_ray.recipe(winner.experiment))

    Args:
        experiment: The experiment that trials change; None with `resume`.
        name: Name of the search; None for "search-", the recipe and the time.
        resume: Name or folder of a search to continue. It keeps the options that are not given
            here.
        restartable: Whether to continue the search `name` if it exists.
        overrides: Changes to the experiment, "section.field=value"; with `resume` only of scale
            and tracking.
        options: Fields of Settings and Extent: space (YAML), searcher, scheduler, metric,
            validation, seed, trials, workers, gpus_per_worker, max_concurrent, confirm.

    Raises:
        ValueError: The search cannot work, or its name is in use; nothing was written.
        bcl_ray.tuning.driver.UnfinishedError: No trial was completed.
        KeyboardInterrupt: Ctrl-C or SIGTERM stopped the search; `resume` continues.
    """
    request = resolve_search(
        experiment,
        name=name,
        resume=resume,
        restartable=restartable,
        overrides=overrides,
        **options,
    )
    checked = check_search(
        request.name,
        request.experiment,
        request.settings,
        request.extent,
        resume=request.resume,
    )
    quiet()
    from bcl_ray.tuning.search import run_search

    with receiver(SearchDisplay(console())) as follow:
        end = run_search(checked, follow=follow)
    return Winner(end["trial"], end["recipe"], end)


@dataclass(frozen=True)
class SearchRequest:
    """The complete options of a search."""

    name: str
    experiment: Experiment
    settings: Settings
    extent: Extent
    resume: bool


def resolve_search(
    experiment: Experiment | None,
    *,
    name: str | None = None,
    resume: str | None = None,
    restartable: bool = False,
    overrides: Sequence[str] = (),
    **options: Any,
) -> SearchRequest:
    """Complete the options of a search with defaults, or with those of the search that it resumes.

    The arguments are those of `search`; an option that is None was not given.

    Raises:
        ValueError: An option is unknown or missing, or options exclude each other.
    """
    fields = [*Settings.__dataclass_fields__, *Extent.__dataclass_fields__]
    if unknown := sorted(options.keys() - set(fields)):
        raise UserError(f"a search has no option '{unknown[0]}': there are {', '.join(fields)}")
    if restartable:
        if experiment is None or name is None:
            raise UserError(
                "--restartable needs a recipe, and --name, by which the search is found again"
            )
        runs = with_overrides(experiment, overrides).tracking.runs
        if search_exists(name, runs):
            resume, name, overrides = name, None, [*overrides, f"tracking.runs={runs}"]
    if resume is not None:
        if name is not None:
            raise UserError(
                "--name and --resume exclude each other: a resumed search keeps its name"
            )
        return _resumed(experiment, resume, overrides, options)
    if experiment is None:
        raise UserError("search needs a recipe's name or a YAML file; or --resume NAME")
    return SearchRequest(
        name or f"search-{run_folder.default_name(experiment)}",
        with_overrides(experiment, overrides),
        Settings(**_fields_of(Settings, options)),
        Extent(**_fields_of(Extent, options)),
        resume=False,
    )


def _resumed(
    experiment: Experiment | None,
    resume: str,
    overrides: Sequence[str],
    options: Mapping[str, Any],
) -> SearchRequest:
    uri = paths.absolute(run_folder.resumed_uri(resume, overrides))
    ledger = open_search(uri)
    return SearchRequest(
        ledger.name,
        with_overrides(
            experiment or ledger.experiment, [*overrides, f"tracking.runs={paths.parent(uri)}"]
        ),
        replace(ledger.settings, **_fields_of(Settings, options)),
        replace(ledger.extent, **_fields_of(Extent, options)),
        resume=True,
    )


def _fields_of(kind: type[Settings] | type[Extent], options: Mapping[str, Any]) -> dict[str, Any]:
    """The given options that are fields of a class."""
    fields = kind.__dataclass_fields__
    return {key: value for key, value in options.items() if key in fields and value is not None}


def search_exists(name: str, runs: str) -> bool:
    """Whether a folder or URI of runs has a search of this name."""
    folder = paths.absolute(run_folder.run_uri(name, runs))
    return files.exists(files.join(folder, SEARCH.file))
