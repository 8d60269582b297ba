"""The end of a search: its best trial as a recipe, evaluated on test data."""

import json
import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bcl_ray.data.shards import Manifest
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.storage import files, paths
from bcl_ray.tracking.tracker import Tracker
from bcl_ray.tuning.search_ledger import SearchLedger
from bcl_ray.tuning.search_report import write_report
from bcl_ray.tuning.space import overrides
from bcl_ray.tuning.trials import Trial, best_trial, final_score, ranked, repeat_scores
from bcl_ray.use.evaluate import evaluate_models
from bcl_ray.use.models import open_model

WINNER_FILE, RECIPE_FILE = "winner.json", "winner.yaml"

MeanAndDeviation = tuple[float, float]

logger = logging.getLogger(__name__)


def conclude(
    ledger: SearchLedger,
    trials: Sequence[Trial],
    manifest: Manifest,
    *,
    tracker: Tracker,
    folder: Path,
    notify: Callable[[str], None],
) -> dict[str, Any]:
    """Evaluate the winner on test data, and write winner.yaml and the report.

    Args:
        ledger: SearchLedger of the search.
        trials: All trials and repeats, at least one of which has finished.
        manifest: Manifest of the whole data set.
        tracker: Tracker of the search.
        folder: Local folder for the report.
        notify: Called with messages for the user.

    Returns:
        `search` and `metric`; `trial`, `score` and `point` of the winner; `published`, the score
        of trial 0, or None if it did not finish; `confirmed`, scores with other seeds by trial;
        `test`, mean and standard deviation by metric; `recipe`, location of winner.yaml. If trials
        were repeated, `score` and `published` are means over repeats that finished.
    """
    winner = best_trial(trials)
    assert winner is not None
    finished = ranked(trials)
    confirmed = {t.name: scores for t in finished if (scores := repeat_scores(t, trials))}
    # A mean over repeats is compared only with other means, not with the score of a single run.
    comparable = [t for t in finished if not confirmed or t.name in confirmed]
    published = next((final_score(t, trials) for t in comparable if t.number == 0), None)
    test = _test_metrics(ledger, winner, trials, manifest)
    recipe = with_overrides(ledger.experiment, overrides(winner.point)).to_yaml()
    recipe_file = ledger.file(RECIPE_FILE)
    files.write_bytes(recipe_file, recipe.encode())
    result = {
        "search": ledger.name,
        "metric": ledger.settings.metric,
        "trial": winner.name,
        "score": final_score(winner, trials),
        "published": published,
        "point": winner.point,
        "confirmed": confirmed,
        "test": test,
        "recipe": paths.for_display(recipe_file),
    }
    tracker.text(RECIPE_FILE, recipe)
    tracker.tags({"winner": winner.name})
    tracker.metrics({f"test/{name}": mean for name, (mean, _) in test.items()}, 0)
    try:
        write_report(ledger, trials, result, tracker, folder)
    except Exception as error:  # the search has its result, with or without a report
        logger.exception("no report")
        notify(f"the report was not made: {error}")
    return result


def _test_metrics(
    ledger: SearchLedger, winner: Trial, trials: Sequence[Trial], manifest: Manifest
) -> dict[str, MeanAndDeviation]:
    """Metrics on the test split over the winner's repeats, or of its own run without any.

    They are computed once, and read from winner.json when the search is resumed.
    """
    data = ledger.experiment.data
    runs = [
        trial.name
        for trial in trials
        if trial.number == winner.number and trial.seed is not None and trial.status == "finished"
    ] or [winner.name]
    try:
        content = json.loads(files.read_bytes(ledger.file(WINNER_FILE)))
    except FileNotFoundError:
        content = {}
    if content.get("runs") != runs or content.get("fingerprint") != manifest.fingerprint:
        models = [open_model(run, ledger.uri, last=True) for run in runs]
        evaluations = evaluate_models(models, runs, data=data.path, split=data.eval_split)
        metrics = [metrics for _, metrics in evaluations]
        content = {
            "runs": runs,
            "fingerprint": manifest.fingerprint,
            "split": data.eval_split,
            "test": {name: _mean_and_deviation(metrics, name) for name in metrics[0]},
        }
        files.write_bytes(ledger.file(WINNER_FILE), json.dumps(content, indent=1).encode())
    return {name: (mean, deviation) for name, (mean, deviation) in content["test"].items()}


def _mean_and_deviation(metrics: Sequence[Mapping[str, float]], name: str) -> MeanAndDeviation:
    values = [each[name] for each in metrics if name in each]
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
