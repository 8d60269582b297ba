"""How far a cluster can grow: groups of nodes, from an environment variable of its head.

Open-source Ray does not tell a driver the limits of its autoscaler. The rendered files of a
cluster contain them, and set the variable on the head, where drivers run.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

from bcl_ray.machine.errors import UserError

VARIABLE = "BCL_RAY_MAX_NODES"
MARKET = "bcl-ray.io/market"  # a node's label: steady; or spot, if the node may be taken away


@dataclass(frozen=True)
class NodeGroup:
    """Nodes of one kind."""

    nodes: int
    """The largest number of them."""
    resources: Mapping[str, float]
    """Resources of each node by Ray's names: CPU, GPU."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Ray's labels of each node."""


def to_text(groups: Iterable[NodeGroup]) -> str:
    """The variable's value: JSON in one line."""
    return json.dumps([asdict(group) for group in groups])


def from_environment() -> tuple[NodeGroup, ...] | None:
    """Groups of the cluster that this process runs in; empty if the cluster does not grow.

    Returns:
        None if the variable is not set.

    Raises:
        ValueError: The variable has an invalid value.
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
    group.labels.items()  # an AttributeError if it is no mapping
    return group
