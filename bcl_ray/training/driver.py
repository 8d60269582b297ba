"""A training run on Ray, from its driver: begin, start the workers, follow them, finish."""

import contextlib
import functools
import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.exceptions import RayError
from ray.train.v2.api.config import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import ControllerError

from bcl_ray.data.shards import Manifest, read_manifest
from bcl_ray.experiment.options import Experiment
from bcl_ray.machine.errors import FailedError
from bcl_ray.machine.versions import command
from bcl_ray.ray_runtime import access, elastic
from bcl_ray.ray_runtime.autoscaler import Demand, wait_for_nodes
from bcl_ray.ray_runtime.channel import Event, notify, open_channel, request_restart
from bcl_ray.ray_runtime.connection import (
    Resources,
    check_cluster,
    connected,
    one_line,
    resources,
    uses_gpus,
)
from bcl_ray.ray_runtime.failures import find_cause
from bcl_ray.ray_runtime.node_groups import MARKET
from bcl_ray.ray_runtime.node_metrics import NodeSamplers
from bcl_ray.ray_runtime.stopping import Stopped, StopRequest, run_stoppable, stop_signals
from bcl_ray.ray_runtime.trainer import Trainer
from bcl_ray.runs import checkpoint, run_folder
from bcl_ray.runs.budget import budget, check_store, preflight
from bcl_ray.runs.driver_log import log_to_file
from bcl_ray.runs.run_folder import Run
from bcl_ray.storage import files, paths
from bcl_ray.storage.fence import LeaseLostError
from bcl_ray.storage.lease import Lease, LeaseRequest
from bcl_ray.tracking.tracker import Tracker, subject, tracking_uri
from bcl_ray.training.residency import check_residency
from bcl_ray.training.worker import train_worker

logger = logging.getLogger(__name__)

Follow = Callable[[Event], None]

MLFLOW_PATIENCE = 120.0  # seconds that a finished run waits for its tracking server


class TrainingError(FailedError):
    """A run that ended without a result; says why, and how to go on."""


class MissingNodesError(TrainingError):
    """A run that did not begin, for the nodes that it needs did not come."""


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
    """Train, evaluate and track a run; returns its name and its history.

    Args:
        experiment: what to train. On resume, only data.path, data.residency, scale and tracking
            may differ.
        follow: called from a thread with every event of the run: `begin`, `start`, `step`,
            `epoch`, `page`, `note`, `end`.
        resume: path or URI of the folder of a run to continue.
        restartable: continue the run of that name, if there is one, and wait for another driver of
            it that may be dead; else begin it.
        parent: uid of the run that MLflow shows this one below: a search.
        stop_request: what may stop the run, beside signals.
        callbacks: Ray Train's, of its controller.

    Raises:
        ValueError: the run cannot work, or the name is taken; before anything is written.
        LeaseHeldError: another driver has the run.
        LeaseLostError: another driver has taken over, while this one was frozen or cut off.
        TrainingError: the run began and failed, or the nodes that it needs did not come.
        Stopped: SIGINT or SIGTERM came (in the main thread), or a stop was requested; a checkpoint
            was written, unless workers did not do so in time, or the signal came again.
    """

    def note(text: str) -> None:
        follow({"kind": "note", "text": text})

    experiment = run_folder.with_absolute_paths(experiment)
    manifest = read_manifest(experiment.data.path)
    wanted, _ = preflight(experiment, manifest, connected=ray.is_initialized())
    check_residency(experiment, manifest)
    tracked_at = tracking_uri(experiment)
    uri = resume or run_folder.run_uri(
        experiment.tracking.run or run_folder.default_name(experiment), experiment.tracking.runs
    )
    if resume is None and not restartable:
        run_folder.check_free(uri, experiment)
    elif resume is not None or run_folder.holds_run(uri):
        run_folder.check_resumable(run_folder.open_run(uri)[0], experiment, manifest.fingerprint)
    lease_request = LeaseRequest(uri, f"run '{paths.name(uri)}'", note)
    lease_request.check_free(wait=restartable)  # Ray takes seconds to start, and room
    with connected() as cluster:
        _check(experiment, manifest, cluster)
        needs = _needs(experiment, cluster)
        _check_access(experiment, needs)
        with (
            lease_request.acquire(wait=restartable) as lease,
            stop_signals(stop_request) as requested,
            Demand(uri) as demand,
        ):
            ask = functools.partial(_ask, demand, experiment, needs, cluster)
            ask(data=cluster.grows)
            if cluster.grows:
                _await_nodes(experiment, needs, follow=follow, stop_request=requested)
                _check_access(experiment, needs)
                # What is asked for is reserved, so that streams may use the rest alone.
                follow = _at_first_step(follow, functools.partial(ask, data=False))
            if resume is not None or (restartable and run_folder.holds_run(uri)):
                run = run_folder.open_run(uri)[0]
            else:
                run = run_folder.create(uri, experiment, manifest.fingerprint)
            outcome = _tracked(
                run,
                experiment,
                manifest,
                parent=parent,
                at=tracked_at,
                begin={"budget": wanted},
                stop_request=requested,
                lease=lease,
                demand=demand,
                needs=needs,
                follow=follow,
                callbacks=callbacks,
            )
    follow({"kind": "end", **outcome})
    return outcome


