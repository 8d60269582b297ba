"""How many suppliers a run has, which workers each one serves, and where its data tasks run.

One supplier per node with workers is best: its data tasks run on that node, and views do not cross
the network, except for those that nodes without workers make. But Ray divides each node's free
CPUs by the number of executions, without the remainder. Where that would leave too many CPUs idle,
a supplier serves several nodes.

In this module `free` are the CPUs of each node that workers leave, by the node's id.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray

from bcl_ray.ray_runtime.elastic import usable_nodes
from bcl_ray.training.deliveries import Assignment
from bcl_ray.training.supplier import start_supplier

USED_SHARE = 0.9  # of the free CPUs, the least that all suppliers get together


def used_share(free: Sequence[float], suppliers: int) -> float:
    """Share of nodes' free whole CPUs that Ray gives to a number of executions, in [0, 1]."""
    whole = sum(math.floor(cpus) for cpus in free)
    used = sum(cpus // suppliers * suppliers for cpus in free)
    return used / whole if whole else 1.0


def grouped_nodes(nodes: Sequence[str], free: Mapping[str, float]) -> list[Sequence[str]]:
    """Group the nodes of workers; each group has a supplier.

    Args:
        nodes: Ids of the nodes that have workers, at least one.
        free: As described above, of all nodes of the cluster.

    Returns:
        Groups of one size, which is the smallest that uses USED_SHARE of the free CPUs; the last
        group may be smaller.
    """
    for size in range(1, len(nodes) + 1):
        number = math.ceil(len(nodes) / size)
        if used_share(list(free.values()), number) >= USED_SHARE:
            break
    return [nodes[start : start + size] for start in range(0, len(nodes), size)]


def free_cpus(node_of_rank: Sequence[str], cpus_per_worker: float) -> dict[str, float]:
    """CPUs of each usable node that the run's own workers leave."""
    return {
        node: max(0.0, resources.get("CPU", 0.0) - cpus_per_worker * node_of_rank.count(node))
        for node, resources in usable_nodes().items()
    }


def allowed_nodes(group: Sequence[str], nodes: Sequence[str]) -> dict[str, str]:
    """Labels of the nodes on which a group's data tasks run: its own, and those without workers.

    Args:
        group: Ids of the nodes that a supplier serves.
        nodes: Ids of all nodes that have workers.
    """
    others = sorted(set(nodes) - set(group))
    return {"ray.io/node-id": f"!in({','.join(others)})"} if others else {}


def start_suppliers(whole: Assignment, node_of_rank: Sequence[str]) -> list[Any]:
    """Start the suppliers of a run.

    Args:
        whole: What to deliver to all workers.
        node_of_rank: Id of each worker's node.

    Returns:
        The handle of each worker's supplier.
    """
    nodes = list(dict.fromkeys(node_of_rank))
    free = free_cpus(node_of_rank, whole.experiment.scale.cpus_per_worker)
    groups = grouped_nodes(nodes, free)
    suppliers: dict[str, Any] = {}
    for group in groups:
        ranks = [rank for rank, node in enumerate(node_of_rank) if node in group]
        supplier = start_supplier(
            replace(whole, ranks=ranks),
            node=group[0],
            share=1 / len(groups),
            nodes=allowed_nodes(group, nodes),
        )
        suppliers |= dict.fromkeys(group, supplier)
    return [suppliers[node] for node in node_of_rank]


def own_supplier(assignment: Assignment) -> Any:
    """Start a supplier on this process's node, for this process alone."""
    return start_supplier(assignment, node=ray.get_runtime_context().get_node_id())
