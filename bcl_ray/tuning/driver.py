"""The driver of a sweep: what a search and a study have in common, from check to result."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bcl_ray.data.shards import Manifest
from bcl_ray.experiment.options import Experiment
from bcl_ray.machine.errors import FailedError, UserError
from bcl_ray.machine.versions import command
from bcl_ray.ray_runtime import node_groups
from bcl_ray.ray_runtime.autoscaler import start_ray_data_actors
from bcl_ray.ray_runtime.capacity import check_cluster
from bcl_ray.ray_runtime.connection import Resources, connected
from bcl_ray.ray_runtime.stopping import Stopped, stop_signals
from bcl_ray.runs import run_folder
from bcl_ray.runs.driver_log import log_to_file
from bcl_ray.runs.events import Event, Follow
from bcl_ray.runs.identity import Kind
from bcl_ray.storage import paths
from bcl_ray.storage.fence import Fence
from bcl_ray.storage.lease import Lease
from bcl_ray.storage.lease_request import LeaseRequest
from bcl_ray.tracking.connection import tracking_uri
from bcl_ray.tracking.journal import Subject
from bcl_ray.tracking.tracker import Tracker
from bcl_ray.tuning.capacity import data_cpus, trial_capacity
from bcl_ray.tuning.cleanup import Cleaner
from bcl_ray.tuning.ledger import Ledger
from bcl_ray.tuning.ledger_writer import LedgerWriter
from bcl_ray.tuning.placement_groups import ResourceWatcher
from bcl_ray.tuning.reporter import Reporter
from bcl_ray.tuning.trials import Trial
from bcl_ray.tuning.tune_run import TuneRunner, driver_node
from bcl_ray.tuning.tune_searcher import Engine

MAX_REASONS = 3  # of failed trials in an error message
TRACKING_SECONDS = 60.0  # that a finished sweep waits for its tracking server


class UnfinishedError(FailedError):
    """A sweep ended without a result; the message says why."""


class Sweep(ABC):
    """A search or a study that has been checked: what both do in their own way.

    Args:
        uri: Its folder.
        begun: Whether it was begun earlier, and now goes on.
        samples: An experiment and its data for each kind of trial; the one that needs most decides
            how many run at once.
        count: Number of trials in all.
        max_concurrent: Trials at once, at most; None: as many as fit.
    """

    kind: Kind
    last_event: str  # the kind of the event with the result
    seeks_best: bool  # whether trials compete; a trial with a seed then repeats another one

    def __init__(
        self,
        uri: str,
        *,
        begun: bool,
        samples: Sequence[tuple[Experiment, Manifest]],
        count: int,
        max_concurrent: int | None,
    ) -> None:
        self.uri, self.begun, self.samples = uri, begun, samples
        self.count, self.max_concurrent = count, max_concurrent

    @abstractmethod
    def open(self, resources: Resources, fence: Fence) -> Ledger:
        """Begin it in its folder, or go on with it; `fence` checks the folder's lease."""

    @abstractmethod
    def start_event(self, capacity: int) -> Event:
        """The event at the start; `capacity` trials run at once."""

    @abstractmethod
    def subject(self) -> Subject:
        """Its MLflow run."""

    @abstractmethod
    def record_start(self, tracker: Tracker) -> None:
        """Record its settings and data; its start is already recorded."""

    @abstractmethod
    def trial_options(self) -> list[str]:
        """The options that it sets for all of its trials; may take time."""

    @abstractmethod
    def run(self, runner: TuneRunner) -> list[Trial]:
        """Run its trials to their end, and return them.

        Raises:
            UnfinishedError: There is no result, or a later process must go on.
            Stopped: A stop was requested.
        """

    @abstractmethod
    def conclude(
        self, trials: list[Trial], tracker: Tracker, folder: Path, notify: Callable[[str], None]
    ) -> dict[str, Any]:
        """Write and track the result, and return the content of its last event."""


def drive(sweep: Sweep, follow: Follow) -> dict[str, Any]:
    """Run a sweep to its end, and return the content of its last event.

    Args:
        sweep: The sweep.
        follow: Called from any thread with events.

    Raises:
        ValueError: It does not fit on the cluster. Nothing was written.
        LeaseHeldError: Another driver runs it.
        LeaseLostError: This driver did not respond for a while, and another one has taken over.
        UnfinishedError: There is no result, or a later process must go on.
        Stopped: SIGINT or SIGTERM came; running trials have written checkpoints.
    """
    noun, name = sweep.kind.noun, paths.name(sweep.uri)
    lease_request = LeaseRequest(
        sweep.uri, f"{noun} '{name}'", notify=lambda text: follow({"kind": "note", "text": text})
    )
    lease_request.check_free(wait=sweep.begun)
    with connected() as resources:
        capacity = _capacity(sweep, resources)
        start_ray_data_actors()
        with lease_request.acquire(wait=sweep.begun) as lease:
            ledger = sweep.open(resources, lease.fence)
            try:
                result = _run(sweep, ledger, resources, capacity, follow=follow, lease=lease)
            except Stopped as stop:
                text = f"{stop}; go on with: {command()} {ledger.resume_command}"
                raise Stopped(text, stop.signum) from None
    follow({"kind": sweep.last_event, **result})
    return result


