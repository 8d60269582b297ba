"""Remove the last checkpoints of trials that lost; each keeps its best checkpoint.

A run has up to three checkpoints, each of which is the whole state. A trial that has lost is not
trained further, so its last two are not needed. They are removed as soon as its run has ended, and
not at the end of the search, which may have hundreds of trials.
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from bcl_ray.runs import run_folder
from bcl_ray.storage.lease_request import acquire_lease
from bcl_ray.tracking.tracker import journal_metrics
from bcl_ray.tuning.ledger import Ledger
from bcl_ray.tuning.ledger_writer import LedgerWriter
from bcl_ray.tuning.trials import Trial, trials_to_trim
from bcl_ray.use.models import last_state

THREADS = 8

logger = logging.getLogger(__name__)


class Cleaner:
    """Removes the last checkpoints of trials that lost, in threads.

    Errors of storage are reported by `finish`; the next process of the sweep tries again.

    Args:
        writer: Writes to the ledger which trials are done with.
        notify: Called with messages for the user.
    """

    def __init__(self, writer: LedgerWriter, notify: Callable[[str], None]) -> None:
        self._writer, self._notify = writer, notify
        self._pool = ThreadPoolExecutor(THREADS, "cleanup")
        self._removals: dict[str, Future[None]] = {}  # by the trial's name

    def __enter__(self) -> "Cleaner":
        return self

    def __exit__(self, *_: object) -> None:
        # What has not begun is left to the next process of the sweep.
        self._pool.shutdown(cancel_futures=True)

    def clean(self, trials: Sequence[Trial]) -> None:
        """Begin to remove what trials that have lost by now do not need.

        Args:
            trials: All trials so far, with repeats.
        """
        for trial in trials_to_trim(trials):
            if not trial.only_best and trial.name not in self._removals:
                self._removals[trial.name] = self._pool.submit(self._remove, trial)

    def finish(self, trials: Sequence[Trial]) -> None:
        """Remove what the trials that lost do not need, and wait for that.

        Args:
            trials: All trials, with repeats.

        Raises:
            LeaseLostError: Another driver has taken over the sweep.
        """
        if (fence := self._writer.ledger.fence) is not None:
            fence.check()
        for name, removal in list(self._removals.items()):
            if removal.done() and removal.exception() is not None:
                del self._removals[name]  # a second attempt
        self.clean(trials)
        errors = []
        for name, removal in self._removals.items():
            try:
                removal.result()
            except (OSError, ValueError) as error:
                logger.error("checkpoints of %s stay", name, exc_info=error)
                errors.append(f"{name} ({error})")
        self._writer.flush()
        if errors:
            self._notify(
                f"last checkpoints of trials that lost could not be removed: {'; '.join(errors)}"
            )

    def _remove(self, trial: Trial) -> None:
        ledger = self._writer.ledger
        if ledger.fence is not None:
            ledger.fence.check()
        uri = ledger.file(trial.name)
        # A trial that was told to stop still writes a checkpoint: its driver has the lease.
        with acquire_lease(uri, f"run '{trial.name}'", logger.info, wait=True):
            _keep_only_best(ledger, trial)
        trial.only_best = True
        self._writer.save(trial)


def _keep_only_best(ledger: Ledger, trial: Trial) -> None:
    run, _ = run_folder.open_run(ledger.file(trial.name))
    history: list[dict[str, float]] = []
    if run_folder.why_only_best(run) is None:  # else the history was saved before
        recorded_history = journal_metrics(run_folder.local_folder(run))
        # Without a journal here, another machine trained it.
        history = last_state(run).history if recorded_history is None else recorded_history
    run_folder.keep_only_best(run, f"lost its search, {ledger.name}", history)
