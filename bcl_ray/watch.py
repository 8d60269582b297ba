"""What may end a worker's training before its time: a request, a notice, or a hang.

A thread beside training looks out for all three. The first two become signals of `train_epoch`,
so that all workers stop at the same step. A hang is ended from outside of training, which cannot
do it: the process writes its stacks to its log and dies, and Ray Train starts the workers again.
"""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError
from ray.train.v2._internal.execution.context import get_train_context

from bcl_ray.distributed import rank

Item = TypeVar("Item")

LOOK = 0.5  # seconds between two looks at the clock
HUNG = 75  # exit status


class Watch:
    """A worker's lookout.

    Args:
        mailbox: the driver's, which says when training is to stop.
        patience: seconds without progress after which a worker hangs.
    """

    def __init__(self, mailbox: Any, patience: float) -> None:
        self._mailbox, self._patience = mailbox, patience
        self._stop = threading.Event()
        self._progress = time.monotonic()
        self._busy = threading.Event()  # progress is expected
        threading.Thread(target=self._watch, name="hang-watch", daemon=True).start()
        if rank() == 0:  # one is enough: signals reach all workers
            threading.Thread(target=self._listen, name="stop-listener", daemon=True).start()

    def signals(self) -> frozenset[str]:
        """What this worker has to tell the others."""
        # Ray's public function for a notice is a barrier of all workers, 2.6 ms a step.
        noticed = get_train_context().preemption_context.preemption_info is not None
        wanted = {"stop": self._stop.is_set(), "preempted": noticed}
        return frozenset(name for name, given in wanted.items() if given)

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items, each of which is progress; a hang until they end is noticed."""
        self._progress = time.monotonic()
        self._busy.set()
        try:
            for item in items:
                yield item
                self._progress = time.monotonic()
        finally:
            self._busy.clear()

    def _listen(self) -> None:
        with contextlib.suppress(RayError):  # the driver is gone, and this worker soon, too
            ray.get(self._mailbox.stopping.remote())
            self._stop.set()

    def _watch(self) -> None:
        while True:
            time.sleep(LOOK)
            idle = time.monotonic() - self._progress
            if self._busy.is_set() and idle > self._patience:
                self._give_up(idle)

    def _give_up(self, idle: float) -> None:
        what = f"worker {rank()} made no progress for {idle:.0f} s (scale.hang_timeout)"
        told = self._mailbox.put.remote({"kind": "note", "text": f"{what}: it ends itself"})
        sys.stderr.write(f"{what}; its threads:\n")
        faulthandler.dump_traceback(all_threads=True)
        sys.stderr.flush()
        with contextlib.suppress(RayError):
            ray.get(told, timeout=5)
        os._exit(HUNG)
