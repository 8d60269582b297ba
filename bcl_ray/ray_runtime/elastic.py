"""How many workers a run gets, whether it survives a failure, and how long it waits for a node.

Ray Train's own policies start with any number of workers, even if the global batch cannot be
divided by it, take all of the cluster's CPUs, which starves the stream, and wait for ever. These
stand in their places; they run in Ray Train's controller.
"""

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import ray
import ray.train.torch
from ray.exceptions import RayActorError
from ray.train.v2.api.config import ScalingConfig
from ray.train.v2.api.exceptions import PreemptionError, TrainingFailedError, WorkerGroupError
from ray.train.v2.torch.torch_trainer import TorchTrainer

from bcl_ray.experiment.options import Experiment
from bcl_ray.ray_runtime.connection import one_line, root_cause
from bcl_ray.ray_runtime.controller import Controlled
from bcl_ray.ray_runtime.internals import (
    DatasetsCallback,
    DefaultFailurePolicy,
    ElasticScalingPolicy,
    FailureDecision,
    NoopDecision,
    PlacementGroupCleanerCallback,
    time_monotonic,
)
from bcl_ray.ray_runtime.internals import state as cluster_state
from bcl_ray.runs.checkpoint import UnusableCheckpointError
from bcl_ray.storage.fence import LostError

Notify = Callable[[str], None]
Nodes = Iterable[Mapping[str, float]]

SETTLE = 10.0  # seconds in which what ended workers held comes free again
GROWTH = 60.0  # seconds of training at least between two restarts with more workers


class RestartError(RuntimeError):
    """Workers are to start again on the nodes that there are; their state has been saved."""


class MissingResourcesError(RuntimeError):
    """The cluster did not have enough for the fewest workers within scale.wait_timeout."""


def bundles(
    experiment: Experiment, needs: Mapping[str, float], *, data: bool
) -> list[Mapping[str, float]]:
    """What a run asks an autoscaler for: the most workers, then CPUs for data.

    Args:
        experiment: whose scale it is.
        needs: resources of one worker.
        data: whether CPUs for data are asked for.
    """
    task = experiment.scale.cpus_per_data_task
    tasks = math.ceil(experiment.least_data_cpus / task - 1e-9) if data else 0
    return [needs] * experiment.scale.max_workers + [{"CPU": task}] * tasks


def lacking(experiment: Experiment, needs: Mapping[str, float]) -> str:
    """What the cluster lacks now for the fewest workers; nothing where it has enough."""
    nodes = usable_nodes().values()
    found = chosen_workers(experiment, nodes, needs)
    return "" if found else missing(experiment, nodes, needs)


def places(nodes: Nodes, needs: Mapping[str, float]) -> int:
    """How many workers of certain needs fit on nodes, none of which a worker can share."""
    return sum(
        # A node of 1.0 CPU has ten places of 0.1, which floats would deny.
        min((math.floor(node.get(name, 0.0) / need + 1e-9) for name, need in needs.items()))
        for node in nodes
    )


def chosen_workers(experiment: Experiment, nodes: Nodes, needs: Mapping[str, float]) -> int:
    """The most workers that the run may have on nodes, with CPUs left for the stream; else 0.

    Args:
        experiment: whose worker_counts are possible.
        nodes: resources of each node that workers may use.
        needs: resources of one worker.
    """
    nodes, scale = list(nodes), experiment.scale
    cpus = sum(node.get("CPU", 0.0) for node in nodes) - experiment.least_data_cpus
    room = min(places(nodes, needs), math.floor(cpus / scale.cpus_per_worker + 1e-9))
    return max((count for count in experiment.worker_counts if count <= room), default=0)


def missing(experiment: Experiment, nodes: Nodes, needs: Mapping[str, float]) -> str:
    """What nodes lack for the fewest workers, resource by resource."""
    nodes, scale = list(nodes), experiment.scale
    wanted = {name: scale.min_workers * need for name, need in needs.items()}
    wanted["CPU"] += experiment.least_data_cpus
    have = {name: sum(node.get(name, 0.0) for node in nodes) for name in wanted}
    short = [
        f"{wanted[name]:g} {name}, and there {'is' if have[name] == 1 else 'are'} {have[name]:g}"
        for name in wanted
        if have[name] < wanted[name]
    ]
    each = ", ".join(f"{need:g} {name}" for name, need in needs.items())
    return "; ".join(short) or f"nodes with {each} free for each of {scale.min_workers} workers"


