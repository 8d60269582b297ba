"""Which trials are stopped early: Ray Tune's schedulers, which spare the published values.

Trial 0 always ends, for all others are compared with it. A resumed search hands its schedulers
what they were told before.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule
from ray.tune.schedulers.trial_scheduler import TrialScheduler

from bcl_ray.experiment.choices import code
from bcl_ray.experiment.options import TrainConfig
from bcl_ray.tuning.choices import SCHEDULERS
from bcl_ray.tuning.trials import Trial

REDUCTION = 3  # of trials at every rung, a third goes on (Li et al., MLSys 2020, use 4)
BRACKETS = 3
COMPARED: dict[str, Any] = {"time_attr": "epochs", "metric": "score", "mode": "max"}
FIRST = 27  # part of the epochs before the first rung, three times REDUCTION

Known = Callable[[int], Trial | None]  # what is known of a trial, by its number


@dataclass(frozen=True, eq=False)
class _Former:
    """Stands for a trial of an earlier process."""

    trial_id: str
    config: dict[str, int]


class _KeepsTrialZero:
    """A scheduler that lets trial 0 end, and knows what was before."""

    known: Known
    _stopped_trials: set[Any] = set()  # noqa: RUF012  the median rule has its own

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Hand on what the trial told in an earlier process; that was decided upon then."""
        super().on_trial_add(tune_controller, trial)  # type: ignore[misc]
        former = self.known(trial.config["number"])
        for epochs, score in (former.scores if former else {}).items():
            super().on_trial_result(  # type: ignore[misc]
                tune_controller, trial, {"epochs": epochs, "score": score}
            )
            self._stopped_trials.discard(trial)  # it was let go on, or it has ended

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """CONTINUE or STOP."""
        decision: str = super().on_trial_result(tune_controller, trial, result)  # type: ignore[misc]
        if trial.config["number"] == 0:
            self._stopped_trials.discard(trial)
            return str(TrialScheduler.CONTINUE)
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Take note of an end, with a score or without."""
        if "score" in result:
            super().on_trial_complete(tune_controller, trial, result)  # type: ignore[misc]


class _Asha(_KeepsTrialZero, AsyncHyperBandScheduler):
    """Asynchronous successive halving; with brackets, asynchronous HyperBand."""


class _Median(_KeepsTrialZero, MedianStoppingRule):
    """Stop what is below the median of the others' means."""


def first_rung(train: TrainConfig) -> int:
    """Epochs before which no trial is stopped: a few evaluations, and a share of the whole."""
    epochs, every = train.epochs, train.eval_every
    wanted = max(every, math.ceil(epochs / FIRST))
    return min(epochs, every * math.ceil(wanted / every))


def asha(train: TrainConfig, brackets: int = 1) -> TrialScheduler:
    """Asynchronous successive halving."""
    return _Asha(
        grace_period=first_rung(train),
        max_t=train.epochs,
        reduction_factor=REDUCTION,
        brackets=brackets,
        stop_last_trials=False,
        **COMPARED,
    )


def hyperband(train: TrainConfig) -> TrialScheduler:
    """The same with brackets."""
    return asha(train, BRACKETS)


def median(train: TrainConfig) -> TrialScheduler:
    """Stop what is below the median of the others' means."""
    # Never to pause a trial, which would have to be started again.
    return _Median(
        grace_period=first_rung(train),
        min_time_slice=math.inf,  # type: ignore[arg-type]
        **COMPARED,
    )


def none(_train: TrainConfig) -> TrialScheduler:
    """Every trial comes to its end."""
    return FIFOScheduler()


def make_scheduler(name: str, train: TrainConfig, known: Known, former: Iterable[Trial]) -> Any:
    """A scheduler of SCHEDULERS.

    Args:
        name: of it.
        train: of the trials.
        known: what is known of a trial, by its number.
        former: trials that ended in an earlier process.

    Raises:
        ValueError: no such scheduler.
    """
    made = code(SCHEDULERS[name].make)(train)
    made.known = known
    for trial in former:
        if trial.scores:
            stub = _Former(trial.name, {"number": trial.number})
            made.on_trial_add(None, stub)
            last = {"epochs": trial.epochs, "score": trial.score}
            made.on_trial_complete(None, stub, last)
    return made
