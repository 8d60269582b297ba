"""The tables of a study: its cells over seeds, differences between them, and all of its runs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bcl_ray.experiment.metric_names import STUDY_RESULTS
from bcl_ray.machine.csv_text import csv_text
from bcl_ray.report.seeds import half_interval, mean_and_deviation, paired_differences, spread
from bcl_ray.tuning.study_cells import Cell, Study
from bcl_ray.tuning.trials import Trial

BEST = "best all"  # accuracy of the best epoch, which was chosen on the evaluated images
# Digits after the decimal point; other columns have 2.
DIGITS = {"minutes": 1, "tail cosine": 3, "feature tail cosine": 3}
CSV_DIGITS = 4


@dataclass(frozen=True)
class Estimate:
    """The mean of a quantity over seeds, and half of its 95 % interval."""

    mean: float
    half: float | None
    """None with one seed, which says nothing about others."""

    def text(self, digits: int) -> str:
        """The estimate, with this number of digits after the decimal point."""
        return spread(self.mean, self.half, digits)


Rows = list[dict[str, Any]]  # of a table, by column; a cell is text, a number, an Estimate or None


@dataclass(frozen=True)
class CellResult:
    """A cell of a study, and its runs."""

    cell: Cell
    runs: tuple[Trial, ...]
    """One per seed."""

    @property
    def finished(self) -> list[Trial]:
        """The runs that were trained to their end."""
        return [run for run in self.runs if run.status == "finished"]

    @property
    def minutes(self) -> float | None:
        """Mean time of a run, while others may run beside it; None if none finished."""
        seconds = [run.seconds for run in self.finished]
        return mean_and_deviation(seconds)[0] / 60 if seconds else None

    def by_seed(self, column: str) -> dict[int, float]:
        """Values of a column of finished runs, by seed."""
        values = {run.seed: _values(run).get(column) for run in self.finished}
        return {
            seed: value for seed, value in values.items() if seed is not None and value is not None
        }

    def estimate(self, column: str) -> Estimate | None:
        """A column over seeds; None if no run has it."""
        values = list(self.by_seed(column).values())
        return estimate(values) if values else None


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and interval of values of different seeds."""
    return Estimate(mean_and_deviation(values)[0], half_interval(values))


def runs_of_cells(study: Study, trials: Iterable[Trial]) -> list[CellResult]:
    """The runs of each cell, in the order of the file."""
    by_name = {trial.name: trial for trial in trials}
    results = []
    for cell in study.cells:
        names = [cell.run_name(seed) for seed in study.seeds]
        runs = tuple(by_name[name] for name in names if name in by_name)
        results.append(CellResult(cell, runs))
    return results


def tables(study: Study, results: Sequence[CellResult]) -> dict[str, Rows]:
    """All tables that have rows, by name."""
    found = {
        "summary": summary(results),
        "differences": differences(study, results),
        "runs": all_runs(results),
    }
    return {name: rows for name, rows in found.items() if rows}


def _values(run: Trial) -> dict[str, float]:
    """The results of a run: its last epoch, and the accuracy of its best one."""
    columns = {
        column: run.metrics[metric]
        for column, metric in STUDY_RESULTS.items()
        if metric in run.metrics
    }
    best = {BEST: max(run.scores.values())} if run.scores else {}
    return {**columns, **best}


def _columns(results: Sequence[CellResult]) -> list[str]:
    """The results that at least one run has; BEST comes after "all"."""
    found = [name for name in STUDY_RESULTS if any(result.by_seed(name) for result in results)]
    position = found.index("all") + 1 if "all" in found else 0
    return [*found[:position], BEST, *found[position:]]


def summary(results: Sequence[CellResult]) -> Rows:
    """One row per cell, over its seeds."""
    columns = _columns(results)
    return [
        {
            **result.cell.labels,
            "seeds": len(result.finished),
            **{column: result.estimate(column) for column in columns},
            "minutes": result.minutes,
            "hardware": _joined(run.hardware for run in result.finished),
            "commit": _joined(run.commit for run in result.finished),
        }
        for result in results
    ]


