"""TCP ports of this machine: those of a local cluster, and who uses them."""

import socket
from collections.abc import Mapping

import psutil

LOOPBACK = "127.0.0.1"


class Ports:
    """The ports of a local cluster: 20 consecutive numbers."""

    def __init__(self, first: int) -> None:
        self.dashboard = first  # Ray's dashboard, Jobs API and State API
        self.mlflow = first + 1
        self.gcs = first + 2  # the head's control store, which nodes and drivers connect to
        self.ray_client = first + 3
        self.autoscaler_metrics = first + 4
        self.dashboard_metrics = first + 5
        self.postgres = first + 6  # database behind MLflow, if it is not SQLite
        self.s3 = first + 10  # first of the S3 server's ports

    def head(self) -> dict[str, int]:
        """All ports of the Ray head, by purpose."""
        return {
            "Ray dashboard": self.dashboard,
            "Ray GCS": self.gcs,
            "Ray client": self.ray_client,
            "Ray monitor": self.autoscaler_metrics,
            "Ray metrics": self.dashboard_metrics,
        }


def check_free(ports: Mapping[str, int]) -> None:
    """Refuse ports that are in use.

    Args:
        ports: The port numbers, by purpose as the error names it.

    Raises:
        OSError: Some are in use; names each port, its purpose and the process that uses it.
    """
    taken = [f"{port} ({name}), by {_user(port)}" for name, port in ports.items() if _used(port)]
    if taken:
        raise OSError(f"ports in use: {'; '.join(taken)}; stop that process, or choose other ports")


def _used(port: int) -> bool:
    with socket.socket() as probe:
        # Without this, the port of a server that has just ended would count as used.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return True
    return False


def _user(port: int) -> str:
    """Name and pid of the process that listens on a port, if the system tells them."""
    try:
        for listener in psutil.net_connections("tcp"):
            address = listener.laddr
            if address and address.port == port and listener.status == psutil.CONN_LISTEN:
                return f"{psutil.Process(listener.pid).name()} (pid {listener.pid})"
    except (psutil.Error, TypeError):
        pass
    return "another process"
