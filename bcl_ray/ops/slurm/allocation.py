"""This node's view of a Slurm allocation, and the errors of its nodes."""

from dataclasses import dataclass
from pathlib import Path


class StartError(RuntimeError):
    """Ray did not start on this node, or not on all nodes."""


class LostNodeError(RuntimeError):
    """Ray ended on this or another node before the driver did."""


@dataclass(frozen=True)
class Allocation:
    """What a node knows of the allocation."""

    folder: Path
    """Folder through which the nodes exchange messages."""
    first: bool
    """Whether this is the first node."""
    nodes: int
    """Number of nodes."""
    peer: str
    """Name of the last node."""
    gpus: int
    """Number of GPUs of each node."""
    wait_seconds: float
    """Longest time to wait until all nodes have joined."""
    interface: str | None
    """Network interface between the nodes; None: the one by which this node reaches its peer."""
    command: tuple[str, ...]
    """The driver's command."""