def all_runs(results: Sequence[CellResult]) -> Rows:
    """One row per cell and seed."""
    columns = _columns(results)
    return [
        {
            **result.cell.labels,
            "seed": run.seed,
            "status": run.status,
            "epochs": run.epochs,
            **{column: _values(run).get(column) for column in columns},
            "minutes": run.seconds / 60,
            "hardware": run.hardware,
            "commit": run.commit,
            "reason": run.reason,
        }
        for result in results
        for run in result.runs
    ]


def differences(study: Study, results: Sequence[CellResult]) -> Rows:
    """Differences of results between labels of the first axis, paired by seed."""
    first_axis, *other_axes = study.axes
    by_labels = {tuple(result.cell.labels.values()): result for result in results}
    on_other_axes = list(dict.fromkeys(labels[1:] for labels in by_labels))
    columns = [c for c in STUDY_RESULTS if any(result.by_seed(c) for result in results)]
    rows = []
    for labels in on_other_axes:
        for one, other in study.compare:
            first, second = by_labels[one, *labels], by_labels[other, *labels]
            paired = {
                column: paired_differences(first.by_seed(column), second.by_seed(column))
                for column in columns
            }
            estimates = {c: estimate(values) if values else None for c, values in paired.items()}
            shared = dict(zip(other_axes, labels, strict=True))
            labelled = {first_axis: f"{one} - {other}", **shared}
            rows.append({**labelled, "seeds": len(paired.get("all", ())), **estimates})
    return rows


def curves(result: CellResult) -> list[Mapping[int, float]]:
    """Of each finished run, accuracy by epoch, counted from 0."""
    return [{epochs - 1: value for epochs, value in run.scores.items()} for run in result.finished]


def _joined(texts: Iterable[str | None]) -> str | None:
    return "; ".join(dict.fromkeys(text for text in texts if text)) or None


def shown(row: Mapping[str, Any]) -> dict[str, str]:
    """A row as text for people."""
    return {column: _text(column, value) for column, value in row.items()}


def _text(column: str, value: Any) -> str:
    if value is None:
        return "-"
    digits = DIGITS.get(column, 2)
    if isinstance(value, Estimate):
        return value.text(digits)
    if column == "commit":
        return "; ".join(commit[:10] + commit[40:] for commit in value.split("; "))
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def markdown(rows: Rows) -> str:
    """A table in Markdown."""
    cells = [shown(row) for row in rows]
    lines = [list(cells[0]), ["---"] * len(cells[0]), *(list(row.values()) for row in cells)]
    escaped = (" | ".join(text.replace("|", "\\|") for text in line) for line in lines)
    return "".join(f"| {line} |\n" for line in escaped)


def as_csv(rows: Rows) -> str:
    """A table as CSV, with the half-widths of intervals in columns of their own."""
    columns, data = _flat(rows)
    return csv_text([columns, *data])


def as_mlflow_table(rows: Rows) -> str:
    """A table in the JSON of MLflow's tables."""
    columns, data = _flat(rows)
    return json.dumps({"columns": columns, "data": data})


def _flat(rows: Rows) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of numbers and texts: an estimate takes two columns."""
    columns: list[str] = []
    data: list[list[Any]] = [[] for _ in rows]
    for column in rows[0]:
        values = [row[column] for row in rows]
        means = [value.mean if isinstance(value, Estimate) else value for value in values]
        parts = {column: means}
        if any(isinstance(value, Estimate) for value in values):
            parts[f"{column} ±"] = [getattr(value, "half", None) for value in values]
        for name, part in parts.items():
            columns.append(name)
            for line, value in zip(data, part, strict=True):
                line.append(round(value, CSV_DIGITS) if isinstance(value, float) else value)
    return columns, data
