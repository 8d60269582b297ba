"""Addresses, network interfaces and ports of the nodes of an allocation."""

import contextlib
import socket

import psutil

from bcl_ray.ops.slurm.allocation import StartError


def own_address(interface: str | None, peer: str) -> str:
    """This node's IPv4 address.

    The node's own name would not do: it may lead to a loopback address, such as 127.0.1.1 on
    Debian.

    Args:
        interface: Network interface; None for the one by which this node reaches the peer.
        peer: Name or address of another node.

    Raises:
        StartError: The interface has no IPv4 address.
    """
    if interface is None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((peer, 9))  # sends nothing
            return str(probe.getsockname()[0])
    interfaces = psutil.net_if_addrs()
    for address in interfaces.get(interface, []):
        if address.family == socket.AF_INET:
            return str(address.address)
    raise StartError(
        f"slurm.interface ({interface}) has no IPv4 address here; there are: "
        f"{', '.join(interfaces)}"
    )


def interface_of(address: str) -> str:
    """The network interface that has an address.

    Raises:
        StartError: No interface has it.
    """
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            return str(name)
    raise StartError(f"no interface has the address {address}")


def two_free_ports(address: str) -> list[int]:
    """Two ports of an address on which nobody listens now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for probe in sockets:
            probe.bind((address, 0))
        return [int(probe.getsockname()[1]) for probe in sockets]
