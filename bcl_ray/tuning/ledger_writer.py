"""Trials are written to the ledger by a thread, so that Tune does not wait for an object store."""

import copy
import threading

from bcl_ray.tuning.ledger import Ledger
from bcl_ray.tuning.trials import Trial


class LedgerWriter:
    """Writes trials in a thread; of each only the newest state, and all that wait at once.

    A context that, at its end, waits until all is written.

    Args:
        ledger: Ledger of the sweep.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.error: BaseException | None = None
        """Why trials cannot be written any more; the sweep must end."""
        self._waiting: dict[str, Trial] = {}  # copies by name, until they are written
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)

    def __enter__(self) -> "LedgerWriter":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def save(self, trial: Trial) -> None:
        """Have a trial written as it is now."""
        with self._changed:
            self._waiting[trial.name] = copy.deepcopy(trial)
            self._changed.notify_all()

    def has_written(self, trial: Trial) -> bool:
        """Whether all that was saved of a trial is written."""
        with self._changed:
            return trial.name not in self._waiting

    def flush(self) -> None:
        """Wait until all is written.

        Raises:
            LeaseLostError: Another driver has taken over the sweep.
            OSError: The ledger cannot be written.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.error is not None or not self._waiting)
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        while trials := self._next_trials():
            try:
                self.ledger.save(*trials)
            except BaseException as error:  # the sweep's driver raises it
                self.error = error
            with self._changed:
                for trial in trials:
                    if self.error is None and self._waiting[trial.name] is trial:
                        del self._waiting[trial.name]
                self._changed.notify_all()
            if self.error is not None:
                return

    def _next_trials(self) -> list[Trial]:
        """The trials to write next; none at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            return list(self._waiting.values())
