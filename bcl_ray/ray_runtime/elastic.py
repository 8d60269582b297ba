"""How many workers a run gets, and how long it waits for their nodes.

Ray Train's own policy starts any number of workers, even one that does not divide the global
batch. It takes all of the cluster's CPUs, so that none are left for data tasks, and it waits for
nodes without a limit. `ScalingPolicy` replaces it in Ray Train's controller.

In this module `nodes` are the resources of each node, and `per_worker` those of one worker.
"""

import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

import ray
from ray.train.v2.api.config import ScalingConfig

from bcl_ray.experiment.options import Experiment
from bcl_ray.machine.amounts import parts_in
from bcl_ray.ray_runtime.capacity import Amounts, worker_capacity
from bcl_ray.ray_runtime.internals import ElasticScalingPolicy, NoopDecision, time_monotonic
from bcl_ray.ray_runtime.internals import state as cluster_state

RELEASE_SECONDS = 10.0  # in which the resources of ended workers become free
GROWTH_INTERVAL = 60.0  # seconds of training, at least, before a restart with more workers


class MissingResourcesError(RuntimeError):
    """The cluster had too few resources for the fewest workers during scale.wait_timeout."""


def worker_count(experiment: Experiment, nodes: Iterable[Amounts], per_worker: Amounts) -> int:
    """The largest of experiment.worker_counts that fits on nodes, with CPUs left for data tasks.

    It is 0 if not even the smallest number fits.
    """
    nodes, scale = list(nodes), experiment.scale
    cpus = sum(node.get("CPU", 0.0) for node in nodes) - experiment.min_data_cpus
    by_cpus = parts_in(cpus, scale.cpus_per_worker)
    capacity = min(worker_capacity(nodes, per_worker), by_cpus)
    return max((count for count in experiment.worker_counts if count <= capacity), default=0)


def shortage(experiment: Experiment, nodes: Iterable[Amounts], per_worker: Amounts) -> str:
    """What the smallest number of workers needs and nodes lack: "4 CPU, and there are 2"."""
    nodes, scale = list(nodes), experiment.scale
    needed = {name: scale.min_workers * amount for name, amount in per_worker.items()}
    needed["CPU"] += experiment.min_data_cpus
    present = {name: sum(node.get(name, 0.0) for node in nodes) for name in needed}
    parts = [
        f"{needed[name]:g} {name}, and there {'is' if present[name] == 1 else 'are'} "
        f"{present[name]:g}"
        for name in needed
        if present[name] < needed[name]
    ]
    # Nodes that have enough in total may be too small for a worker, which is not split.
    each = ", ".join(f"{amount:g} {name}" for name, amount in per_worker.items())
    return "; ".join(parts) or f"nodes with {each} free for each of {scale.min_workers} workers"


def cluster_shortage(experiment: Experiment, per_worker: Amounts) -> str:
    """What the smallest number of workers needs and the cluster lacks now; empty if nothing."""
    nodes = usable_nodes().values()
    if worker_count(experiment, nodes, per_worker):
        return ""
    return shortage(experiment, nodes, per_worker)


def usable_nodes() -> dict[str, dict[str, float]]:
    """Resources of each node by its id, without nodes that are about to be taken away."""
    draining = cluster_state.get_draining_nodes() or {}
    alive = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    return {node: resources for node, resources in alive.items() if node not in draining}


def free_resources(node_ids: Collection[str]) -> list[dict[str, float]]:
    """Resources of nodes that nothing uses now."""
    free = cluster_state.available_resources_per_node()
    return [free[node_id] for node_id in node_ids if node_id in free]


class ScalingPolicy(ElasticScalingPolicy):
    """Starts as many workers as fit, among the numbers that divide the global batch.

    Args:
        config: Ray Train's.
        experiment: Its `scale` options are followed.
        notify: Shows a message to the user.
        request_restart: Asks workers to save their state and to end.
    """

    def __init__(
        self,
        config: ScalingConfig,
        experiment: Experiment,
        notify: Callable[[str], None],
        request_restart: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._experiment, self._notify = experiment, notify
        self._request_restart = request_restart
        self._waiting_since: float | None = None
        self._known_nodes: set[str] = set()  # ids of the usable nodes at the last decision

    def make_decision_for_non_running_worker_group(self) -> Any:
        """Decide how many workers start now, or that they start later.

        Raises:
            MissingResourcesError: scale.wait_timeout has passed.
        """
        timeout, is_first = self._experiment.scale.wait_timeout, self._waiting_since is None
        if self._waiting_since is None:
            self._waiting_since = time.monotonic()
        waited = time.monotonic() - self._waiting_since
        nodes = usable_nodes()
        # Raise even if workers would fit: they may have waited in Ray's queue all the time.
        if waited > timeout:
            needed = shortage(self._experiment, nodes.values(), self._per_worker)
            raise MissingResourcesError(
                f"no workers after scale.wait_timeout ({timeout:g} s): the run needs {needed}; "
                "add nodes, or lower scale.workers"
            )
        fit_in_all = worker_count(self._experiment, nodes.values(), self._per_worker)
        released = waited > RELEASE_SECONDS
        if workers := self._startable_workers(fit_in_all, nodes, released=released):
            self._known_nodes = set(nodes)
            return self._get_resize_decision(workers)
        if is_first and not fit_in_all:
            needed = shortage(self._experiment, nodes.values(), self._per_worker)
            self._notify(f"waiting up to {timeout:g} s for {needed}")
        return NoopDecision()  # `Controller` pauses before it asks again

    def _startable_workers(self, fit_in_all: int, nodes: Collection[str], *, released: bool) -> int:
        """How many workers can start now; 0 to wait for resources that are still in use.

        Args:
            fit_in_all: How many fit on all usable nodes.
            nodes: Ids of these nodes.
            released: Whether ended workers have had time to release their resources.
        """
        fit_in_free = worker_count(self._experiment, free_resources(nodes), self._per_worker)
        fewest = self._experiment.worker_counts[0]
        if fit_in_all in (0, fewest) or fit_in_free >= fit_in_all:
            return fit_in_all
        # Some resources are in use: by workers that have just ended, or by other programs. If they
        # do not become free, as many workers are started as fit beside those; or, if too few fit,
        # the fewest, which wait in Ray's queue.
        return max(fit_in_free, fewest) if released else 0

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> Any:
        """Ask for a restart if new nodes allow more workers; the group is never resized directly.

        Workers have to save their state before they end.
        """
        del worker_group_status  # part of Ray's signature
        self._waiting_since = None
        scale = self._experiment.scale
        may_grow = time_monotonic() - worker_group_state.start_time > GROWTH_INTERVAL
        if may_grow and scale.min_workers < scale.max_workers:
            nodes = usable_nodes()
            workers = worker_count(self._experiment, nodes.values(), self._per_worker)
            if set(nodes) - self._known_nodes and workers > worker_group_state.num_workers:
                self._known_nodes = set(nodes)
                self._request_restart()
        return NoopDecision()

    def _send_resource_request(self) -> None:
        """Request nothing: the driver has requested nodes for workers and data tasks."""

    @property
    def _per_worker(self) -> dict[str, float]:
        """Resources of one worker."""
        return dict(self.scaling_config._resources_per_worker_not_none)
