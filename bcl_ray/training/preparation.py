"""What a run needs before its workers start: resources, object storage and nodes.

In this module `per_worker` are the resources of one worker.
"""

import math
from collections.abc import Callable, Mapping

from bcl_ray.data.shards import Manifest
from bcl_ray.experiment.options import Experiment
from bcl_ray.machine.amounts import TOLERANCE
from bcl_ray.ray_runtime import access
from bcl_ray.ray_runtime.autoscaler import Demand, wait_for_nodes
from bcl_ray.ray_runtime.capacity import check_cluster, uses_gpus
from bcl_ray.ray_runtime.connection import Resources
from bcl_ray.ray_runtime.elastic import cluster_shortage
from bcl_ray.ray_runtime.node_groups import MARKET
from bcl_ray.ray_runtime.stopping import Stopped, StopRequest
from bcl_ray.runs.budget import budget, check_store
from bcl_ray.training.outcome import MissingNodesError


def check_resources(experiment: Experiment, manifest: Manifest, cluster: Resources) -> None:
    """Refuse a run that the cluster cannot hold; `preflight` does not know the cluster.

    Raises:
        ValueError: The option, and what to do.
    """
    if cluster.limited:
        run_budget = budget(experiment, manifest, cluster.cpus)
        if not cluster.grows:
            check_store(run_budget, cluster.store_bytes)
    check_cluster(experiment, cluster)


def worker_resources(experiment: Experiment, cluster: Resources) -> dict[str, float]:
    """Resources of one worker by Ray's names.

    Raises:
        ValueError: As `uses_gpus`.
    """
    gpu = {"GPU": experiment.scale.gpus_per_worker} if uses_gpus(experiment, cluster) else {}
    return {"CPU": experiment.scale.cpus_per_worker, **gpu}


def rank_zero_labels(max_workers: int, cluster: Resources) -> list[dict[str, str]] | None:
    """Labels that each worker's node must have: rank 0, which writes checkpoints, stays.

    Returns:
        Labels for each worker, or None if no node is marked as never taken away.
    """
    if not cluster.has_steady_nodes:
        return None
    # Ray Train numbers workers node by node, beginning with the first of its placement group.
    return [{MARKET: "steady"}, *({} for _ in range(max_workers - 1))]


def check_storage(experiment: Experiment, per_worker: Mapping[str, float]) -> None:
    """Make sure that the driver and all present nodes can use the object store.

    Raises:
        ValueError: As `access.check_everywhere`.
    """
    locations = {
        "data.path": (experiment.data.path, {"list", "read"}),
        "tracking.runs": (experiment.tracking.runs, {"list", "read", "write", "delete"}),
    }
    if experiment.model.weights_file is not None:
        locations["model.weights"] = (experiment.model.weights_file, {"read"})
    access.check_everywhere(locations, per_worker=per_worker)


def request_nodes(
    demand: Demand,
    experiment: Experiment,
    per_worker: Mapping[str, float],
    cluster: Resources,
    *,
    workers: int,
    data: bool,
) -> None:
    """Request nodes for workers, and with `data` those for data tasks."""
    scale = experiment.scale
    tasks = math.ceil(experiment.min_data_cpus / scale.cpus_per_data_task - TOLERANCE)
    of_tasks = [{"CPU": scale.cpus_per_data_task}] * tasks if data else []
    bundles = [per_worker] * workers + of_tasks
    labels = rank_zero_labels(workers, cluster) or []
    demand.request(bundles, labels + [{}] * (len(bundles) - len(labels)))


def await_nodes(
    experiment: Experiment,
    per_worker: Mapping[str, float],
    *,
    notify: Callable[[str], None],
    stop_request: StopRequest,
) -> None:
    """Wait for the nodes of the smallest number of workers and of data tasks.

    Raises:
        MissingNodesError: They did not come within scale.wait_timeout.
        Stopped: A stop was requested meanwhile.
    """
    timeout = experiment.scale.wait_timeout
    complete = wait_for_nodes(
        lambda: cluster_shortage(experiment, per_worker),
        timeout,
        notify,
        lambda: stop_request.reason,
    )
    if stop_request.reason is not None:
        raise Stopped("stopped while waiting for nodes: nothing was begun", stop_request.signum)
    if not complete:
        raise MissingNodesError(
            f"the nodes did not come within scale.wait_timeout ({timeout:g} s): the run needs "
            f"{cluster_shortage(experiment, per_worker)}; see `ray status` on the head"
        )
