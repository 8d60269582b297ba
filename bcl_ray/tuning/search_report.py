"""The report of a search: report.html, a figure of the searched options, and trials.csv."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bcl_ray.experiment.metric_names import ACCURACY
from bcl_ray.machine.csv_text import csv_text
from bcl_ray.report.figures.search import search_figure
from bcl_ray.report.figures.style import png
from bcl_ray.report.page import PageSection, PageTable, page
from bcl_ray.report.seeds import mean_and_deviation, spread
from bcl_ray.tracking.tracker import Tracker
from bcl_ray.tuning.reporter import publish
from bcl_ray.tuning.search_ledger import SearchLedger
from bcl_ray.tuning.space import overrides
from bcl_ray.tuning.trials import Trial, own_trials


def write_report(
    ledger: SearchLedger,
    trials: Sequence[Trial],
    winner: dict[str, Any],
    tracker: Tracker,
    folder: Path,
) -> None:
    """Write the report to the search's folder, to a local folder, and to MLflow.

    Args:
        ledger: SearchLedger of the search.
        trials: All trials and repeats.
        winner: Result of the search, as `winner.conclude` returns it.
        tracker: Tracker of the search.
        folder: Local folder, from which MLflow gets its copy.
    """
    metric = ledger.settings.metric
    own = own_trials(trials)
    figure = _parameter_figure(ledger, own, winner["trial"])
    report = page(
        f"search {ledger.name}",
        [
            PageSection("", _summary(ledger, own, winner)),
            PageSection("parameters", figures=[(figure, f"{metric} against each option")]),
            PageSection("trials", table=_table(ordered(own), metric)),
        ],
    )
    contents = {
        "figures/parameters.png": figure,
        "trials.csv": _csv(ledger, ordered(trials)),
        "report.html": report.encode(),
    }
    publish(contents, ledger.uri, folder, tracker)


def _parameter_figure(ledger: SearchLedger, own: Sequence[Trial], winner: str) -> bytes:
    """The score against each searched option, as PNG."""
    parameters, metric = ledger.space.parameters, ledger.settings.metric
    rows = [
        {
            **trial.point,
            metric: trial.score,
            "trial": trial.number,
            "stopped": trial.status == "stopped",
            "best": trial.name == winner,
        }
        for trial in own
    ]
    names = [parameter.name for parameter in parameters]
    scales = {parameter.name: parameter.scale for parameter in parameters}
    return png(search_figure(rows, metric, names, scales))


def ordered(trials: Sequence[Trial]) -> list[Trial]:
    """Trials in the order of a table.

    Finished ones come first, the best on top; then the others, those of most epochs on top.
    """

    def key(trial: Trial) -> tuple[bool, int, float]:
        score = float("-inf") if trial.score is None else trial.score
        return (trial.status != "finished", -trial.epochs, -score)

    return sorted(trials, key=key)


def _table(trials: Sequence[Trial], metric: str) -> PageTable:
    """A table of trials; reasons of failures have a column only if there are any."""
    options = [name.rpartition(".")[2] for name in trials[0].point]
    columns = ["trial", "status", "epochs", metric, *options]
    rows = [
        [
            trial.number,
            trial.status,
            trial.epochs,
            "-" if trial.score is None else f"{trial.score:.2f}",
            *map(str, trial.point.values()),  # as text, with all of their digits
        ]
        for trial in trials
    ]
    if any(trial.reason for trial in trials):
        columns.append("reason")
        for row, trial in zip(rows, trials, strict=True):
            row.append(trial.reason or "")
    return PageTable(columns, rows)


def _summary(ledger: SearchLedger, own: Sequence[Trial], winner: dict[str, Any]) -> list[str]:
    """The paragraphs at the top of the page."""
    finished, stopped = (
        sum(trial.status == status for trial in own) for status in ("finished", "stopped")
    )
    failed = len(own) - finished - stopped
    mean_over = " on average over other seeds" if winner["confirmed"] else ""
    published = winner["published"]
    comparison = ""
    if published is not None:
        comparison = f" (with the published values {published:.2f})"
    texts = [
        f"{ledger.experiment.name}: {len(own)} trials ({ledger.settings.searcher}, "
        f"{ledger.settings.scheduler}); {finished} finished, {stopped} were stopped early, "
        f"{failed} failed.",
        f"The best is {winner['trial']} with {winner['metric']} {winner['score']:.2f} on "
        f"validation data{mean_over}{comparison}: {', '.join(overrides(winner['point']))}.",
    ]
    for name, scores in winner["confirmed"].items():
        score = spread(*mean_and_deviation(scores), 2)
        texts.append(f"{name} with {len(scores)} other seeds: {score}.")
    if not winner["confirmed"]:
        texts.append(
            "Each trial is one run: differences under half a point mean nothing. "
            "--confirm K,N trains the best K again with N other seeds."
        )
    mean, deviation = winner["test"][ACCURACY]
    test = spread(mean, deviation or None, 2)  # the deviation is 0 for a single run
    texts.append(f"On test data, used only once, at the end: {ACCURACY} {test}.")
    return texts


def _csv(ledger: SearchLedger, trials: Sequence[Trial]) -> bytes:
    """All trials and repeats as CSV."""
    options = [parameter.name for parameter in ledger.space.parameters]
    metric = ledger.settings.metric
    head = ["trial", "status", "epochs", metric, *options, "seed", "seconds", "reason"]
    rows = (
        [t.name, t.status, t.epochs, t.score, *t.point.values(), t.seed, t.seconds, t.reason]
        for t in trials
    )
    return csv_text([head, *rows]).encode()
