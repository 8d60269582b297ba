"""A node's part in an allocation, and what may go wrong with it."""

from dataclasses import dataclass
from pathlib import Path


class StartError(RuntimeError):
    """Ray did not start on this node, or not on all of them."""


class LostNodeError(RuntimeError):
    """Ray has ended on this node or another, before the driver did."""


@dataclass(frozen=True)
class Allocation:
    """This node's part in the allocation.

    Args:
        folder: through which nodes tell each other things.
        first: whether it is the first of them.
        nodes: how many there are.
        peer: name of the last one.
        gpus: of each.
        wait_seconds: longest wait for all nodes to join.
        interface: of the network between nodes; none: the one that leads to the others.
        command: the driver.
    """

    folder: Path
    first: bool
    nodes: int
    peer: str
    gpus: int
    wait_seconds: float
    interface: str | None
    command: tuple[str, ...]
