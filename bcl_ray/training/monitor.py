"""Events of a run's workers: the driver tracks their metrics in MLflow and shows them to the user.

A metric passes these functions on its way from a worker to MLflow, and takes no other way:

    worker.Worker.run_epoch      puts an epoch's metrics into a record: {"epoch": 3.0, name: value}
    worker.Worker.send           sends the record from rank 0 with an event, `epoch`
    channel.Channel.put, .take   hold the event on the driver's node until the driver takes it
    RunMonitor.run               takes events, in a thread of the driver
    RunMonitor.track_records     skips epochs that are tracked already
    tracker.Tracker.metrics      makes a journal entry of the metrics
    journal.Delivery.record      appends the entry to the run's journal
    mlflow_run.MlflowRun.write   sends the entry to MLflow from a thread, later if MLflow is down

An event is lost if the driver dies. Every checkpoint therefore has the records of all epochs, too:
workers send them again with their `start` event, and at the end the driver takes those of the last
checkpoint; all of them pass `track_records`. Metrics of nodes come from `NodeSampler.send` with an
event, `system`, and pass the same functions except `track_records`.
"""

import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError

from bcl_ray.ray_runtime.node_metrics import NodeSamplers
from bcl_ray.runs.events import Event, Follow
from bcl_ray.tracking.tracker import Tracker

logger = logging.getLogger(__name__)


class RunMonitor(threading.Thread):
    """Takes the events of a run's workers until `stop`; tracks and shows them.

    Training goes on if that fails, for lack of a terminal or of disk space. After the first error,
    which is kept in `failure`, events are still tracked, but no longer shown.

    Args:
        channel: Handle of the run's `Channel`.
        tracker: Tracker of the run.
        follow: Shows an event to the user.
        all_nodes: Whether to measure the load of all nodes, or only of the driver's.
        on_start: Called with their number each time that workers have started: all have their
            state, and are about to train.
    """

    def __init__(
        self,
        channel: Any,
        tracker: Tracker,
        follow: Follow,
        *,
        all_nodes: bool = True,
        on_start: Callable[[int], None],
    ) -> None:
        super().__init__(name="monitor", daemon=True)
        self.tracker = tracker
        self.failure: Exception | None = None
        self._channel, self._follow = channel, follow
        self._on_start = on_start
        self._samplers = NodeSamplers(channel, all_nodes=all_nodes)
        self._tracked_epochs: set[int] = set()
        self._workers_started = False
        self._page_shown = False

    def run(self) -> None:
        """Take events until `stop`."""
        while True:
            try:
                events = ray.get(self._channel.take.remote())
            except RayError as error:  # the channel's process was killed, but not the workers
                self.failure = self.failure or error
                return
            for event in events:
                if event["kind"] == "stop":
                    return
                for handle in (self._notice_start, self._track, self._show):
                    try:
                        handle(event)
                    except Exception as error:
                        logger.exception("%s failed", event["kind"])
                        self.failure = self.failure or error

    def request_stop(self) -> bool:
        """Ask workers to save their state and to end; returns whether any have started."""
        self._channel.request_stop.remote()
        return self._workers_started

    def stop(self) -> None:
        """Wait until all earlier events have been handled, and end the thread."""
        self._samplers.close()
        with contextlib.suppress(RayError):  # `run` ends by itself then
            ray.get(self._channel.put.remote({"kind": "stop"}))
        self.join()

    def track_records(self, records: list[dict[str, float]]) -> None:
        """Track the records of epochs that have not been tracked."""
        for record in records:
            epoch = int(record["epoch"])
            if epoch not in self._tracked_epochs:
                metrics = {name: value for name, value in record.items() if name != "epoch"}
                self.tracker.metrics(metrics, epoch)
                self._tracked_epochs.add(epoch)

    def _notice_start(self, event: Event) -> None:
        if event["kind"] == "start":
            self._workers_started = True
            self._on_start(event["workers"])

    def _track(self, event: Event) -> None:
        self.track_records(event.get("records", []))
        if event["kind"] == "start":
            self.tracker.tags({name: event[name] for name in ("precision", "residency")})
        if event["kind"] == "system":
            node, values = event["node"], event["values"]
            metrics = {f"system/{node}/{name}": value for name, value in values.items()}
            self.tracker.metrics(metrics, event["epoch"])
        if event["kind"] == "epoch":
            try:
                self._samplers.send(int(event["records"][-1]["epoch"]))
            except (RayError, OSError):  # a run is complete without them
                logger.exception("system metrics failed")

    def _show(self, event: Event) -> None:
        if event["kind"] == "system" or self.failure:
            return
        self._follow(event)
        # The tracker reaches MLflow only after training has begun.
        if self.tracker.page and not self._page_shown:
            self._page_shown = True
            self._follow({"kind": "page", "page": self.tracker.page})