def _capacity(sweep: Sweep, resources: Resources) -> int:
    """The number of trials that run at once.

    Raises:
        ValueError: Not even one trial fits, or nothing limits the number.
    """
    for experiment, _ in sweep.samples:
        check_cluster(experiment, resources)
    if not resources.limited and sweep.max_concurrent is None:
        raise UserError(
            "the cluster grows, and its largest size is not known: give --max-concurrent, or set "
            f"{node_groups.VARIABLE} on its head"
        )
    driver_bytes = driver_node()["Resources"].get("memory", 0.0)
    capacity = min(
        trial_capacity(experiment, manifest, resources, driver_bytes)
        for experiment, manifest in sweep.samples
    )
    return min(capacity, sweep.max_concurrent or capacity, sweep.count)


def _run(
    sweep: Sweep,
    ledger: Ledger,
    resources: Resources,
    capacity: int,
    *,
    follow: Follow,
    lease: Lease,
) -> dict[str, Any]:
    """Run the trials of a sweep that has begun, and return its result."""
    folder, uri = run_folder.local_folder(ledger), tracking_uri(ledger.experiment)
    with contextlib.ExitStack() as stack:
        stack.enter_context(log_to_file(folder, lambda: lease.lost is None))
        follow({**sweep.start_event(capacity), "tracking_uri": uri})
        # Called before `stop_signals`, so that Ctrl-C interrupts it at once.
        trial_options = sweep.trial_options()
        stop_request = stack.enter_context(stop_signals())
        tracker = stack.enter_context(Tracker(sweep.subject(), uri, folder, lease))
        tracker.start()
        tracker.text(run_folder.EXPERIMENT_FILE, ledger.experiment.to_yaml())
        sweep.record_start(tracker)
        reporter = Reporter(tracker, follow, seeks_best=sweep.seeks_best)
        options = [*trial_options, *_common_options(sweep, ledger, resources, capacity)]
        writer = stack.enter_context(LedgerWriter(ledger))
        cleaner = stack.enter_context(Cleaner(writer, reporter.note))
        with ResourceWatcher(ledger.uid, reporter.note) as watcher:
            engine = Engine(writer, cleaner, options, reporter, watcher)
            trials = sweep.run(TuneRunner(engine, capacity, stop_request, lease))
        lease.check()
        result = sweep.conclude(trials, tracker, folder, reporter.note)
        cleaner.finish(trials)
        result["tracked"] = tracker.finish("FINISHED", TRACKING_SECONDS)
        result["problem"] = tracker.problem
    return result


def _common_options(sweep: Sweep, ledger: Ledger, resources: Resources, capacity: int) -> list[str]:
    """The options that put a trial in the sweep's folder, and give it a share of the CPUs."""
    options = [
        f"tracking.runs={ledger.uri}",
        f"tracking.uri={tracking_uri(ledger.experiment)}",
    ]
    if not resources.grows:  # a cluster that grows adds nodes for each trial's data tasks
        cpus = min(data_cpus(sample, resources.cpus, capacity) for sample, _ in sweep.samples)
        options.append(f"scale.data_cpus={cpus:g}")
    return options


def check_result(trials: Sequence[Trial], total: int) -> None:
    """Refuse to go on if no trial finished.

    Args:
        trials: All trials.
        total: Number of trials that there should be.

    Raises:
        UnfinishedError: No trial finished; the message has the reasons.
    """
    if any(trial.status == "finished" for trial in trials):
        return
    started = [trial for trial in trials if trial.seconds or not trial.is_open]
    reasons = dict.fromkeys(trial.reason for trial in started if trial.reason)
    raise UnfinishedError(
        f"no trial finished: {len(started)} of {total} were started, and failed: "
        + "; ".join(list(reasons)[:MAX_REASONS])
    )


def check_ended(ledger: Ledger, trials: Sequence[Trial]) -> None:
    """Refuse to continue while some trials have not ended, because an outage holds them up.

    Raises:
        UnfinishedError: Some have not; the message names them, and how to go on.
    """
    unfinished = [trial.name for trial in trials if trial.is_open]
    if unfinished:
        raise UnfinishedError(
            f"not finished: {', '.join(unfinished)}; go on with: {command()} "
            f"{ledger.resume_command}"
        )
