"""What a cluster has room for: how many workers fit on its nodes, and whether they get GPUs."""

from collections.abc import Iterable, Mapping

from bcl_ray.experiment.options import Experiment
from bcl_ray.machine.amounts import parts_in
from bcl_ray.machine.errors import UserError
from bcl_ray.ray_runtime import node_groups
from bcl_ray.ray_runtime.connection import Resources, local_path_message
from bcl_ray.storage.paths import is_local

Amounts = Mapping[str, float]
"""Of resources by Ray's name, such as CPU and GPU."""


def worker_capacity(nodes: Iterable[Amounts], per_worker: Amounts) -> int:
    """How many workers fit on nodes; a worker cannot be split between nodes.

    Args:
        nodes: Resources of each node.
        per_worker: Those of one worker.
    """
    return sum(
        min(parts_in(node.get(name, 0.0), need) for name, need in per_worker.items())
        for node in nodes
    )


def uses_gpus(experiment: Experiment, resources: Resources) -> bool:
    """Whether each worker gets a GPU.

    Raises:
        ValueError: There are fewer GPUs than workers, though scale.device requires GPUs or there
            are some: workers would wait without end, or silently train on CPUs. Or it is not
            known whether the cluster can have GPUs.
    """
    device, workers = experiment.scale.device, experiment.scale.min_workers
    if device == "cpu" or (device == "auto" and resources.gpus == 0):
        return False
    if device == "auto" and not resources.limited:
        raise UserError(
            "scale.device is auto, and it is not known whether this growing cluster can have "
            f"GPUs: set scale.device=cuda or scale.device=cpu, or {node_groups.VARIABLE} on its "
            "head ([] if it does not grow)"
        )
    if resources.gpus < workers * experiment.scale.gpus_per_worker:
        has = "can have" if resources.grows else "has"
        raise UserError(
            f"scale.workers ({workers}) is more than the number of GPUs that the cluster {has} "
            f"({resources.gpus:g}): lower it, or set scale.device=cpu"
        )
    return True


def check_cluster(experiment: Experiment, resources: Resources) -> None:
    """Refuse workers that fit on no node, and local paths if there are several nodes.

    Raises:
        ValueError: The option, and what to do.
    """
    scale = experiment.scale
    capacity = worker_capacity(resources.nodes, {"CPU": scale.cpus_per_worker})
    if capacity < scale.min_workers and resources.limited:
        raise UserError(
            f"the cluster's nodes have room for {capacity} workers of scale.cpus_per_worker "
            f"({scale.cpus_per_worker:g}), scale.workers is {scale.min_workers}: lower one of them"
        )
    paths = {"data.path": experiment.data.path, "tracking.runs": experiment.tracking.runs}
    if experiment.model.weights is not None:
        paths["model.weights"] = experiment.model.weights
    for option, path in paths.items():
        if resources.several_nodes and is_local(path) and not path.startswith("file://"):
            raise UserError(local_path_message(f"{option} ({path})", resources))
