"""How many workers a run gets, whether it survives a failure, and how long it waits for a node.

Ray Train's own policies start with any number of workers, even if the global batch cannot be
divided by it, take all of the cluster's CPUs, which starves the stream, and wait for ever. These
stand in their places; they run in Ray Train's controller.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ray
import ray.train.torch
from ray._private.state import state as cluster_state
from ray.exceptions import RayActorError
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, ResizeDecision
from ray.train.v2.api.exceptions import PreemptionError, WorkerGroupError

from bcl_ray.cluster import one_line, root_cause
from bcl_ray.config import Experiment

Tell = Callable[[str], None]
Nodes = Iterable[Mapping[str, float]]

PAUSE = 1.0  # seconds between two looks at the cluster; Ray's controller would spin


class PreemptedError(RuntimeError):
    """A node is about to be taken away, and the state has been saved."""


class MissingResourcesError(RuntimeError):
    """The cluster did not have enough for the fewest workers within scale.wait_timeout."""


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
    for_data = max(scale.data_cpus or 0.0, scale.cpus_per_data_task)
    cpus = sum(node.get("CPU", 0.0) for node in nodes)
    room = min(places(nodes, needs), math.floor((cpus - for_data) / scale.cpus_per_worker + 1e-9))
    return max((count for count in experiment.worker_counts if count <= room), default=0)


def missing(experiment: Experiment, nodes: Nodes, needs: Mapping[str, float]) -> str:
    """What nodes lack for the fewest workers, resource by resource."""
    nodes, scale = list(nodes), experiment.scale
    wanted = {name: scale.min_workers * need for name, need in needs.items()}
    wanted["CPU"] += max(scale.data_cpus or 0.0, scale.cpus_per_data_task)
    have = {name: sum(node.get(name, 0.0) for node in nodes) for name in wanted}
    short = [
        f"{wanted[name]:g} {name}, and there {'is' if have[name] == 1 else 'are'} {have[name]:g}"
        for name in wanted
        if have[name] < wanted[name]
    ]
    each = ", ".join(f"{need:g} {name}" for name, need in needs.items())
    return "; ".join(short) or f"nodes with {each} free for each of {scale.min_workers} workers"


def usable_nodes() -> list[dict[str, float]]:
    """Resources of the nodes that are there to stay, not of those with notice to go."""
    going = cluster_state.get_draining_nodes() or {}
    return [
        node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in going
    ]


class Scaling(ElasticScalingPolicy):  # type: ignore[misc]  # Ray has no types
    """As many workers as there is room for, of those that divide the global batch."""

    def __init__(self, config: ScalingConfig, experiment: Experiment, tell: Tell) -> None:
        super().__init__(config)
        self._experiment, self._tell = experiment, tell
        self._waiting_since: float | None = None

    def make_decision_for_non_running_worker_group(self) -> Any:
        """How many workers to start, now or later.

        Raises:
            MissingResourcesError: it has been too long.
        """
        decision = super().make_decision_for_non_running_worker_group()
        now, patience = time.monotonic(), self._experiment.scale.wait_timeout
        if self._waiting_since is None:
            self._waiting_since = now
            if not isinstance(decision, ResizeDecision):
                self._tell(f"waiting up to {patience:g} s for {self._missing()}")
        if now - self._waiting_since > patience:
            raise MissingResourcesError(
                f"no workers after scale.wait_timeout ({patience:g} s): the run needs "
                f"{self._missing()}; add nodes, or lower scale.workers"
            )
        if not isinstance(decision, ResizeDecision):
            time.sleep(PAUSE)
        return decision

    def make_decision_for_running_worker_group(self, *args: Any, **options: Any) -> Any:
        """Whether to start again with another number of workers."""
        self._waiting_since = None
        return super().make_decision_for_running_worker_group(*args, **options)

    def _count_possible_workers(self, _: Any) -> int:
        # Not what the coordinator has reserved: it counts nodes that are about to go.
        return chosen_workers(self._experiment, usable_nodes(), self._needs)

    def _missing(self) -> str:
        return missing(self._experiment, usable_nodes(), self._needs)

    @property
    def _needs(self) -> dict[str, float]:
        return dict(self.scaling_config._resources_per_worker_not_none)


class Failures(DefaultFailurePolicy):  # type: ignore[misc]
    """scale.max_failures failures, and any number of nodes that are taken away with notice."""

    def __init__(self, config: Any, tell: Tell) -> None:
        super().__init__(config)
        self._tell = tell

    def make_decision(self, training_failed_error: Exception) -> Any:
        """Whether to start the workers again; says so."""
        error = training_failed_error
        if isinstance(error, PreemptionError) or preempted(error):
            self._tell("a node is being taken away: starting again on the others")
            return FailureDecision.RETRY
        decision = super().make_decision(training_failed_error=error)
        if decision == FailureDecision.RETRY and isinstance(error, WorkerGroupError):
            left = self.failure_config.max_failures - self._worker_group_failures
            self._tell(
                f"{_first_failure(error)}: starting again from the last checkpoint "
                f"({left} more failures allowed)"
            )
        return decision


def preempted(error: Exception) -> bool:
    """Whether workers gave up because a node is to go, after they had saved their state."""
    failures = getattr(error, "worker_failures", {}).values()
    return any(isinstance(_own(failure), PreemptedError) for failure in failures)


def _own(failure: BaseException) -> BaseException:
    """What a worker raised, beneath Ray Train's wrapper."""
    return root_cause(getattr(failure, "_base_exc", failure))


def _first_failure(error: WorkerGroupError) -> str:
    worker, failure = next(iter(error.worker_failures.items()))
    own = _own(failure)
    return f"worker {worker} " + (
        "died" if isinstance(own, RayActorError) else f"failed ({one_line(own)})"
    )


class Trainer(ray.train.torch.TorchTrainer):  # type: ignore[misc]
    """Ray's TorchTrainer with the policies of this module.

    Args:
        experiment: whose scale they follow.
        tell: takes what they have to say to the person; called in the controller.
        options: TorchTrainer's.
    """

    def __init__(self, *args: Any, experiment: Experiment, tell: Tell, **options: Any) -> None:
        super().__init__(*args, **options)
        self._experiment, self._tell = experiment, tell

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        options["scaling_policy"] = Scaling(self.scaling_config, self._experiment, self._tell)
        options["failure_policy"] = Failures(self.run_config.failure_config, self._tell)
        return super()._initialize_and_run_controller(**options)
