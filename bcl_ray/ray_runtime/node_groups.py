"""How far a cluster may grow: groups of nodes, as the file that describes the cluster has them.

Open-source Ray tells a driver nothing of an autoscaler's limits. Who writes the cluster's files
knows them, and leaves them in an environment variable of the head, where drivers find it.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

from bcl_ray.machine.errors import UserError

VARIABLE = "BCL_RAY_MAX_NODES"
MARKET = "bcl-ray.io/market"  # a node's label: steady, or spot where it may be taken away


@dataclass(frozen=True)
class NodeGroup:
    """Nodes of one kind.

    Args:
        nodes: the most that there can be.
        resources: of each of them, as Ray names them: CPU, GPU.
        labels: that Ray gives each of them.
    """

    nodes: int
    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)


def to_text(groups: Iterable[NodeGroup]) -> str:
    """Groups as the variable has them: JSON, in one line."""
    return json.dumps([asdict(group) for group in groups])


def from_environment() -> tuple[NodeGroup, ...] | None:
    """Groups of the cluster that this process runs in, none if it does not grow.

    Returns:
        None where nobody has said.

    Raises:
        ValueError: the variable holds something else.
    """
    text = os.environ.get(VARIABLE)
    if not text:
        return None
    try:
        return tuple(_checked(NodeGroup(**group)) for group in json.loads(text))
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{VARIABLE} ({text}) must be groups of nodes as JSON, such as "
            f"{to_text([NodeGroup(2, {'CPU': 7, 'GPU': 1})])}: {error}; correct it where the head "
            "is started, or unset it"
        ) from None


def _checked(group: NodeGroup) -> NodeGroup:
    amounts = [group.nodes, *group.resources.values()]
    if not all(isinstance(amount, int | float) and amount >= 0 for amount in amounts):
        raise UserError("nodes and resources must be numbers of at least 0")
    group.labels.items()
    return group
