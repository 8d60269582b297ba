"""One worker of a run without Ray's processes: its Train, its fence, its channel, its watchdog."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import ray.train

from bcl_ray.storage.fence import LeaseLostError

SECONDS = 20  # until a test fails that waits for a thread


class Fence:
    """Of a driver that may lose its lease."""

    lost = False

    def check(self) -> None:
        if self.lost:
            raise LeaseLostError("lost")

    __call__ = check


class Train:
    """In the place of Ray Train: one thread that writes, and a list of what is recorded."""

    def __init__(self, monkeypatch):
        self.thread = ThreadPoolExecutor(1)
        self.gate = threading.Event()  # a checkpoint is written when it is open
        self.gate.set()
        self.recorded: list[tuple[int, str]] = []  # step and folder
        self.reports: list = []
        for name in ("report", "get_all_reported_checkpoints", "get_checkpoint"):
            monkeypatch.setattr(ray.train, name, getattr(self, name))

    def report(self, metrics, checkpoint, checkpoint_upload_fn, **options):
        assert options["checkpoint_upload_mode"].value == "ASYNC"
        assert not options["delete_local_checkpoint_after_upload"], "it would delete the checkpoint"

        def upload():
            assert self.gate.wait(SECONDS)
            written = checkpoint_upload_fn(checkpoint, "any")
            self.recorded.append((metrics["step"], written.path))

        self.reports.append(self.thread.submit(upload))

    def get_all_reported_checkpoints(self, *_):
        for report in self.reports[-1:]:
            report.result(SECONDS)
        return [SimpleNamespace(checkpoint=SimpleNamespace(path=path)) for _, path in self.recorded]

    def get_checkpoint(self):
        return self.recorded[-1] if self.recorded else None


class Watchdog:
    """Gives a signal when it is asked for signals for so many times.

    A worker asks at each step, before an evaluation, and after the epoch's checkpoint if more
    epochs follow.
    """

    has_notice = False

    def __init__(self, calls: float = float("inf"), signal: str = "stop"):
        self._calls, self._signal = calls, signal

    def signals(self) -> frozenset[str]:
        self._calls -= 1
        return frozenset([self._signal] if self._calls < 0 else [])

    def signals_of_all(self, _) -> frozenset[str]:
        return self.signals()

    def watched(self, items):
        return iter(items)

    def pause(self) -> None:
        pass


class Channel:
    """Collects the events of a run."""

    def __init__(self):
        self.events: list[dict[str, Any]] = []
        self.put = SimpleNamespace(remote=self.events.append)
