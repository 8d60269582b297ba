"""Compare runs; those that differ only in the seed form one row, with mean and deviation."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bcl_ray.experiment.metric_names import ACCURACY, RESULTS
from bcl_ray.experiment.options.section import NAME
from bcl_ray.machine.errors import UserError
from bcl_ray.report.seeds import mean_and_deviation
from bcl_ray.runs import run_folder
from bcl_ray.storage import paths
from bcl_ray.tracking.connection import mlflow_client, mlflow_errors, mlflow_uri
from bcl_ray.tracking.tracker import journal_metrics, training_subject
from bcl_ray.use.models import last_state

if TYPE_CHECKING:
    from mlflow import MlflowClient

SEED, DATA = "train.seed", "data"
IRRELEVANT_OPTIONS = ("scale.", "tracking.", "data.path")  # they do not change a run's result

Record = Mapping[str, float]  # metrics of one epoch, by name


@dataclass(frozen=True)
class ComparedRun:
    """A run with its options and metrics."""

    location: str  # its folder, or its id in MLflow
    name: str
    options: Mapping[str, str]  # `section.field` to value; and the data's fingerprint as `data`
    records: tuple[Record, ...]  # of each epoch that was evaluated, in order


@dataclass(frozen=True)
class Row:
    """Runs that differ only in the seed."""

    names: tuple[str, ...]  # of the runs
    label: str  # the options in which the row differs from other rows
    records: tuple[Record, ...]  # of each run, the metrics of its last or its best epoch
    curves: tuple[Mapping[int, float], ...]  # of each run, ACCURACY by epoch

    def values(self, metric: str) -> list[float]:
        """A metric of each run that has it."""
        return [record[metric] for record in self.records if metric in record]

    def mean_and_deviation(self, metric: str) -> tuple[float, float | None] | None:
        """Mean and standard deviation over seeds.

        The deviation is None with only one seed, and the result is None if no run has the metric.
        """
        values = self.values(metric)
        if not values:
            return None
        return mean_and_deviation(values)


def compare(names: Sequence[str], root: str = "runs", *, best: bool = False) -> list[Row]:
    """Read runs and group them into rows, the highest accuracy first.

    Args:
        names: Runs below `root`; folders or URIs of runs; or names or ids of runs in MLflow. A
            search in MLflow stands for its trials.
        root: Folder or URI that holds runs.
        best: Take each run's best epoch instead of its last. This is optimistic if the epoch was
            chosen on the images that the metrics are computed on.

    Raises:
        ValueError: There is no such run, or it has not been evaluated yet.
        OSError: MLflow does not respond.
    """
    with mlflow_errors():
        runs = {run.location: run for name in names for run in _read(name, root)}
    return group_runs(list(runs.values()), best=best)


def group_runs(runs: Sequence[ComparedRun], *, best: bool = False) -> list[Row]:
    """Group runs into one row per configuration, the highest accuracy first.

    Raises:
        ValueError: A run has not been evaluated yet.
    """
    counts = Counter(run.name for run in runs)  # every search has a trial-000
    groups: dict[tuple[tuple[str, str], ...], list[ComparedRun]] = {}
    for run in runs:
        if not run.records:
            raise UserError(
                f"run '{run.name}' has evaluated nothing yet: wait for its first "
                "evaluation (train.eval_every)"
            )
        configuration = {name: value for name, value in run.options.items() if name != SEED}
        group = groups.setdefault(tuple(sorted(configuration.items())), [])
        group.append(replace(run, name=run.location) if counts[run.name] > 1 else run)
    configurations = [dict(key) for key in groups]
    differing = _differing_options(configurations)
    rows = [
        _row(group, {name: configuration.get(name, "-") for name in differing}, best=best)
        for configuration, group in zip(configurations, groups.values(), strict=True)
    ]
    return sorted(rows, key=lambda row: -statistics.fmean(row.values(ACCURACY)))


def _row(runs: Sequence[ComparedRun], options: Mapping[str, str], *, best: bool) -> Row:
    def chosen(records: Sequence[Record]) -> Record:
        return max(records, key=lambda record: record[ACCURACY]) if best else records[-1]

    return Row(
        names=tuple(run.name for run in runs),
        label=", ".join(f"{name}={value}" for name, value in options.items()),
        records=tuple(chosen(run.records) for run in runs),
        curves=tuple({int(r["epoch"]): r[ACCURACY] for r in run.records} for run in runs),
    )


def _differing_options(configurations: Sequence[Mapping[str, str]]) -> list[str]:
    """Names of the options that do not have the same value in all configurations."""
    names = dict.fromkeys(name for options in configurations for name in options)
    return [name for name in names if len({options.get(name) for options in configurations}) > 1]


def _read(name: str, root: str) -> list[ComparedRun]:
    uri = paths.absolute(run_folder.run_uri(name, root))
    if run_folder.holds_run(uri):
        return [_from_folder(uri)]
    if "/" in name:
        raise UserError(
            f"{paths.for_display(uri)} holds no run: name one that `bcl-ray train` began"
        )
    return _from_mlflow(name, root)


def _from_folder(uri: str) -> ComparedRun:
    """Read a run from its journal; without one on this machine, from its last checkpoint."""
    run, experiment = run_folder.open_run(uri)
    records = journal_metrics(run_folder.local_folder(run))
    if records is None:
        records = last_state(run).history
    parameters = training_subject(run, experiment).parameters
    return _compared_run(paths.for_display(run.uri), run.name, parameters, run.fingerprint, records)


def _from_mlflow(name: str, root: str) -> list[ComparedRun]:
    """Read a run, or all trials of a search, from MLflow."""
    if not NAME.fullmatch(name):
        raise UserError(f"'{name}' is no run's name: letters, digits, '.', '_' and '-'")
    uri = mlflow_uri(None, root)
    client = mlflow_client(uri)
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(ids, f"attributes.run_name = '{name}'")
    runs = runs or client.search_runs(ids, f"attributes.run_id = '{name}'")
    if not runs:
        raise UserError(
            f"'{name}' is no run: there is none in {paths.for_display(paths.absolute(root))}, and "
            f"none in MLflow at {uri}"
        )
    if len(runs) > 1:
        run_ids = ", ".join(run.info.run_id for run in runs)
        raise UserError(f"MLflow at {uri} has {len(runs)} runs '{name}': give one's id: {run_ids}")
    parent = runs[0].info.run_id
    trials = client.search_runs(ids, f"tags.`mlflow.parentRunId` = '{parent}'")
    evaluated_trials = [trial for trial in trials if ACCURACY in trial.data.metrics]
    return [_from_mlflow_run(client, run) for run in evaluated_trials or runs]


def _from_mlflow_run(client: "MlflowClient", run: Any) -> ComparedRun:
    epochs: dict[int, dict[str, float]] = {}
    for name in RESULTS.values():
        if name in run.data.metrics:
            for metric in client.get_metric_history(run.info.run_id, name):
                epochs.setdefault(metric.step, {"epoch": metric.step})[name] = metric.value
    return _compared_run(
        run.info.run_id,
        run.info.run_name,
        run.data.params,
        run.data.tags.get("data.fingerprint", ""),
        [epochs[step] for step in sorted(epochs)],
    )


def _compared_run(
    location: str,
    name: str,
    parameters: Mapping[str, str],
    fingerprint: str,
    records: Iterable[Record],
) -> ComparedRun:
    """A run with the options, records and metrics that are compared."""
    columns = ("epoch", *RESULTS.values())
    return ComparedRun(
        location,
        name,
        {
            **{n: value for n, value in parameters.items() if not n.startswith(IRRELEVANT_OPTIONS)},
            DATA: fingerprint[:8],
        },
        tuple(
            {column: record[column] for column in columns if column in record}
            for record in records
            if ACCURACY in record
        ),
    )
