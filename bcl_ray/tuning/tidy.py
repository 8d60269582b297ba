"""What trials that lost leave: their best checkpoints, without the last two of each.

A trial that has ended is never trained further, so nobody needs them but who evaluates a winner,
whose score is that of its last checkpoint.
"""

import logging
from collections.abc import Callable, Sequence

from bcl_ray.runs import run_folder
from bcl_ray.tracking.tracker import recorded
from bcl_ray.tuning.ledger import Ledger
from bcl_ray.tuning.trials import Trial
from bcl_ray.use.models import load_state

logger = logging.getLogger(__name__)


def tidy(
    ledger: Ledger, trials: Sequence[Trial], winner: str, *, note: Callable[[str], None]
) -> None:
    """Remove the last checkpoints of trials that lost; what fails is told, and tried next time.

    Args:
        ledger: of the search, which has its winner.
        trials: all of them.
        winner: name of the best.
        note: takes what a person should know.

    Raises:
        LostError: another driver has taken the search over.
    """
    failed = []
    for trial in trials:
        if trial.name != winner and _has_lost(trial):
            if ledger.fence is not None:
                ledger.fence.check()
            try:
                _keep_the_best(ledger, trial)
            except (OSError, ValueError) as error:
                logger.exception("checkpoints of %s stay", trial.name)
                failed.append(f"{trial.name} ({error})")
    if failed:
        note(f"last checkpoints of trials that lost could not be removed: {'; '.join(failed)}")


def _has_lost(trial: Trial) -> bool:
    """Whether nobody will ask for a trial's last checkpoint any more.

    One that failed may be looked into, and gone on with. A repeat is part of its trial's mean,
    which may win yet when `--confirm` adds seeds. MLflow makes the model of a trial that came to
    its end from its last checkpoint.
    """
    if trial.seed is not None:
        return False
    return trial.status == "stopped" or (trial.status == "finished" and trial.tracked)


def _keep_the_best(ledger: Ledger, trial: Trial) -> None:
    run, _ = run_folder.open_run(ledger.place(trial.name))
    if run_folder.only_best(run) is None:
        history = recorded(run_folder.local_folder(run))  # else this machine did not train it
        history = load_state(run).history if history is None else history
    else:
        history = []  # it is kept already
    run_folder.keep_only_best(run, f"lost its search, {ledger.name}", history)
