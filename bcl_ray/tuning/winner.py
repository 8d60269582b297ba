"""The end of a search: its best trial as a recipe, what that does on test data, and a report."""

import csv
import io
import json
import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bcl_ray.data.shards import Manifest
from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.report import figures
from bcl_ray.report import page as report
from bcl_ray.storage import files, paths
from bcl_ray.tracking.tracker import Tracker
from bcl_ray.tuning.ledger import Ledger
from bcl_ray.tuning.space import overrides
from bcl_ray.tuning.trials import Trial, best, ranked, seeds_of, spread, standing
from bcl_ray.use.evaluate import evaluate_models

WINNER_FILE, RECIPE_FILE = "winner.json", "winner.yaml"

logger = logging.getLogger(__name__)


def conclude(
    ledger: Ledger,
    trials: Sequence[Trial],
    manifest: Manifest,
    *,
    tracker: Tracker,
    folder: Path,
    note: Callable[[str], None],
) -> dict[str, Any]:
    """Write winner.yaml and the report, and evaluate the winner on test data, if that was not done.

    Args:
        ledger: of the search.
        trials: all, one of which has come to its end.
        manifest: of the whole data.
        tracker: of the search.
        folder: local, for what is drawn.
        note: takes what a person should know.

    Returns:
        `search`, `metric`; `trial`, `score` and `point` of the winner; `published`, the score of
        trial 0, or None, each the mean over other seeds where there are such; `confirmed`, scores
        with other seeds by trial; `test`, mean and deviation by metric; `recipe`, where
        winner.yaml is.
    """
    winner = best(trials)
    assert winner is not None
    confirmed = {t.name: seeds_of(t, trials) for t in ranked(trials) if seeds_of(t, trials)}
    # A mean over seeds is not to be compared with one run.
    alike = [t for t in ranked(trials) if not confirmed or t.name in confirmed]
    published = next((standing(t, trials) for t in alike if t.number == 0), None)
    recipe = ledger.place(RECIPE_FILE)
    test = _test(ledger, winner, trials, manifest)
    files.write_bytes(recipe, _recipe(ledger, winner).to_yaml().encode())
    found = {
        "search": ledger.name,
        "metric": ledger.settings.metric,
        "trial": winner.name,
        "score": standing(winner, trials),
        "published": published,
        "point": winner.point,
        "confirmed": confirmed,
        "test": test,
        "recipe": paths.for_display(recipe),
    }
    tracker.text(RECIPE_FILE, _recipe(ledger, winner).to_yaml())
    tracker.tags({"winner": winner.name})
    tracker.metrics({f"test/{name}": mean for name, (mean, _) in test.items()}, 0)
    try:
        _draw(ledger, trials, found, tracker, folder)
    except Exception as error:  # what can be looked at is no part of what was found
        logger.exception("no report")
        note(f"the report was not made: {error}")
    return found


def _recipe(ledger: Ledger, winner: Trial) -> Experiment:
    return with_overrides(ledger.experiment, overrides(winner.point))


def _test(
    ledger: Ledger, winner: Trial, trials: Sequence[Trial], manifest: Manifest
) -> dict[str, tuple[float, float]]:
    """Mean and deviation of each metric on the test split, over the winner's runs; done once."""
    data = ledger.experiment.data
    repeated = [
        t.name
        for t in trials
        if t.number == winner.number and t.seed is not None and t.status == "finished"
    ]
    names = repeated or [winner.name]
    try:
        before = json.loads(files.read_bytes(ledger.place(WINNER_FILE)))
    except FileNotFoundError:
        before = {}
    if before.get("runs") != names or before.get("fingerprint") != manifest.fingerprint:
        evaluated = evaluate_models(names, ledger.uri, data=data.path, split=data.eval_split)
        metrics = [metrics for _, metrics in evaluated]
        before = {
            "runs": names,
            "fingerprint": manifest.fingerprint,
            "split": data.eval_split,
            "test": {name: _mean(metrics, name) for name in metrics[0]},
        }
        files.write_bytes(ledger.place(WINNER_FILE), json.dumps(before, indent=1).encode())
    return {name: (mean, spread) for name, (mean, spread) in before["test"].items()}