def _tracked(
    run: Run,
    experiment: Experiment,
    manifest: Manifest,
    *,
    parent: str | None,
    at: str,
    begin: Event,
    stop_request: StopRequest,
    lease: Lease,
    demand: Demand,
    needs: Mapping[str, float],
    follow: Follow,
    callbacks: Sequence[Any],
) -> Event:
    """The run from its first record to its last."""
    folder = run_folder.local_folder(run)
    with (
        log_to_file(folder, lambda: lease.lost is None),
        Tracker(subject(run, experiment), at, folder, lease) as tracker,
    ):
        tracker.start(parent)
        tracker.describe(experiment, manifest)
        follow(_begin_event(run, experiment, manifest, tracker) | begin)
        channel = open_channel()
        trainer = _trainer(
            run,
            experiment,
            manifest,
            channel,
            lease=lease,
            needs=needs,
            cluster=resources(),
            callbacks=callbacks,
        )
        try:
            # Trials run beside each other, and would all look at the same nodes.
            follower = RunMonitor(channel, tracker, follow, all_nodes=parent is None)
            outcome, state = _run(run, trainer, stop_request, follower, lease)
        except Stopped:
            tracker.tags({"stopped": stop_request.reason or ""})
            raise
        demand.request([])  # what follows takes no nodes
        lease.check()  # what is drawn goes into the run's folder, too
        drawn = experiment.tracking.report
        outcome["report"] = _sum_up(run, state, tracker, follow) if drawn else None
        outcome["tracked"] = tracker.finish("FINISHED", MLFLOW_PATIENCE)
        outcome["problem"] = tracker.problem
    return outcome


def _check(experiment: Experiment, manifest: Manifest, cluster: Resources) -> None:
    """What could only be checked once the cluster is known."""
    if cluster.limited:
        wanted = budget(experiment, manifest, cluster.cpus)
        if not cluster.grows:
            check_store(wanted, cluster.store_bytes)
    check_cluster(experiment, cluster)


def _ask(
    demand: Demand,
    experiment: Experiment,
    needs: Mapping[str, float],
    cluster: Resources,
    *,
    data: bool,
) -> None:
    """Ask for the nodes of all workers, and for those of data tasks."""
    asked = elastic.resource_bundles(experiment, needs, data=data)
    kept = _rank_zero_stays(experiment.scale.max_workers, cluster) or []
    demand.request(asked, kept + [{}] * (len(asked) - len(kept)))


def _await_nodes(
    experiment: Experiment, needs: Mapping[str, float], *, follow: Follow, stop_request: StopRequest
) -> None:
    """Wait for the nodes of the fewest workers and of data tasks.

    Raises:
        MissingNodesError: they did not come within scale.wait_timeout.
        Stopped: a stop was requested meanwhile.
    """
    patience = experiment.scale.wait_timeout
    there = wait_for_nodes(
        lambda: elastic.cluster_shortage(experiment, needs),
        patience,
        lambda text: follow({"kind": "note", "text": text}),
        lambda: stop_request.reason,
    )
    if stop_request.reason is not None:
        raise Stopped("stopped while it waited for nodes: nothing was begun", stop_request.signum)
    if not there:
        raise MissingNodesError(
            f"the nodes did not come within scale.wait_timeout ({patience:g} s): the run needs "
            f"{elastic.cluster_shortage(experiment, needs)}; see `ray status` on the head"
        )


def _at_first_step(follow: Follow, act: Callable[[], None]) -> Follow:
    """The same follower, before which something is done once, when workers train."""
    left = [act]

    def passing(event: Event) -> None:
        if left and event["kind"] in ("step", "epoch"):
            left.pop()()
        follow(event)

    return passing


def _check_access(experiment: Experiment, needs: Mapping[str, float]) -> None:
    """Make sure that the driver and all nodes that are there may use the object store."""
    places = {
        "data.path": (experiment.data.path, {"list", "read"}),
        "tracking.runs": (experiment.tracking.runs, {"list", "read", "write", "delete"}),
    }
    if experiment.model.weights is not None:
        places["model.weights"] = (experiment.model.weights, {"read"})
    access.check_everywhere(places, worker=needs)


