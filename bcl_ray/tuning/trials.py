"""Trials: their results, their ranking, and repeats of the best ones with other seeds."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from bcl_ray.tuning.space import Point

Status = Literal["running", "held up", "finished", "stopped", "failed"]
"""Held up: by an outage; it goes on with the sweep. Stopped: by the scheduler."""
OPEN = ("running", "held up")
"""The status of trials that have not ended."""


@dataclass
class Trial:
    """One trial, with the fields of its file."""

    name: str  # of its run
    number: int  # in a search, 0 has the published values; in a study, that of its cell
    point: Point  # values of the searched options; in a study, labels by axis
    seed: int | None = None  # train.seed of a repeat, or in a study; None: a search's own trial
    scores: dict[int, float] = field(default_factory=dict)  # by epochs done, of every evaluation
    metrics: dict[str, float] = field(default_factory=dict)  # of the last evaluation
    status: Status = "running"
    reason: str | None = None  # why it failed, or is held up
    seconds: float = 0.0  # of running time, in all processes
    tracked: bool = False  # whether MLflow has all of it, the model included
    only_best: bool = False  # whether its last checkpoints were removed
    hardware: str | None = None  # of a study's trial: where it began
    commit: str | None = None  # of a study's trial: the version with which it began

    @property
    def is_open(self) -> bool:
        """Whether it has not ended: it runs, or goes on when the sweep does."""
        return self.status in OPEN

    @property
    def epochs(self) -> int:
        """Epochs done at the last evaluation; 0 before the first."""
        return max(self.scores, default=0)

    @property
    def score(self) -> float | None:
        """Score of the last evaluation."""
        return self.scores[self.epochs] if self.scores else None

    def to_event(self, *, old: bool = False) -> dict[str, Any]:
        """The event that shows the trial as it is now; `old` marks one of an earlier process."""
        return {
            **({"old": True} if old else {}),
            "kind": "trial",
            "trial": self.name,
            "number": self.number,
            "seed": self.seed,
            "point": self.point,
            "status": self.status,
            "epochs": self.epochs,
            "score": self.score,
            "seconds": round(self.seconds, 1),
            "reason": self.reason,
        }


def own_trials(trials: Sequence[Trial]) -> list[Trial]:
    """The search's own trials, without repeats."""
    return [trial for trial in trials if trial.seed is None]


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """The search's own trials that finished, the best first; of equal ones, the first first."""
    finished = [trial for trial in own_trials(trials) if trial.status == "finished"]
    return sorted(finished, key=lambda trial: -(trial.score or 0.0))


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """The best trial that finished; None without any.

    If some trials were repeated, it is the best of these, by the mean score of its repeats.
    """
    finished = ranked(trials)
    repeated = [trial for trial in finished if repeat_scores(trial, trials)]
    if repeated:
        return max(repeated, key=lambda trial: final_score(trial, trials))
    return finished[0] if finished else None


def trials_to_trim(trials: Sequence[Trial]) -> list[Trial]:
    """Trials that are never continued, and whose last checkpoints nothing needs any more.

    These are the search's own trials that the scheduler stopped, and those that finished behind the
    best one until now. The checkpoints of a failed trial are kept for a look at the failure. A
    repeat counts in the mean of its trial, which may win when `--confirm` adds seeds. MLflow needs
    the last checkpoint of a finished trial until it has the trial's model. None in a study: all its
    trials have a seed, and nothing is chosen among them.
    """
    best = best_trial(trials)
    return [
        trial
        for trial in own_trials(trials)
        if trial is not best
        and (trial.status == "stopped" or (trial.status == "finished" and trial.tracked))
    ]


def final_score(trial: Trial, trials: Sequence[Trial]) -> float:
    """The mean score of a trial's repeats; without repeats, the trial's own score."""
    return statistics.mean(repeat_scores(trial, trials) or [float(trial.score or 0.0)])


def repeat_scores(trial: Trial, trials: Sequence[Trial]) -> list[float]:
    """Scores of a trial's finished repeats with other seeds."""
    return [
        float(other.score or 0.0)
        for other in trials
        if other.number == trial.number and other.seed is not None and other.status == "finished"
    ]


def with_repeats(trials: Sequence[Trial], k: int, n: int, seed: int) -> list[Trial]:
    """All trials, and n repeats of each of the best k; repeats that exist stay as they are.

    The trial with the published values is repeated too, because the winner is compared with it.

    Args:
        trials: Trials and repeats of the search.
        k: Number of the best trials to repeat.
        n: Number of other seeds for each of them.
        seed: Seed of the trials themselves.
    """
    by_name = {trial.name: trial for trial in trials}
    ranking = ranked(trials)
    for trial in [*ranking[:k], *(t for t in ranking[k:] if t.number == 0)]:
        for other_seed in range(seed + 1, seed + 1 + n):
            name = f"{trial.name}-seed-{other_seed}"
            by_name.setdefault(name, Trial(name, trial.number, trial.point, seed=other_seed))
    return list(by_name.values())
