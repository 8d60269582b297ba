"""Ray Tune's schedulers, which stop bad trials early, except trial 0 with the published values.

Trial 0 always finishes, because all others are compared with it. In a resumed search, a scheduler
gets the results of earlier processes first.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule
from ray.tune.schedulers.trial_scheduler import TrialScheduler

from bcl_ray.experiment.options import TrainConfig
from bcl_ray.experiment.table import code
from bcl_ray.tuning.choices import SCHEDULERS
from bcl_ray.tuning.trials import Trial

REDUCTION = 3  # a third of the trials continues after each rung (Li et al., MLSys 2020, use 4)
BRACKETS = 3
FIRST_RUNG_DIVISOR = 27  # the first rung is at 1/27 of the epochs: three reductions before the end
COMPARISON: dict[str, Any] = {"time_attr": "epochs", "metric": "score", "mode": "max"}

FindTrial = Callable[[int], Trial | None]  # the results of a trial so far, by its number


@dataclass(frozen=True, eq=False)
class _EarlierTrial:
    """A trial that ended in an earlier process, with the attributes of Tune's trials."""

    trial_id: str
    config: dict[str, int]


class _TrialZeroMixin:
    """Lets trial 0 finish, and replays the results that trials had in earlier processes."""

    find_trial: FindTrial
    # MedianStoppingRule has a set of its own. For AsyncHyperBand this one stays empty, so that
    # `discard` works for both.
    _stopped_trials: set[Any] = set()  # noqa: RUF012

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Replay the earlier results of a trial."""
        super().on_trial_add(tune_controller, trial)  # type: ignore[misc]
        earlier = self.find_trial(trial.config["number"])
        for epochs, score in (earlier.scores if earlier else {}).items():
            super().on_trial_result(  # type: ignore[misc]
                tune_controller, trial, {"epochs": epochs, "score": score}
            )
            # The decision about this result was made when the result was new.
            self._stopped_trials.discard(trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide whether a trial continues: CONTINUE or STOP."""
        decision: str = super().on_trial_result(tune_controller, trial, result)  # type: ignore[misc]
        if trial.config["number"] == 0:
            self._stopped_trials.discard(trial)
            return str(TrialScheduler.CONTINUE)
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Record the end of a trial; one that has no score is left out."""
        if "score" in result:
            super().on_trial_complete(tune_controller, trial, result)  # type: ignore[misc]


class _Asha(_TrialZeroMixin, AsyncHyperBandScheduler):
    pass


class _Median(_TrialZeroMixin, MedianStoppingRule):
    pass


def first_rung(train: TrainConfig) -> int:
    """The number of epochs before which no trial is stopped; an evaluation follows it."""
    epochs, every = train.epochs, train.eval_every
    evaluations = max(1, math.ceil(math.ceil(epochs / FIRST_RUNG_DIVISOR) / every))
    return min(epochs, every * evaluations)


def asha(train: TrainConfig, brackets: int = 1) -> TrialScheduler:
    """Asynchronous successive halving (Li et al., MLSys 2020)."""
    return _Asha(
        grace_period=first_rung(train),
        max_t=train.epochs,
        reduction_factor=REDUCTION,
        brackets=brackets,
        stop_last_trials=False,
        **COMPARISON,
    )


def hyperband(train: TrainConfig) -> TrialScheduler:
    """Asynchronous HyperBand: successive halving in brackets that start at different rungs."""
    return asha(train, BRACKETS)


def median(train: TrainConfig) -> TrialScheduler:
    """Stop trials whose best score is below the median of the other trials' running means."""
    # The infinite time slice prevents pauses: a paused trial would have to be started again.
    return _Median(
        grace_period=first_rung(train),
        min_time_slice=math.inf,  # type: ignore[arg-type]
        **COMPARISON,
    )


def none(_train: TrainConfig) -> TrialScheduler:
    """Stop no trial."""
    return FIFOScheduler()


def make_scheduler(
    name: str, train: TrainConfig, find_trial: FindTrial, earlier: Iterable[Trial]
) -> Any:
    """Build a scheduler by its name in SCHEDULERS.

    Args:
        name: Name in SCHEDULERS.
        train: Training options of the trials.
        find_trial: Returns the results of a trial so far, by its number.
        earlier: Trials that ended in earlier processes.

    Raises:
        ValueError: There is no such scheduler.
    """
    scheduler = code(SCHEDULERS[name].make)(train)
    scheduler.find_trial = find_trial
    for trial in earlier:
        if trial.scores:
            earlier_trial = _EarlierTrial(trial.name, {"number": trial.number})
            scheduler.on_trial_add(None, earlier_trial)
            last_result = {"epochs": trial.epochs, "score": trial.score}
            scheduler.on_trial_complete(None, earlier_trial, last_result)
    return scheduler