def _mean(metrics: Sequence[Mapping[str, float]], name: str) -> tuple[float, float]:
    values = [found[name] for found in metrics if name in found]
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _draw(
    ledger: Ledger, trials: Sequence[Trial], found: dict[str, Any], tracker: Tracker, folder: Path
) -> None:
    """The figure of the parameters, the table of all trials, and the page that has both."""
    space, metric = ledger.space, ledger.settings.metric
    names = [parameter.name for parameter in space.parameters]
    own = [trial for trial in trials if trial.seed is None]
    rows = [
        {
            **t.point,
            metric: t.score,
            "trial": t.number,
            "stopped": t.status == "stopped",
            "best": t.name == found["trial"],
        }
        for t in own
    ]
    scales = {parameter.name: parameter.scale for parameter in space.parameters}
    picture = figures.png(figures.search.parameters(rows, metric, names, scales))
    page = report.page(
        f"search {ledger.name}",
        [
            report.PageSection("", _summary(ledger, trials, found)),
            report.PageSection("parameters", figures=[(picture, f"{metric} against each option")]),
            report.PageSection("trials", table=_table(ordered(own), metric)),
        ],
    )
    contents = {
        "figures/parameters.png": picture,
        "trials.csv": _csv(ordered(trials), metric, names),
        "report.html": page.encode(),
    }
    for name, content in contents.items():
        files.write_bytes(ledger.place(name), content)
        files.write_bytes(str(folder / name), content)
        tracker.artifact(folder / name, str(Path(name).parent) if "/" in name else "")


def _table(trials: Sequence[Trial], metric: str) -> report.PageTable:
    """As the page shows it: short, and numbers with as many digits as they have."""
    names = [name.rpartition(".")[2] for name in trials[0].point]
    rows = [
        [
            t.number,
            t.status,
            t.epochs,
            "-" if t.score is None else f"{t.score:.2f}",
            *map(str, t.point.values()),
            t.reason or "",
        ]
        for t in trials
    ]
    columns = ["trial", "status", "epochs", metric, *names, "reason"]
    if not any(row[-1] for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return report.PageTable(columns, rows)


def ordered(trials: Sequence[Trial]) -> list[Trial]:
    """Trials as a table shows them: those that ended, the best first; then stopped ones, those
    that came far first."""

    def key(trial: Trial) -> tuple[bool, int, float]:
        score = float("-inf") if trial.score is None else trial.score
        return (trial.status != "finished", -trial.epochs, -score)

    return sorted(trials, key=key)


def _summary(ledger: Ledger, trials: Sequence[Trial], found: dict[str, Any]) -> list[str]:
    own = [trial for trial in trials if trial.seed is None]
    ends = {status: sum(t.status == status for t in own) for status in ("finished", "stopped")}
    failed = len(own) - sum(ends.values())
    changes = ", ".join(overrides(found["point"]))
    texts = [
        f"{ledger.experiment.name}: {len(own)} trials ({ledger.settings.searcher}, "
        f"{ledger.settings.scheduler}); {ends['finished']} came to their end, {ends['stopped']} "
        f"were stopped early, {failed} failed.",
        f"Best is {found['trial']} with {found['metric']} {found['score']:.2f} on validation data"
        + (" over other seeds" if found["confirmed"] else "")
        + (f", {found['published']:.2f} with the published values" if found["published"] else "")
        + f": {changes}.",
    ]
    for name, scores in found["confirmed"].items():
        texts.append(f"{name} with {len(scores)} other seeds: {spread(scores)}.")
    if not found["confirmed"]:
        texts.append(
            "It is one run of each: differences under half a point mean nothing. "
            "--confirm K,N trains the best K again with N other seeds."
        )
    mean, deviation = found["test"]["accuracy/all"]
    of = f" ± {deviation:.2f}" if deviation else ""
    texts.append(f"On test data, looked at once, at the end: accuracy/all {mean:.2f}{of}.")
    return texts


def _csv(trials: Sequence[Trial], metric: str, names: Sequence[str]) -> bytes:
    """All trials with all that is known of them, repeats included."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "status", "epochs", metric, *names, "seed", "seconds", "reason"])
    writer.writerows(
        [t.name, t.status, t.epochs, t.score, *t.point.values(), t.seed, t.seconds, t.reason]
        for t in trials
    )
    return text.getvalue().encode()
