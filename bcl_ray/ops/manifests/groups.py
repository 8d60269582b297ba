"""The groups of worker nodes of a description, and how far they let the cluster grow.

Training nodes (section `gpu`) form two groups: `steady`, on demand, and `spot`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from bcl_ray.ops.manifests.description import ClusterDescription
from bcl_ray.ops.manifests.sections import NodeSize
from bcl_ray.ray_runtime.node_groups import MARKET, NodeGroup, to_text


@dataclass(frozen=True)
class WorkerGroup:
    """Worker nodes of one kind, all on spot capacity or all on demand."""

    name: str
    size: NodeSize
    min_nodes: int
    max_nodes: int
    spot: bool
    gpus: int = 0

    @property
    def market(self) -> str:
        """Value of the nodes' label MARKET, by which a run places rank 0 on a node that stays."""
        return "spot" if self.spot else "steady"

    @property
    def resources(self) -> dict[str, float]:
        """Resources of one node by Ray's names."""
        return {"CPU": self.size.cpus, **({"GPU": self.gpus} if self.gpus else {})}


def worker_groups(description: ClusterDescription) -> list[WorkerGroup]:
    """The groups that can have nodes, without the head."""
    data, gpu = description.data, description.gpu
    groups = [
        WorkerGroup("data", data, data.min_nodes, data.max_nodes, data.spot),
        WorkerGroup("steady", gpu, 0, gpu.steady_nodes, spot=False, gpus=gpu.gpus),
        WorkerGroup("spot", gpu, 0, gpu.spot_nodes, spot=True, gpus=gpu.gpus),
    ]
    return [group for group in groups if group.max_nodes]


def max_nodes_variable(groups: Iterable[WorkerGroup]) -> str:
    """The value of BCL_RAY_MAX_NODES, by which drivers know how far the cluster can grow."""
    return to_text(
        NodeGroup(group.max_nodes, group.resources, {MARKET: group.market}) for group in groups
    )
