"""Remove the last checkpoints of trials that lost; each keeps its best checkpoint.

A trial that has ended is not trained further, so its last two checkpoints are not needed. Only
the winner's last checkpoint is, because the winner's score belongs to it.
"""

import logging
from collections.abc import Callable, Sequence

from bcl_ray.runs import run_folder
from bcl_ray.tracking.tracker import journal_metrics
from bcl_ray.tuning.ledger import Ledger
from bcl_ray.tuning.trials import Trial
from bcl_ray.use.models import load_state

logger = logging.getLogger(__name__)


def remove_lost_checkpoints(
    ledger: Ledger, trials: Sequence[Trial], winner: str, *, notify: Callable[[str], None]
) -> None:
    """Remove the last checkpoints of trials that lost.

    Errors of storage are reported; the next run of the search tries again.

    Args:
        ledger: Ledger of the search.
        trials: All trials, with repeats.
        winner: Name of the best trial.
        notify: Called with messages for the user.

    Raises:
        LeaseLostError: Another driver has taken over the search.
    """
    errors = []
    for trial in trials:
        if trial.name != winner and _has_lost(trial):
            if ledger.fence is not None:
                ledger.fence.check()
            try:
                _keep_only_best(ledger, trial)
            except (OSError, ValueError) as error:
                logger.exception("checkpoints of %s stay", trial.name)
                errors.append(f"{trial.name} ({error})")
    if errors:
        notify(f"last checkpoints of trials that lost could not be removed: {'; '.join(errors)}")


def _has_lost(trial: Trial) -> bool:
    """Whether a trial's last checkpoint is not needed any more.

    The checkpoint of a failed trial is kept for a look at the failure. A repeat counts in the mean
    of its trial, which may win when `--confirm` adds seeds. MLflow needs the last checkpoint of a
    finished trial until it has the trial's model.
    """
    if trial.seed is not None:
        return False
    return trial.status == "stopped" or (trial.status == "finished" and trial.tracked)


def _keep_only_best(ledger: Ledger, trial: Trial) -> None:
    run, _ = run_folder.open_run(ledger.file(trial.name))
    history: list[dict[str, float]] = []
    if run_folder.why_only_best(run) is None:  # else the history was saved before
        recorded_history = journal_metrics(run_folder.local_folder(run))
        # Without a journal here, another machine trained it.
        history = load_state(run).history if recorded_history is None else recorded_history
    run_folder.keep_only_best(run, f"lost its search, {ledger.name}", history)