def _begin_event(run: Run, experiment: Experiment, manifest: Manifest, tracker: Tracker) -> Event:
    return {
        "kind": "begin",
        "run": run.name,
        "folder": paths.for_display(run.uri),
        "tracking_uri": tracker.uri,
        "experiment": experiment,
        "classes": len(manifest.class_names),
    }


def _run(
    run: Run, trainer: Trainer, stop_request: StopRequest, follower: "RunMonitor", lease: Lease
) -> tuple[Event, checkpoint.State]:
    """Run the workers to the end, and hand over what they report as it comes."""
    follower.start()
    resume = f"{command()} train --resume {run_folder.reference(run)}"
    try:
        result = run_stoppable(
            trainer.fit,
            stop_request,
            follower.ask_to_stop,
            terminate=trainer.terminate,
            failure=lambda: lease.lost,
        )
    # Ray's own: its controller may have died, or found its snapshot damaged.
    except (ray.train.TrainingFailedError, RayError) as failure:
        if (lost := find_cause(failure, LeaseLostError) or lease.poll()) is not None:
            lease.mark_lost(lost)
            raise lost from None
        cause = _cause(failure, run, follower.tracker)
        if find_cause(failure, checkpoint.UnusableCheckpointError):
            raise TrainingError(f"{cause}\nbegin another run") from None
        raise TrainingError(f"{cause}\ncontinue with: {resume}") from None
    except Stopped as stop:
        raise Stopped(f"{stop}; go on with: {resume}", stop.signum) from None
    finally:
        follower.stop()
    returned = result.return_value or {}
    if "error" in returned:
        raise TrainingError(returned["error"])
    if "stopped" in returned:
        text = f"stopped at step {returned['stopped']:,}; go on with: {resume}"
        raise Stopped(text, stop_request.signum)
    lease.check()
    return _finished(run, result, follower)


def _trainer(
    run: Run,
    experiment: Experiment,
    manifest: Manifest,
    channel: Any,
    *,
    lease: Lease,
    needs: Mapping[str, float],
    cluster: Resources,
    callbacks: Sequence[Any],
) -> Trainer:
    scale = experiment.scale
    filesystem, path = files.atomic_filesystem(run.uri, lease.fence)
    parent, _, name = path.rstrip("/").rpartition("/")
    return Trainer(
        train_worker,
        experiment=experiment,
        notify=functools.partial(notify, channel),
        request_restart=functools.partial(request_restart, channel),
        train_loop_config={
            "experiment": experiment.to_yaml(),
            "manifest": manifest.model_dump_json(),
            "run": run.uri,
            "uid": run.uid,
            "channel": channel,
            "fence": lease.fence,
        },
        # Longer than a worker takes to notice a hang, which says where it hangs.
        torch_config=ray.train.torch.TorchConfig(timeout_s=int(2 * scale.hang_timeout) + 1),
        scaling_config=ScalingConfig(
            num_workers=(scale.min_workers, scale.max_workers),
            use_gpu="GPU" in needs,
            resources_per_worker=dict(needs),
            label_selector=_rank_zero_stays(scale.max_workers, cluster),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=parent or "/",
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=scale.max_failures),
            # The last, and the one before, should the last be damaged.
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            callbacks=list(callbacks),
        ),
    )


def _needs(experiment: Experiment, cluster: Resources) -> dict[str, float]:
    """Resources of one worker."""
    gpu = {"GPU": experiment.scale.gpus_per_worker} if uses_gpus(experiment, cluster) else {}
    return {"CPU": experiment.scale.cpus_per_worker, **gpu}


def _rank_zero_stays(max_workers: int, cluster: Resources) -> list[dict[str, str]] | None:
    """Keep the worker that writes checkpoints on a node that is not taken away."""
    if not cluster.has_steady_nodes:
        return None
    # Ray Train numbers workers node by node, beginning with the first of its placement group.
    return [{MARKET: "steady"}, *({} for _ in range(max_workers - 1))]


