"""What has become of a trial, and which of several is the best."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bcl_ray.tuning.samplers import Status
from bcl_ray.tuning.space import Point


@dataclass
class Trial:
    """One trial, as its file has it.

    Args:
        name: its run's.
        number: in its search; 0 has the published values.
        point: its values of the searched options.
        seed: train.seed, where the trial repeats another one to confirm it.
        scores: by epochs done, of every evaluation.
        metrics: of the last evaluation.
        status: running, finished, stopped (by the scheduler) or failed.
        reason: why it failed.
        seconds: that it has taken, over all processes.
        tracked: whether MLflow has got all of it, its model too.
    """

    name: str
    number: int
    point: Point
    seed: int | None = None
    scores: dict[int, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    status: Status = "running"
    reason: str | None = None
    seconds: float = 0.0
    tracked: bool = False

    @property
    def epochs(self) -> int:
        """Epochs done at the last evaluation; 0 before the first."""
        return max(self.scores, default=0)

    @property
    def score(self) -> float | None:
        """Of the last evaluation."""
        return self.scores[self.epochs] if self.scores else None


def row(trial: Trial) -> dict[str, Any]:
    """A trial as events and figures show it."""
    return {
        "trial": trial.name,
        "number": trial.number,
        "seed": trial.seed,
        "point": trial.point,
        "status": trial.status,
        "epochs": trial.epochs,
        "score": trial.score,
        "seconds": round(trial.seconds, 1),
        "reason": trial.reason,
    }


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """The search's own trials that came to their end, the best first; the first of equals."""
    found = [t for t in trials if t.status == "finished" and t.seed is None]
    return sorted(found, key=lambda trial: -(trial.score or 0.0))


def best(trials: Sequence[Trial]) -> Trial | None:
    """The best of them, by mean over seeds where there are repeats; None where none has ended."""
    found = ranked(trials)
    confirmed = [trial for trial in found if seeds_of(trial, trials)]
    if confirmed:
        return max(confirmed, key=lambda trial: standing(trial, trials))
    return found[0] if found else None


def standing(trial: Trial, trials: Sequence[Trial]) -> float:
    """Its score, or the mean over its repeats where there are such."""
    return statistics.mean(seeds_of(trial, trials) or [float(trial.score or 0.0)])


def seeds_of(trial: Trial, trials: Sequence[Trial]) -> list[float]:
    """Scores of a trial's repeats with other seeds."""
    return [
        float(other.score or 0.0)
        for other in trials
        if other.number == trial.number and other.seed is not None and other.status == "finished"
    ]


def repeats(trials: Sequence[Trial], k: int, n: int, seed: int) -> list[Trial]:
    """All trials, and n repeats of each of the best k, those that are there as they are.

    The published values are repeated too: a winner is to be better than they are.

    Args:
        trials: of the search.
        k: how many of the best are repeated.
        n: other seeds of each.
        seed: of the trials themselves.
    """
    known = {trial.name: trial for trial in trials}
    order = ranked(trials)
    for trial in [*order[:k], *(t for t in order[k:] if t.number == 0)]:
        for other in range(seed + 1, seed + 1 + n):
            name = f"{trial.name}-seed-{other}"
            known.setdefault(name, Trial(name, trial.number, trial.point, seed=other))
    return list(known.values())


def spread(scores: Sequence[float]) -> str:
    """Mean and standard deviation."""
    if len(scores) < 2:
        return f"{statistics.mean(scores):.2f}"
    return f"{statistics.mean(scores):.2f} ± {statistics.stdev(scores):.2f}"
