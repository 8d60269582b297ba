"""Runs side by side; those that differ in nothing but the seed are one row, with their spread."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bcl_ray.machine.errors import UserError
from bcl_ray.runs import run_folder
from bcl_ray.storage import files, paths
from bcl_ray.tracking.registry import NAME, answered, mlflow_client
from bcl_ray.tracking.tracker import recorded, store, subject
from bcl_ray.use.models import last_state

if TYPE_CHECKING:
    from mlflow import MlflowClient

METRICS = ("accuracy/all", "accuracy/many", "accuracy/medium", "accuracy/few", "calibration/ece")
SEED, DATA = "train.seed", "data"
# What does not change what a run computes.
PLACES = ("scale.", "tracking.", "data.path")

Record = Mapping[str, float]


@dataclass(frozen=True)
class Compared:
    """A run as a comparison sees it.

    Args:
        place: its folder, or its id in MLflow.
        name: of the run.
        options: `section.field` to value, as text; and the data's fingerprint as `data`.
        records: metrics by name for each epoch that was evaluated, the first one first.
    """

    place: str
    name: str
    options: Mapping[str, str]
    records: tuple[Record, ...]


@dataclass(frozen=True)
class Row:
    """Runs with the same configuration but for the seed.

    Args:
        names: of the runs.
        label: the options in which the row differs from others.
        at: each run's metrics, those of one epoch.
        curves: accuracy over all classes of each run, per cent, by epoch.
    """

    names: tuple[str, ...]
    label: str
    at: tuple[Record, ...]
    curves: tuple[Mapping[int, float], ...]

    def values(self, metric: str) -> list[float]:
        """A metric of each run that has it."""
        return [record[metric] for record in self.at if metric in record]

    def mean_and_spread(self, metric: str) -> tuple[float, float | None] | None:
        """Mean, and standard deviation over seeds where there are several; None without values."""
        values = self.values(metric)
        if not values:
            return None
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def compare(names: Sequence[str], root: str = "runs", *, best: bool = False) -> list[Row]:
    """Read runs and put them side by side, the highest accuracy first.

    Args:
        names: runs below `root`, folders or URIs of runs, or names or ids of runs of MLflow; of
            a search, its trials are taken.
        root: folder or URI that holds runs.
        best: take each run's best epoch instead of its last; which flatters it, where that was
            found on the images that it is told of.

    Raises:
        ValueError: no such run, or one that has not been evaluated.
        OSError: MLflow does not answer.
    """
    with answered():
        found = {run.place: run for name in names for run in _read(name, root)}
    return rows(list(found.values()), best=best)


def rows(compared: Sequence[Compared], *, best: bool = False) -> list[Row]:
    """Put runs side by side: one row for each configuration, the highest accuracy first."""
    groups: dict[tuple[tuple[str, str], ...], list[Compared]] = {}
    names = Counter(run.name for run in compared)  # every search has a trial-000
    compared = [replace(r, name=r.place) if names[r.name] > 1 else r for r in compared]
    for run in compared:
        if not run.records:
            raise UserError(
                f"run '{run.name}' has evaluated nothing yet: wait for its first "
                "evaluation (train.eval_every)"
            )
        same = {name: value for name, value in run.options.items() if name != SEED}
        groups.setdefault(tuple(sorted(same.items())), []).append(run)
    differing = _differing([dict(key) for key in groups])
    made = [
        _row(runs, [(n, dict(key).get(n, "-")) for n in differing], best)
        for key, runs in groups.items()
    ]
    return sorted(made, key=lambda row: -statistics.fmean(row.values(METRICS[0])))


def _row(runs: Sequence[Compared], options: Sequence[tuple[str, str]], best: bool) -> Row:
    at = [_best(run.records) if best else run.records[-1] for run in runs]
    curves = [{int(r["epoch"]): r[METRICS[0]] for r in run.records} for run in runs]
    label = ", ".join(f"{name}={value}" for name, value in options)
    return Row(tuple(run.name for run in runs), label, tuple(at), tuple(curves))


def _best(records: Sequence[Record]) -> Record:
    return max(records, key=lambda record: record[METRICS[0]])


def _differing(options: Sequence[Mapping[str, str]]) -> list[str]:
    """Names of the options that do not have the same value everywhere."""
    names = dict.fromkeys(name for one in options for name in one)
    return [name for name in names if len({one.get(name) for one in options}) > 1]


def _read(name: str, root: str) -> list[Compared]:
    uri = paths.absolute(run_folder.run_uri(name, root))
    if files.exists(files.join(uri, run_folder.RUN_FILE)):
        return [_of_folder(uri)]
    if "/" in name:
        raise UserError(
            f"{paths.for_display(uri)} holds no run: name one that `bcl-ray train` began"
        )
    return _of_mlflow(name, root)


def _of_folder(uri: str) -> Compared:
    """A run from its journal, which is quickly read; elsewhere from its last checkpoint."""
    run, experiment = run_folder.open_run(uri)
    options = {**subject(run, experiment).parameters, DATA: run.fingerprint[:8]}
    records = recorded(run_folder.local_folder(run))
    if records is None:
        records = last_state(run).history
    return Compared(paths.for_display(run.uri), run.name, _computed(options), _evaluated(records))


def _evaluated(records: Iterable[Record]) -> tuple[Record, ...]:
    names = ("epoch", *METRICS)
    return tuple(
        {name: record[name] for name in names if name in record}
        for record in records
        if METRICS[0] in record
    )


def _computed(options: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in options.items() if not name.startswith(PLACES)}


def _of_mlflow(name: str, root: str) -> list[Compared]:
    if not NAME.fullmatch(name):
        raise UserError(f"'{name}' is no run's name: letters, digits, '.', '_' and '-'")
    uri = store(None, root)
    client = mlflow_client(uri)
    ids = [one.experiment_id for one in client.search_experiments()]
    found = client.search_runs(ids, f"attributes.run_name = '{name}'")
    found = found or client.search_runs(ids, f"attributes.run_id = '{name}'")
    if not found:
        raise UserError(
            f"'{name}' is no run: there is none in {paths.for_display(paths.absolute(root))}, and "
            f"none in MLflow at {uri}"
        )
    if len(found) > 1:
        known = ", ".join(run.info.run_id for run in found)
        raise UserError(f"MLflow at {uri} has {len(found)} runs '{name}': give one's id: {known}")
    run_id = found[0].info.run_id
    trials = client.search_runs(ids, f"tags.`mlflow.parentRunId` = '{run_id}'")
    chosen = [run for run in trials if METRICS[0] in run.data.metrics] or found
    return [_of_run(client, run) for run in chosen]


def _of_run(client: "MlflowClient", run: Any) -> Compared:
    epochs: dict[int, dict[str, float]] = {}
    for metric in METRICS:
        if metric in run.data.metrics:
            for one in client.get_metric_history(run.info.run_id, metric):
                epochs.setdefault(one.step, {"epoch": one.step})[metric] = one.value
    options = {**run.data.params, DATA: run.data.tags.get("data.fingerprint", "")[:8]}
    records = [epochs[step] for step in sorted(epochs)]
    return Compared(run.info.run_id, run.info.run_name, _computed(options), _evaluated(records))
