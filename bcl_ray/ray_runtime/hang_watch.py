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

from bcl_ray.method.collectives import rank
from bcl_ray.ray_runtime.internals import get_train_context

Item = TypeVar("Item")

LOOK = 0.5  # seconds between two looks at the clock
STALL = 20.0  # seconds without progress that a person is told of
HUNG = 75  # exit status


class Watch:
    """A worker's lookout.

    Args:
        mailbox: the driver's, which says when training is to stop.
        patience: seconds without progress after which a worker hangs.
    """

    def __init__(self, mailbox: Any, patience: float) -> None:
        self._mailbox, self._patience = mailbox, patience
        self._stop, self._grow = threading.Event(), threading.Event()
        self._progress = time.monotonic()
        self._busy = threading.Event()  # progress is expected
        threading.Thread(target=self._watch, name="hang-watch", daemon=True).start()
        if rank() == 0:  # one is enough: signals reach all workers
            for name, event in (("stopping", self._stop), ("growing", self._grow)):
                threading.Thread(
                    target=self._listen, args=(name, event), name=name, daemon=True
                ).start()

    def signals(self) -> frozenset[str]:
        """What this worker has to tell the others."""
        wanted = {"stop": self._stop.is_set(), "restart": self.noticed or self._grow.is_set()}
        return frozenset(name for name, given in wanted.items() if given)

    @property
    def noticed(self) -> bool:
        """Whether a node of this run's workers is to be taken away."""
        return get_train_context().preemption_context.preemption_info is not None

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items, each of which is progress; from here on until `rest` it is expected."""
        self._progress = time.monotonic()
        self._busy.set()
        for item in items:
            self._progress = time.monotonic()
            yield item
            self._progress = time.monotonic()

    def rest(self) -> None:
        """Progress is not expected any more."""
        self._busy.clear()

    def _listen(self, name: str, event: threading.Event) -> None:
        with contextlib.suppress(RayError):  # the driver is gone, and this worker soon, too
            ray.get(getattr(self._mailbox, name).remote())
            event.set()

    def _watch(self) -> None:
        told_of = None
        while True:
            time.sleep(LOOK)
            since = self._progress
            idle = time.monotonic() - since
            if not self._busy.is_set():
                continue
            if idle > self._patience:
                self._give_up(idle)
            if idle > STALL and told_of != since:
                told_of = since
                self._notify(f"worker {rank()}: no progress for {idle:.0f} s, still waiting")

    def _notify(self, text: str) -> Any:
        return self._mailbox.put.remote({"kind": "note", "text": text})

    def _give_up(self, idle: float) -> None:
        what = f"worker {rank()} made no progress for {idle:.0f} s (scale.hang_timeout)"
        try:
            told = self._notify(f"{what}: it ends itself")
            sys.stderr.write(f"{what}; its threads:\n")
            faulthandler.dump_traceback(all_threads=True)
            sys.stderr.flush()
            ray.get(told, timeout=5)
        finally:
            os._exit(HUNG)
