"""The driver of a training run: `fit` takes a run from its first check to its report.

preparation  checks, resources and nodes, before the workers start
launch       start and end of the workers
monitor      the workers' events: metrics go to MLflow, progress to the user
outcome      the result or the error, the model and the report
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray

from bcl_ray.data.shards import Manifest, read_manifest
from bcl_ray.experiment.open_options import resolved
from bcl_ray.experiment.options import Experiment
from bcl_ray.method.pretrained import check_weights
from bcl_ray.ray_runtime.autoscaler import Demand
from bcl_ray.ray_runtime.channel import open_channel
from bcl_ray.ray_runtime.connection import Resources, connected
from bcl_ray.ray_runtime.elastic import worker_count
from bcl_ray.ray_runtime.stopping import Stopped, StopRequest, stop_signals
from bcl_ray.runs import run_folder
from bcl_ray.runs.budget import Budget, preflight
from bcl_ray.runs.driver_log import log_to_file
from bcl_ray.runs.events import Event, Follow
from bcl_ray.runs.run_folder import Run
from bcl_ray.storage import paths
from bcl_ray.storage.lease_request import LeaseRequest
from bcl_ray.tracking.connection import tracking_uri
from bcl_ray.tracking.tracker import Tracker, training_subject
from bcl_ray.training import outcome
from bcl_ray.training.launch import Launch, run_workers
from bcl_ray.training.monitor import RunMonitor
from bcl_ray.training.preparation import (
    await_nodes,
    check_resources,
    check_storage,
    request_nodes,
    worker_resources,
)
from bcl_ray.training.resident_images import check_residency

MLFLOW_PATIENCE = 120.0  # seconds that a finished run waits for its tracking server


def fit(
    experiment: Experiment,
    *,
    follow: Follow,
    resume: str | None = None,
    restartable: bool = False,
    parent: str | None = None,
    stop_request: StopRequest | None = None,
    callbacks: Sequence[Any] = (),
) -> Event:
    """Train, evaluate and track a run.

    Args:
        experiment: What to train. On resume, only data.path, data.residency, scale and tracking
            may differ.
        follow: Called from a thread with every event of the run: `begin`, `start`, `step`,
            `epoch`, `page`, `note`, `end`.
        resume: Path or URI of the folder of a run to continue.
        restartable: True: if the run tracking.run exists, continue it; if another driver has it,
            which may be dead, wait for that one to end. False: a run that `resume` does not name
            must not exist, and another driver is an error.
        parent: Uid of the MLflow run that contains this one: a search's.
        stop_request: A request to stop that callers can make, besides signals.
        callbacks: Callbacks of Ray Train's controller.

    Returns:
        The `end` event's content: `run` (its name), `reference` (its name or folder, for other
        commands), `history` (a record of metrics per epoch), `report` (a file, or None), `tracked`
        (whether MLflow has everything), and `problem` (why not, or None).

    Raises:
        ValueError: The run cannot work, or its name is taken; nothing has been written.
        LeaseHeldError: Another driver has the run.
        LeaseLostError: Another driver has taken the run over while this one was frozen or cut off.
        TrainingError: The run began and failed, or the nodes that it needs did not come.
        Stopped: SIGINT or SIGTERM came (in the main thread), or a stop was requested. A checkpoint
            was written, unless workers were too slow or a second signal came.
    """
    experiment = run_folder.with_absolute_paths(resolved(experiment))
    name = experiment.tracking.run or run_folder.default_name(experiment)
    uri = resume or run_folder.run_uri(name, experiment.tracking.runs)
    continues = functools.partial(_continues, uri, resume=resume, restartable=restartable)
    if resume is None and continues():
        experiment = _as_it_began(uri, experiment, follow)
    manifest = read_manifest(experiment.data.path)
    mlflow_uri = tracking_uri(experiment)
    run_budget = _check(experiment, manifest, uri, continues=continues(), restartable=restartable)
    lease_request = LeaseRequest(uri, f"run '{paths.name(uri)}'", functools.partial(_note, follow))
    lease_request.check_free(wait=restartable)  # before Ray starts, which takes seconds
    with connected() as cluster:
        check_resources(experiment, manifest, cluster)
        per_worker = worker_resources(experiment, cluster)
        check_storage(experiment, per_worker)
        with (
            lease_request.acquire(wait=restartable) as lease,
            stop_signals(stop_request) as stop,
            Demand(uri) as demand,
        ):
            on_start = _provide_nodes(
                demand, experiment, per_worker, cluster, stop_request=stop, follow=follow
            )
            # Ask again: another driver may have created the run meanwhile.
            run = _open_run(uri, experiment, manifest, continues=continues())
            launch = Launch(run, experiment, manifest, lease, per_worker, callbacks)
            result = _train(
                launch,
                mlflow_uri,
                run_budget,
                parent=parent,
                stop_request=stop,
                demand=demand,
                on_start=on_start,
                follow=follow,
            )
    follow({"kind": "end", **result})
    return result


def _continues(uri: str, *, resume: str | None, restartable: bool) -> bool:
    """Whether the run of a folder goes on, rather than begins; arguments as of `fit`."""
    return resume is not None or (restartable and run_folder.holds_run(uri))


def _open_run(uri: str, experiment: Experiment, manifest: Manifest, *, continues: bool) -> Run:
    """The run of a folder, which is created unless it goes on."""
    if continues:
        return run_folder.open_run(uri)[0]
    return run_folder.create(uri, experiment, manifest.fingerprint)


def _as_it_began(uri: str, experiment: Experiment, follow: Follow) -> Experiment:
    """The experiment, in which options newer than the run get the values that act as before."""
    experiment, changes = run_folder.with_original_defaults(uri, experiment)
    for change in changes:
        _note(follow, f"goes on with {change}, with which it began")
    return experiment


def _check(
    experiment: Experiment, manifest: Manifest, uri: str, *, continues: bool, restartable: bool
) -> Budget:
    """Refuse a run that cannot work, before anything starts; returns the run's budget."""
    run_budget, _ = preflight(experiment, manifest, connected=ray.is_initialized())
    check_residency(experiment, manifest)
    if continues:
        run_folder.check_resumable(run_folder.open_run(uri)[0], experiment, manifest.fingerprint)
    else:
        check_weights(experiment)
        if not restartable:
            run_folder.check_free(uri, experiment)
    return run_budget


