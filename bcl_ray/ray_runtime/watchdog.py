"""A worker's watchdog: what ends its training early, a request, a notice or a hang.

Threads beside training look for all three. A request and a notice that a node will be taken away
become signals of `train_epoch`, so that all workers stop at the same step. A hanging training
cannot end itself: the watchdog writes the stacks of all threads to the process's log and ends the
process, and Ray Train starts the workers again.
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
import torch
from ray.exceptions import RayError

from bcl_ray.method.collectives import rank, sum_over_workers
from bcl_ray.method.loop import SIGNALS
from bcl_ray.ray_runtime.channel import send_note
from bcl_ray.ray_runtime.internals import get_train_context

Item = TypeVar("Item")

CHECK_INTERVAL = 0.5  # seconds
WARN_SECONDS = 20.0  # without progress, after which the user is told
HANG_STATUS = 75  # exit status of a process that hangs


class Watchdog:
    """Watches a worker's training from its own threads.

    Args:
        channel: Handle of the run's `Channel`.
        timeout: Seconds without progress after which the worker is taken to hang.
    """

    def __init__(self, channel: Any, timeout: float) -> None:
        self._channel, self._timeout = channel, timeout
        self._stop, self._restart = threading.Event(), threading.Event()
        self._last_progress = time.monotonic()
        self._active = threading.Event()  # progress is expected
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        if rank() == 0:  # one worker is enough: signals reach all of them
            self._listen(channel.wait_for_stop, self._stop)
            self._listen(channel.wait_for_restart, self._restart)

    def signals(self) -> frozenset[str]:
        """Those of `loop.SIGNALS` that this worker gives now."""
        signals = {
            "stop": self._stop.is_set(),
            "restart": self.has_notice or self._restart.is_set(),
        }
        return frozenset(name for name, is_given in signals.items() if is_given)

    def signals_of_all(self, device: torch.device) -> frozenset[str]:
        """Those that any worker gives now; the same on all workers, which wait for each other.

        Within an epoch signals are summed with the gradients; this is for the time between epochs.

        Args:
            device: This worker's device.
        """
        own = self.signals()
        flags = torch.tensor([float(name in own) for name in SIGNALS], device=device)
        counts = zip(SIGNALS, sum_over_workers(flags).tolist(), strict=True)
        return frozenset(name for name, count in counts if count)

    @property
    def has_notice(self) -> bool:
        """Whether a node of the run's workers is about to be taken away."""
        return get_train_context().preemption_context.preemption_info is not None

    def watched(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the same items: each is progress, and more is expected until `pause` is called."""
        self._last_progress = time.monotonic()
        self._active.set()
        for item in items:
            self._last_progress = time.monotonic()
            yield item
            self._last_progress = time.monotonic()

    def pause(self) -> None:
        """Expect no progress until `watched` is called again."""
        self._active.clear()

    def _listen(self, wait: Any, event: threading.Event) -> None:
        """Set an event, from a thread, when a remote method returns."""

        def listen() -> None:
            with contextlib.suppress(RayError):  # the driver has ended, and this worker will soon
                ray.get(wait.remote())
                event.set()

        threading.Thread(target=listen, name="requests", daemon=True).start()

    def _watch(self) -> None:
        last_warned = None
        while True:
            time.sleep(CHECK_INTERVAL)
            last_progress = self._last_progress
            idle = time.monotonic() - last_progress
            if not self._active.is_set():
                continue
            if idle > self._timeout:
                self._end_process(idle)
            if idle > WARN_SECONDS and last_warned != last_progress:
                last_warned = last_progress
                text = f"worker {rank()}: no progress for {idle:.0f} s, still waiting"
                send_note(self._channel, text)

    def _end_process(self, idle: float) -> None:
        what = f"worker {rank()} made no progress for {idle:.0f} s (scale.hang_timeout)"
        try:
            sent = send_note(self._channel, f"{what}: it ends itself")
            sys.stderr.write(f"{what}; its threads:\n")
            faulthandler.dump_traceback(all_threads=True)
            sys.stderr.flush()
            ray.get(sent, timeout=5)
        finally:
            os._exit(HANG_STATUS)
