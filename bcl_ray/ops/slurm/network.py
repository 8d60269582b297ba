"""By which addresses, interfaces and ports the nodes of an allocation reach each other."""

import contextlib
import socket

import psutil

from bcl_ray.ops.slurm.part import StartError

PATIENCE = 1.0  # seconds for a connection


def own_address(interface: str | None, peer: str) -> str:
    """This node's address on an interface; else the one by which it reaches a peer.

    A node's own name may lead to a loopback address, such as 127.0.1.1 on Debian.
    """
    if interface is None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((peer, 9))  # sends nothing
            return str(probe.getsockname()[0])
    found = psutil.net_if_addrs()
    for address in found.get(interface, []):
        if address.family == socket.AF_INET:
            return str(address.address)
    raise StartError(
        f"slurm.interface ({interface}) has no IPv4 address here; there are: {', '.join(found)}"
    )


def interface_of(address: str) -> str:
    """The interface that has an address.

    Raises:
        StartError: none has it.
    """
    for name, found in psutil.net_if_addrs().items():
        if any(each.address == address for each in found):
            return str(name)
    raise StartError(f"no interface has the address {address}")


def free_ports(address: str) -> list[int]:
    """Two ports of an address that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for one in sockets:
            one.bind((address, 0))
        return [int(one.getsockname()[1]) for one in sockets]


def answers(address: str) -> bool:
    """Whether something listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()
    except OSError:
        return False
    return True
