"""How far a rendered cluster may grow, where its drivers find it."""

from bcl_ray.ops.manifests.description import ClusterDescription
from bcl_ray.ray_runtime.node_groups import MARKET, VARIABLE, NodeGroup, to_text


def most_nodes(description: ClusterDescription, *, fixed: bool = False) -> dict[str, str]:
    """The environment variable of the head that has it; the head itself takes no work.

    Args:
        fixed: the cluster does not grow, which has to be said too: KubeRay lets every head of its
            own look as if it had an autoscaler.
    """
    if fixed:
        return {VARIABLE: to_text(())}
    data, gpu = description.data, description.gpu
    groups = (
        (data.max_nodes, data, 0, data.spot),
        (gpu.steady_nodes, gpu, gpu.gpus, False),
        (gpu.spot_nodes, gpu, gpu.gpus, True),
    )
    found = [
        NodeGroup(
            most,
            {"CPU": group.cpus, **({"GPU": gpus} if gpus else {})},
            {MARKET: "spot" if spot else "steady"},
        )
        for most, group, gpus, spot in groups
        if most
    ]
    return {VARIABLE: to_text(found)}