def _provide_nodes(
    demand: Demand,
    experiment: Experiment,
    per_worker: Mapping[str, float],
    cluster: Resources,
    *,
    stop_request: StopRequest,
    follow: Follow,
) -> Callable[[int], None]:
    """Request the run's nodes, and wait for them if the cluster grows.

    Returns:
        A function to call with the number of workers when they have started. It then requests only
        what they need; in a cluster that grows, nodes for as many workers as there may be.
    """
    request = functools.partial(request_nodes, demand, experiment, per_worker, cluster)
    most = experiment.scale.max_workers
    if cluster.limited:
        fitting = worker_count(experiment, cluster.nodes, per_worker)
        most = max(fitting, experiment.scale.min_workers)
    # Ray Data never uses CPUs that are requested, not even those requested for its own tasks. So
    # the request for data tasks is dropped when workers have started, before they ask for their
    # first batch: where all CPUs are requested, that batch would never come. For the same reason
    # nothing is requested for workers that can never fit.
    request(workers=most, data=cluster.grows)
    if not cluster.grows:
        return lambda workers: request(workers=workers, data=False)
    note = functools.partial(_note, follow)
    await_nodes(experiment, per_worker, notify=note, stop_request=stop_request)
    check_storage(experiment, per_worker)
    return lambda _: request(workers=most, data=False)


def _train(
    launch: Launch,
    mlflow_uri: str,
    run_budget: Budget,
    *,
    parent: str | None,
    stop_request: StopRequest,
    demand: Demand,
    on_start: Callable[[int], None],
    follow: Follow,
) -> Event:
    """Run the workers, and track the run from its beginning to its end; returns its result."""
    run, experiment, lease = launch.run, launch.experiment, launch.lease
    folder = run_folder.local_folder(run)
    with (
        log_to_file(folder, lambda: lease.lost is None),
        Tracker(training_subject(run, experiment), mlflow_uri, folder, lease) as tracker,
    ):
        tracker.start(parent)
        tracker.describe(experiment, launch.manifest)
        follow(_begin_event(launch, tracker.uri, run_budget))
        channel = open_channel()
        trainer = launch.trainer(channel)
        # Trials run at the same time, and would all measure the same nodes.
        monitor = RunMonitor(channel, tracker, follow, all_nodes=parent is None, on_start=on_start)
        try:
            fit_result = run_workers(run, trainer, monitor, stop_request=stop_request, lease=lease)
            result, state = outcome.collect(run, fit_result, monitor)
        except Stopped:
            tracker.tags({"stopped": stop_request.reason or ""})
            raise
        demand.request([])  # the rest needs no nodes
        lease.check()  # the report is written to the run's folder, which must still be ours
        result["report"] = None
        if experiment.tracking.report:
            result["report"] = outcome.write_report(
                run, state, tracker, functools.partial(_note, follow)
            )
        result["tracked"] = tracker.finish("FINISHED", MLFLOW_PATIENCE)
        result["problem"] = tracker.problem
    return result


def _note(follow: Follow, text: str) -> None:
    follow({"kind": "note", "text": text})


def _begin_event(launch: Launch, mlflow_uri: str, run_budget: Budget) -> Event:
    return {
        "kind": "begin",
        "run": launch.run.name,
        "folder": paths.for_display(launch.run.uri),
        "tracking_uri": mlflow_uri,
        "experiment": launch.experiment,
        "classes": len(launch.manifest.class_names),
        "budget": run_budget,
    }
