"""The Ray nodes of one machine: their commands, their environment, and what the head says of them.

A node is what a machine is in a real cluster: a raylet with workers, CPUs, an object store and a
temporary folder of its own. CPUs are what a node says that it has, not what the machine has.
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bcl_ray.ops.local.ports import LOOPBACK
from bcl_ray.ops.local.processes import BIN

RAY = (sys.executable, "-m", "bcl_ray.ops.local.node")
GROUP = "bcl-ray.io/group"  # a node's label: data or train
CALLERS = ("RAY_", "AWS_", "MLFLOW_", "BCL_RAY_", "PYTHONPATH", "VIRTUAL_ENV")
SECONDS_WITHOUT_HEAD = "300"  # before a node gives up; 60 by default, and a head starts slowly


@dataclass(frozen=True)
class Ports:
    """A cluster's ports, in one row."""

    first: int

    @property
    def dashboard(self) -> int:
        """Of the dashboard: jobs and the State API too."""
        return self.first

    @property
    def mlflow(self) -> int:
        """Of the MLflow server."""
        return self.first + 1

    @property
    def gcs(self) -> int:
        """Of the head's control store, which nodes and drivers connect to."""
        return self.first + 2

    @property
    def s3(self) -> int:
        """The first of the S3 server's."""
        return self.first + 10

    @property
    def postgres(self) -> int:
        """Of the database behind MLflow, where it is not SQLite."""
        return self.first + 6

    def head(self) -> dict[str, int]:
        """All that the head listens on, by what it is for."""
        names = ("Ray client", "Ray monitor", "Ray metrics")
        more = {name: self.first + offset for offset, name in enumerate(names, 3)}
        return {"Ray dashboard": self.dashboard, "Ray GCS": self.gcs, **more}


def common_environment(token: Path) -> dict[str, str]:
    """What nodes, drivers and clients of the cluster have in common."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else Ray takes 127.0.0.1 for another address
        "RAY_gcs_rpc_server_reconnect_timeout_s": SECONDS_WITHOUT_HEAD,
        "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
    }


def machine_environment(keep: tuple[str, ...] = ()) -> dict[str, str]:
    """This process's environment, less what is about other clusters, and our Python first.

    Args:
        keep: prefixes of what stays all the same.
    """
    drop = tuple(prefix for prefix in CALLERS if prefix not in keep)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(drop)}
    # A node's own folder is where its modules are looked for first; it has none.
    path = os.pathsep.join([str(BIN), os.environ.get("PATH", os.defpath)])
    return {**kept, "PATH": path, "RAY_USAGE_STATS_ENABLED": "0"}


def head_environment(ports: Ports, state: Path) -> dict[str, str]:
    """What only the head needs: its state outlives it, and its ports are its own."""
    return {
        "RAY_gcs_storage": "rocksdb",
        "RAY_gcs_storage_path": str(state),
        "RAY_health_check_period_ms": "1000",  # a dead node is missed after 5 s, not 15
        # Of jobs that are sent by other means than ours: time for a last checkpoint.
        "RAY_JOB_STOP_SIGNAL": "SIGINT",
        "RAY_JOB_STOP_WAIT_TIME_S": "90",
        "AUTOSCALER_METRIC_PORT": str(ports.head()["Ray monitor"]),
        "DASHBOARD_METRIC_PORT": str(ports.head()["Ray metrics"]),
    }


def head_command(ports: Ports, temporary: Path) -> list[str]:
    """`ray start` of the head, which takes no work."""
    return [
        *_start("head", temporary, store_mib=128),
        "--head",
        *("--port", str(ports.gcs)),
        *("--num-cpus", "0"),
        *("--dashboard-host", LOOPBACK, "--dashboard-port", str(ports.dashboard)),
        *("--ray-client-server-port", str(ports.head()["Ray client"])),
    ]


def worker_command(
    name: str, group: str, *, cpus: int, store_mib: int, ports: Ports, temporary: Path
) -> list[str]:
    """`ray start` of a node that works.

    Args:
        group: data or train; its label, and the name of a resource of which it has `cpus`.
        cpus: CPUs that it says it has.
        store_mib: its object store, MiB.
    """
    return [
        *_start(name, temporary, store_mib),
        *("--address", f"{LOOPBACK}:{ports.gcs}"),
        *("--num-cpus", str(cpus)),
        *("--resources", json.dumps({group: cpus})),
        *("--labels", f"{GROUP}={group}"),
    ]


def _start(name: str, temporary: Path, store_mib: int) -> list[str]:
    return [
        *RAY,
        "start",
        "--block",
        "--disable-usage-stats",
        *("--include-log-monitor", "false"),  # one a machine is enough, and our drivers read none
        *("--node-name", name),
        *("--node-ip-address", LOOPBACK),
        *("--num-gpus", "0"),
        *("--object-store-memory", str(store_mib * 2**20)),
        *("--temp-dir", str(temporary)),
        *("--min-worker-port", "0", "--max-worker-port", "0"),  # else two nodes choose the same
        *("--dashboard-agent-listen-port", "0"),  # likewise, and jobs need that of the head
    ]


def drain_command(node_id: str, notice_seconds: int, ports: Ports) -> list[str]:
    """What a cloud's notice of a machine's end becomes: Ray Train asks for a last checkpoint."""
    return [
        *RAY,
        "drain-node",
        *("--address", f"{LOOPBACK}:{ports.gcs}"),
        *("--node-id", node_id),
        *("--reason", "DRAIN_NODE_REASON_PREEMPTION"),
        *("--reason-message", f"this machine ends in {notice_seconds} s"),
        *("--deadline-remaining-seconds", str(notice_seconds)),
    ]


def listed(ports: Ports, token: Path, timeout: float = 10) -> list[Mapping[str, Any]]:
    """The nodes that the head knows, dead ones too, as its State API tells them.

    Raises:
        OSError: no head answers.
    """
    request = urllib.request.Request(
        f"http://{LOOPBACK}:{ports.dashboard}/api/v0/nodes?detail=1&limit=1000",
        headers={"Authorization": f"Bearer {token.read_text()}"},
    )
    with urllib.request.urlopen(request, timeout=timeout) as answer:  # noqa: S310
        found: list[Mapping[str, Any]] = json.load(answer)["data"]["result"]["result"]
    return found


def node_id(name: str, since: float, ports: Ports, token: Path) -> str | None:
    """Ray's name of the node that is alive under ours; None where there is none.

    Args:
        since: when its process was started, seconds since the epoch: for some seconds the head
            takes a node that was killed for alive.
    """
    try:
        nodes = listed(ports, token)
    except (OSError, ValueError, KeyError, TypeError):  # a head that is starting says odd things
        return None
    return next(
        (
            str(node["node_id"])
            for node in nodes
            if node["node_name"] == name and node["state"] == "ALIVE"
            if node["start_time_ms"] / 1000 >= since - 1  # clocks are read in different ways
        ),
        None,
    )


def registered(name: str, since: float, ports: Ports, token: Path) -> Iterator[bool]:
    """Whether a node has joined; ask again and again."""
    while True:
        yield node_id(name, since, ports, token) is not None
        time.sleep(0.2)
