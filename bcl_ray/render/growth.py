"""How far a rendered cluster may grow, where its drivers find it."""

from bcl_ray.node_groups import MARKET, VARIABLE, NodeGroup, to_text
from bcl_ray.render.description import Description


def most_nodes(description: Description) -> dict[str, str]:
    """The environment variable of the head that has it; the head itself takes no work."""
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
