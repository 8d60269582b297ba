"""Searches for the values of options."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bcl_ray.display.search import follower
from bcl_ray.display.terminal import console, quiet
from bcl_ray.experiment.options import Experiment, TrackingConfig
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.machine.errors import UserError
from bcl_ray.runs import run_folder
from bcl_ray.storage import files, paths
from bcl_ray.tuning.ledger import SEARCH_FILE, open_search
from bcl_ray.tuning.settings import Extent, Settings


@dataclass(frozen=True)
class Winner:
    """The best trial of a search."""

    trial: str
    """Its name; its run is <runs>/<search>/<trial>."""
    experiment: str
    """File of its experiment, which `recipe` takes, to train on the whole training split."""
    event: dict[str, Any]
    """All that the command prints of it: scores, values, accuracies on test data."""


def search(
    experiment: Experiment | None = None,
    *,
    name: str | None = None,
    resume: str | None = None,
    restartable: bool = False,
    overrides: Sequence[str] = (),
    **options: Any,
) -> Winner:
    """Try many values of some options, and keep those that are best on validation data.

        winner = bcl_ray.search(bcl_ray.recipe("digits_lt"), name="loss", trials=12)
        bcl_ray.train(bcl_ray.recipe(winner.experiment))

    Args:
        experiment: what is searched around; None with `resume`.
        name: of the search; None: search-, the recipe and the time.
        resume: name or folder of a search to go on with; its options are its own, where none is
            given here.
        restartable: go on with the search `name`, if there is one, else begin it.
        overrides: changes of the experiment; with `resume` only of scale and tracking.
        options: fields of Settings and Extent: space (YAML), searcher, scheduler, metric,
            validation, seed, trials, workers, gpus_per_worker, max_concurrent, confirm.

    Raises:
        ValueError: the search cannot work, or its name is taken; nothing was written.
        bcl_ray.tuning.phases.SearchError: no trial came to its end.
        KeyboardInterrupt: Ctrl-C or SIGTERM came; `resume` goes on.
    """
    asked = wanted(
        experiment,
        options
        | {"name": name, "resume": resume, "restartable": restartable, "overrides": overrides},
    )
    _check(asked)
    quiet()
    from bcl_ray.tuning.driver import search as run

    with follower(console()) as follow:
        ended = run(
            asked.name,
            asked.experiment,
            asked.settings,
            asked.extent,
            follow=follow,
            resume=asked.resume,
        )
    return Winner(ended["trial"], ended["recipe"], ended)


@dataclass(frozen=True)
class SearchRequest:
    """What a search is to be."""

    name: str
    experiment: Experiment
    settings: Settings
    extent: Extent
    resume: bool


def wanted(experiment: Experiment | None, given: Mapping[str, Any]) -> SearchRequest:
    """What a search is to be: the options given, and for the others their defaults.

    Those of a search that goes on are its own. Arguments as of `search`.

    Raises:
        ValueError: options that are missing, or that exclude each other.
    """
    options = dict(given)
    name, resume = options.pop("name", None), options.pop("resume", None)
    restartable, overrides = options.pop("restartable", False), options.pop("overrides", ())
    known = [*Settings.__dataclass_fields__, *Extent.__dataclass_fields__]
    if unknown := sorted(options.keys() - set(known)):
        raise UserError(f"a search has no option '{unknown[0]}': there are {', '.join(known)}")
    if restartable:
        if experiment is None or name is None:
            raise UserError(
                "--restartable needs a recipe, and --name, by which the search is found"
            )
        runs = with_overrides(experiment, overrides).tracking.runs
        if begun(name, runs):
            resume, name, overrides = name, None, [*overrides, f"tracking.runs={runs}"]
    if resume is not None:
        if name is not None:
            raise UserError("--name and --resume exclude each other: a search keeps its name")
        return _resumed(experiment, resume, overrides, options)
    if experiment is None:
        raise UserError("search needs a recipe's name or a YAML file; or --resume NAME")
    return SearchRequest(
        name or f"search-{run_folder.default_name(experiment)}",
        with_overrides(experiment, overrides),
        Settings(**_of(Settings, options)),
        Extent(**_of(Extent, options)),
        resume=False,
    )


def _resumed(
    experiment: Experiment | None,
    resume: str,
    overrides: Sequence[str],
    options: Mapping[str, Any],
) -> SearchRequest:
    roots = [text.partition("=")[2] for text in overrides if text.startswith("tracking.runs=")]
    uri = paths.absolute(run_folder.run_uri(resume, roots[-1] if roots else TrackingConfig().runs))
    ledger = open_search(uri)
    return SearchRequest(
        ledger.name,
        with_overrides(
            experiment or ledger.experiment, [*overrides, f"tracking.runs={paths.parent(uri)}"]
        ),
        replace(ledger.settings, **_of(Settings, options)),
        replace(ledger.extent, **_of(Extent, options)),
        resume=True,
    )


def _of(kind: type[Settings] | type[Extent], options: Mapping[str, Any]) -> dict[str, Any]:
    """Those options that are fields of a kind, and that were given."""
    known = kind.__dataclass_fields__
    return {key: value for key, value in options.items() if key in known and value is not None}


def _check(asked: SearchRequest) -> None:
    """Refuse what cannot work in a moment, where Ray takes seconds to import."""
    from bcl_ray.data.shards import read_manifest
    from bcl_ray.tuning.settings import check_search

    manifest = read_manifest(asked.experiment.data.path)
    check_search(asked.name, asked.experiment, asked.settings, asked.extent, manifest)


def begun(name: str, runs: str) -> bool:
    """Whether a search of this name was begun before, in a folder of runs."""
    folder = paths.absolute(run_folder.run_uri(name, runs))
    return files.exists(files.join(folder, SEARCH_FILE))