class RunMonitor(threading.Thread):
    """Passes on what workers send, until it is stopped; epochs are tracked on the way.

    Neither a terminal that is gone nor a full disk may stop training: the first failure is
    kept in `failure`.
    """

    def __init__(
        self, channel: Any, tracker: Tracker, follow: Follow, *, all_nodes: bool = True
    ) -> None:
        super().__init__(name="follower", daemon=True)
        self.channel, self.tracker = channel, tracker
        self.nodes = NodeSamplers(channel, all_nodes=all_nodes)
        self.follow: Follow = follow
        self.tracked: set[int] = set()
        self.failure: Exception | None = None
        self.started = False
        self.paged = False

    def run(self) -> None:
        """Take events until `stop`."""
        while True:
            try:
                events = ray.get(self.channel.take.remote())
            except RayError as error:  # its process was killed: training goes on, unseen
                self.failure = self.failure or error
                return
            for event in events:
                if event["kind"] == "stop":
                    return
                for act in (self._track, self._show):
                    try:
                        act(event)
                    except Exception as error:
                        logger.exception("%s failed", event["kind"])
                        self.failure = self.failure or error

    def ask_to_stop(self) -> bool:
        """Ask workers to save their state and stop; False where there have been none."""
        self.channel.request_stop.remote()
        return self.started

    def stop(self) -> None:
        """Wait until all that was told before has been passed on."""
        self.nodes.wait()
        with contextlib.suppress(RayError):  # which `run` has met, too
            ray.get(self.channel.put.remote({"kind": "stop"}))
        self.join()

    def track(self, records: list[dict[str, float]]) -> None:
        """Track the records of epochs that have not been tracked."""
        for record in records:
            epoch = int(record["epoch"])
            if epoch not in self.tracked:
                named = {name: value for name, value in record.items() if name != "epoch"}
                self.tracker.metrics(named, epoch)
                self.tracked.add(epoch)

    def _track(self, event: Event) -> None:
        self.track(event.get("records", []))
        if event["kind"] == "start":
            chosen = ("precision", "residency")
            self.tracker.tags({name: event[name] for name in chosen})
        if event["kind"] == "system":
            values = {f"system/{event['node']}/{name}": v for name, v in event["values"].items()}
            self.tracker.metrics(values, event["epoch"])
        if event["kind"] == "epoch":
            try:
                self.nodes.send(int(event["records"][-1]["epoch"]))
            except (RayError, OSError):  # no more than an ornament
                logger.exception("system metrics failed")

    def _show(self, event: Event) -> None:
        self.started = self.started or event["kind"] == "start"
        if event["kind"] == "system" or self.failure:
            return
        self.follow(event)
        if self.tracker.page and not self.paged:  # MLflow is reached when training has begun
            self.paged = True
            self.follow({"kind": "page", "page": self.tracker.page})


def _cause(failure: Exception, run: Run, tracker: Tracker) -> str:
    """The failure in one line; all of it goes to a file, and to MLflow, which outlasts the head."""
    file = run_folder.local_folder(run) / "error.txt"
    try:
        file.write_text(str(failure))
        tracker.artifact(file)
    except OSError as error:  # a full disk, which is told of already where it ends training
        logger.warning("%s was not written: %s", file, error)
    if isinstance(failure, ControllerError):
        return one_line(failure.controller_failure)
    causes = list(getattr(failure, "worker_failures", {}).values()) or [failure]
    return f"the workers failed: {one_line(causes[0])} (all of it: {file}, and in MLflow)"


def _finished(run: Run, result: Any, follower: RunMonitor) -> tuple[Event, checkpoint.State]:
    """What a run that is complete came to, and its last state."""
    last = files.join(run.uri, PurePosixPath(result.checkpoint.path).name)
    state = checkpoint.load(last)
    follower.track(state.history)  # what a worker told may come after the end of training
    follower.tracker.model(last)
    if follower.failure is not None:
        raise TrainingError(
            f"training is complete, but following it failed: {one_line(follower.failure)}"
            f"\nsee its results with: {command()} evaluate {run_folder.reference(run)}"
        )
    found = {"run": run.name, "reference": run_folder.reference(run), "history": state.history}
    return found, state


def _sum_up(run: Run, state: checkpoint.State, tracker: Tracker, follow: Follow) -> str | None:
    """Draw figures and the report, and track them; a failure to draw is told, and fails no run."""
    folder = run_folder.local_folder(run)
    try:
        # matplotlib takes a second to import, which training need not wait for.
        from bcl_ray.report import results, summary  # noqa: PLC0415

        written = summary.write(results.of_run(run, state), folder)
    except Exception as error:
        logger.exception("the report failed")
        again = f"bcl-ray report {run_folder.reference(run)}"
        text = f"the report could not be drawn: {one_line(error)}; try again with: {again}"
        follow({"kind": "note", "text": text})
        return None
    for file in written:
        parent = file.parent.relative_to(folder).as_posix()
        tracker.artifact(file, "" if parent == "." else parent)
    tables = [{"path": summary.TABLE, "type": "table"}]
    tracker.tags({"mlflow.loggedArtifacts": json.dumps(tables)})  # where MLflow looks
    return str(folder / summary.REPORT)
