"""Ports of this machine: which are free, who holds the others, and waiting for one to answer."""

import socket
from collections.abc import Iterator, Mapping

import psutil

LOOPBACK = "127.0.0.1"


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind((LOOPBACK, 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def check_free(ports: Mapping[str, int]) -> None:
    """Refuse ports that are in use.

    Args:
        ports: by what they are for, in words that a person can act on.

    Raises:
        OSError: naming each port in use, what it was to be for, and who holds it.
    """
    taken = [f"{port} ({name}), by {_holder(port)}" for name, port in ports.items() if _used(port)]
    if taken:
        raise OSError(f"ports in use: {'; '.join(taken)}; stop that, or choose others")


def answers(port: int) -> Iterator[bool]:
    """Whether something accepts connections at a port of this machine; ask again and again."""
    while True:
        try:
            with socket.create_connection((LOOPBACK, port), timeout=1):
                yield True
        except OSError:
            yield False


def _used(port: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server just ended is no user
        try:
            one.bind((LOOPBACK, port))
        except OSError:
            return True
    return False


def _holder(port: int) -> str:
    """Name and pid of the process that listens, where the system tells."""
    try:
        for held in psutil.net_connections("tcp"):
            if held.laddr and held.laddr.port == port and held.status == psutil.CONN_LISTEN:
                return f"{psutil.Process(held.pid).name()} (pid {held.pid})"
    except (psutil.Error, TypeError):
        pass
    return "another process"