def usable_nodes() -> dict[str, dict[str, float]]:
    """Resources by node, of those that are there to stay, not of those with notice to go."""
    going = cluster_state.get_draining_nodes() or {}
    alive = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    return {node: resources for node, resources in alive.items() if node not in going}


def free_resources(nodes: Collection[str]) -> list[dict[str, float]]:
    """What nobody holds of some nodes."""
    free = cluster_state.available_resources_per_node()
    return [free[node] for node in nodes if node in free]


class Scaling(ElasticScalingPolicy):
    """As many workers as there is room for, of those that divide the global batch.

    Args:
        config: Ray Train's.
        experiment: whose scale is followed.
        notify: called with messages for the user.
        restart: asks workers to save their state and to give up.
    """

    def __init__(
        self,
        config: ScalingConfig,
        experiment: Experiment,
        notify: Notify,
        restart: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._experiment, self._notify, self._restart = experiment, notify, restart
        self._waiting_since: float | None = None
        self._nodes: set[str] = set()  # that the last decision was made for

    def make_decision_for_non_running_worker_group(self) -> Any:
        """How many workers to start, now or later.

        Raises:
            MissingResourcesError: it has been too long.
        """
        now, patience = time.monotonic(), self._experiment.scale.wait_timeout
        begins = self._waiting_since is None
        since = self._waiting_since = now if self._waiting_since is None else self._waiting_since
        nodes = usable_nodes()
        workers = self._workers(nodes, settled=now - since > SETTLE)
        if now - since > patience:
            raise MissingResourcesError(
                f"no workers after scale.wait_timeout ({patience:g} s): the run needs "
                f"{missing(self._experiment, nodes.values(), self._needs)}; add nodes, or lower "
                "scale.workers"
            )
        if workers:
            self._nodes = set(nodes)
            return self._get_resize_decision(workers)
        if begins and not chosen_workers(self._experiment, nodes.values(), self._needs):
            lacking = missing(self._experiment, nodes.values(), self._needs)
            self._notify(f"waiting up to {patience:g} s for {lacking}")
        return NoopDecision()  # after which `Controller` waits a moment

    def _workers(self, nodes: Mapping[str, Mapping[str, float]], settled: bool) -> int:
        """How many to start; 0: none yet."""
        room = chosen_workers(self._experiment, nodes.values(), self._needs)
        free = chosen_workers(self._experiment, free_resources(nodes), self._needs)
        least = self._experiment.worker_counts[0]
        if room in (0, least) or free >= room:
            return room
        # What others hold is no room; but the fewest wait in Ray's queue, not here.
        return max(free, least) if settled else 0

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> Any:
        """Never a new size: workers are asked to save their state first, where nodes have come."""
        del worker_group_status  # part of Ray's signature
        self._waiting_since = None
        old_enough = time_monotonic() - worker_group_state.start_time > GROWTH
        if old_enough and self._experiment.scale.min_workers < self._experiment.scale.max_workers:
            nodes = usable_nodes()
            wanted = chosen_workers(self._experiment, nodes.values(), self._needs)
            if set(nodes) - self._nodes and wanted > worker_group_state.num_workers:
                self._nodes = set(nodes)
                self._restart()
        return NoopDecision()

    def _send_resource_request(self) -> None:
        """Ask for nothing: the driver does, before workers start, and for data too."""

    @property
    def _needs(self) -> dict[str, float]:
        return dict(self.scaling_config._resources_per_worker_not_none)


class Failures(DefaultFailurePolicy):
    """scale.max_failures failures, and any number of nodes that are taken away with notice."""

    def __init__(self, config: Any, notify: Notify) -> None:
        super().__init__(config)
        self._notify = notify
        self._told = ""

    def make_decision(self, training_failed_error: TrainingFailedError) -> Any:
        """Whether to start the workers again; says so."""
        error = training_failed_error
        # It would come again; or another driver has the run, and starts workers itself.
        if unusable_of(error) or lost_of(error):
            return FailureDecision.RAISE
        if asked := restart_of(error):
            self._notify(f"{asked}; starting again on the nodes that there are")
            return FailureDecision.RETRY
        decision = super().make_decision(training_failed_error=error)
        if decision == FailureDecision.RETRY and isinstance(error, WorkerGroupError):
            left = self.failure_config.max_failures - self._worker_group_failures
            self._notify(
                f"{_first_failure(error)}: starting again from the last checkpoint "
                f"({left} more failures allowed)"
            )
        elif decision == FailureDecision.RETRY and isinstance(error, PreemptionError):
            self._notify("a node was taken away: starting again from the last checkpoint")
        elif decision == FailureDecision.RETRY:
            self._notify_once(f"workers did not start ({_last_line(error)}): trying again")
        return decision

    def _notify_once(self, text: str) -> None:
        """Notify what may repeat itself every few seconds."""
        if text != self._told:
            self._told = text
            self._notify(text)


def restart_of(error: Exception) -> RestartError | None:
    """What workers raised that gave up to start again, after they had saved their state."""
    failures = map(_own, getattr(error, "worker_failures", {}).values())
    return next((failure for failure in failures if isinstance(failure, RestartError)), None)


def lost_of(error: Exception) -> LostError | None:
    """What workers or the controller raised when they found that another driver has the run."""
    failures = [*getattr(error, "worker_failures", {}).values(), error]
    causes = [_own(getattr(failure, "controller_failure", failure)) for failure in failures]
    return next((cause for cause in causes if isinstance(cause, LostError)), None)


def unusable_of(error: Exception) -> UnusableCheckpointError | None:
    """What workers raised when none of the run's checkpoints can be read."""
    failures = map(_own, getattr(error, "worker_failures", {}).values())
    return next((one for one in failures if isinstance(one, UnusableCheckpointError)), None)


def _own(failure: BaseException) -> BaseException:
    """What a worker raised, beneath Ray Train's wrapper."""
    return root_cause(getattr(failure, "_base_exc", failure))


def _last_line(error: Exception) -> str:
    """Of a controller's failure; its first lines are a worker's traceback."""
    cause = getattr(error, "controller_failure", error)
    return (str(cause).strip().splitlines() or [type(cause).__name__])[-1].strip()


def _first_failure(error: WorkerGroupError) -> str:
    """The failure that the others follow from: when a worker dies, its peers lose it."""
    failures = {worker: _own(failure) for worker, failure in error.worker_failures.items()}
    dead = [worker for worker, own in failures.items() if isinstance(own, RayActorError)]
    if dead:
        return f"worker {dead[0]} died"
    worker, own = next(iter(failures.items()))
    return f"worker {worker} failed ({one_line(own)})"


class Trainer(TorchTrainer):
    """Ray's TorchTrainer with the policies of this module.

    Args:
        experiment: whose scale they follow.
        notify, restart: see `Scaling`; called in the controller.
        options: TorchTrainer's.
    """

    def __init__(
        self,
        *args: Any,
        experiment: Experiment,
        notify: Notify,
        restart: Callable[[], None],
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self._experiment, self._notify, self._restart = experiment, notify, restart
        self._controlled = Controlled()

    def end(self) -> None:
        """End training at once, from another thread than the one that is in `fit`."""
        self._controlled.end()

    def _create_default_callbacks(self) -> list[Any]:
        """Ray Train's, but for those that would start processes with nothing to do."""
        idle: tuple[type, ...] = (DatasetsCallback,)  # data come by streams of our own
        if any(
            getattr(callback, "KEEPS_PLACES", False) for callback in self.run_config.callbacks or ()
        ):
            idle += (PlacementGroupCleanerCallback,)
        return [each for each in super()._create_default_callbacks() if not isinstance(each, idle)]

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        options["scaling_policy"] = Scaling(
            self.scaling_config,  # type: ignore[arg-type]  # Ray's stub has version 1's
            self._experiment,
            self._notify,
            self._restart,
        )
        options["failure_policy"] = Failures(self.run_config.failure_config, self._notify)
        return self._controlled.run(**options)
