"""The driver of a search: checks, validation data, the trials, and the winner."""

import contextlib
from dataclasses import replace
from typing import Any

import ray

from bcl_ray.data.shards import MANIFEST, Manifest, read_manifest
from bcl_ray.data.shards.holdout import hold_out, own_validation
from bcl_ray.experiment.open_options import resolved
from bcl_ray.experiment.options import Experiment
from bcl_ray.machine.errors import UserError
from bcl_ray.ray_runtime import node_groups
from bcl_ray.ray_runtime.autoscaler import start_ray_data_actors
from bcl_ray.ray_runtime.connection import Resources, check_cluster, connected
from bcl_ray.ray_runtime.stopping import stop_signals
from bcl_ray.runs import run_folder
from bcl_ray.runs.driver_log import log_to_file
from bcl_ray.storage import files
from bcl_ray.storage.lease import Lease
from bcl_ray.storage.lease_request import LeaseRequest
from bcl_ray.tracking.connection import tracking_uri
from bcl_ray.tracking.tracker import Tracker
from bcl_ray.tuning import ledger as ledgers
from bcl_ray.tuning.capacity import trial_capacity
from bcl_ray.tuning.cleanup import Cleaner
from bcl_ray.tuning.freed_resources import ResourceWatcher
from bcl_ray.tuning.ledger import Ledger
from bcl_ray.tuning.ledger_writer import LedgerWriter
from bcl_ray.tuning.phases import common_options, run_phases
from bcl_ray.tuning.reporter import SearchReporter, record_start, start_event, subject
from bcl_ray.tuning.settings import Extent, Settings, check_search
from bcl_ray.tuning.tune_run import TuneRunner, driver_node
from bcl_ray.tuning.tune_searcher import Follow
from bcl_ray.tuning.winner import conclude

TRACKING_SECONDS = 60.0  # that a finished search waits for its tracking server


def search(
    name: str,
    experiment: Experiment,
    settings: Settings,
    extent: Extent,
    *,
    follow: Follow,
    resume: bool = False,
) -> dict[str, Any]:
    """Run a search to its end, and return the content of its event `winner`.

    Args:
        name: Name of the search; its folder is <tracking.runs>/<name>.
        experiment: Experiment whose options are searched.
        settings: Settings of the search.
        extent: Size of the search.
        follow: Called from any thread with events: `search`, `trial`, `confirm`, `note`, `winner`.
        resume: Resume a search that exists.

    Raises:
        ValueError: The search cannot work, its name is taken, or it began with another
            configuration. Nothing was written.
        LeaseHeldError: Another driver runs the search.
        LeaseLostError: This driver did not respond for a while, and another one has taken over.
        SearchError: No trial finished, or some are to be resumed later.
        Stopped: SIGINT or SIGTERM came; running trials have written checkpoints.
    """
    experiment = run_folder.with_absolute_paths(resolved(experiment))
    manifest = read_manifest(experiment.data.path)
    uri = run_folder.run_uri(name, experiment.tracking.runs)
    check_search(name, experiment, settings, extent, manifest, connected=ray.is_initialized())
    tracking_uri(experiment)  # a wrong address is an error before anything starts
    if resume:
        ledger = ledgers.open_search(uri)
        ledgers.check_resumable(ledger, settings, experiment, manifest.fingerprint)
    else:
        ledgers.check_free(uri, settings, experiment)
    lease_request = LeaseRequest(
        uri, f"search '{name}'", notify=lambda text: follow({"kind": "note", "text": text})
    )
    lease_request.check_free(wait=resume)
    with connected() as resources:
        capacity = _capacity(extent, experiment, manifest, resources)
        start_ray_data_actors()
        with lease_request.acquire(wait=resume) as lease:
            if resume:
                ledger = ledgers.resume(ledger, extent, experiment)
            else:
                ledger = ledgers.begin(uri, settings, extent, experiment, manifest.fingerprint)
            ledger = replace(ledger, fence=lease.fence)
            winner = _run(ledger, manifest, resources, capacity, follow=follow, lease=lease)
    follow({"kind": "winner", **winner})
    return winner


def _capacity(
    extent: Extent, experiment: Experiment, manifest: Manifest, resources: Resources
) -> int:
    """The number of trials that run at once.

    Raises:
        ValueError: Not even one trial fits, or nothing limits the number.
    """
    trial = extent.of_trial(experiment)
    check_cluster(trial, resources)
    if not resources.limited and extent.max_concurrent is None:
        raise UserError(
            "the cluster grows, and its largest size is not known: give --max-concurrent, or set "
            f"{node_groups.VARIABLE} on its head"
        )
    driver_bytes = driver_node()["Resources"].get("memory", 0.0)
    capacity = trial_capacity(trial, manifest, resources, driver_bytes)
    return min(capacity, extent.max_concurrent or capacity, extent.trials)


def _run(
    ledger: Ledger,
    manifest: Manifest,
    resources: Resources,
    capacity: int,
    *,
    follow: Follow,
    lease: Lease,
) -> dict[str, Any]:
    """Run the trials of a search that has begun, and return its winner."""
    folder, uri = run_folder.local_folder(ledger), tracking_uri(ledger.experiment)
    with contextlib.ExitStack() as stack:
        stack.enter_context(log_to_file(folder, lambda: lease.lost is None))
        follow(start_event(ledger, capacity, uri))
        # Before `stop_signals`, so that Ctrl-C ends it at once.
        data_options = _data_options(ledger, manifest)
        stop_request = stack.enter_context(stop_signals())
        tracker = stack.enter_context(Tracker(subject(ledger), uri, folder, lease))
        record_start(tracker, ledger, manifest)
        reporter = SearchReporter(tracker, follow)
        options = common_options(ledger, data_options, resources, capacity)
        writer = stack.enter_context(LedgerWriter(ledger))
        cleaner = stack.enter_context(Cleaner(writer, reporter.note))
        with ResourceWatcher(ledger.uid, reporter.note) as watcher:
            runner = TuneRunner(
                writer, cleaner, capacity, options, reporter, watcher, stop_request, lease
            )
            trials = run_phases(runner, reporter)
        lease.check()
        winner = conclude(
            ledger, trials, manifest, tracker=tracker, folder=folder, notify=reporter.note
        )
        cleaner.finish(trials)
        winner["tracked"] = tracker.finish("FINISHED", TRACKING_SECONDS)
        winner["problem"] = tracker.problem
    return winner


def _data_options(ledger: Ledger, manifest: Manifest) -> list[str]:
    """Options that name the trials' data; cuts the validation split, unless there is one."""
    data, settings = ledger.experiment.data, ledger.settings
    validation_split = own_validation(manifest, data)
    if validation_split is not None:
        return [f"data.eval_split={validation_split}", "data.validation_split=null"]
    target = ledger.file("data")
    if not files.exists(files.join(target, MANIFEST)):
        hold_out(data.path, target, settings.validation, settings.seed, split=data.train_split)
    return [f"data.path={target}", "data.train_split=train", "data.eval_split=validation"]
