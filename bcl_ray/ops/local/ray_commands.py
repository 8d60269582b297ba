"""Commands and environment variables of the Ray nodes of a local cluster.

A node here is what a machine is in a real cluster: a raylet with workers, CPUs, an object store and
a temporary folder of its own. Its CPUs are the number that it declares; all nodes share the
machine's.
"""

import json
import os
import sys
from pathlib import Path

from bcl_ray.ops.local.ports import LOOPBACK, Ports
from bcl_ray.ops.local.processes import BIN

RAY = (sys.executable, "-m", "bcl_ray.ops.local.node")
GROUP = "bcl-ray.io/group"  # label of a node: data or train
# Prefixes of variables that would give nodes another cluster, or another Python than this one's.
CLUSTER_PREFIXES = ("RAY_", "AWS_", "MLFLOW_", "BCL_RAY_", "PYTHONPATH", "VIRTUAL_ENV")
# A node gives up after this time without a head; Ray's 60 s are short for a head that starts.
SECONDS_WITHOUT_HEAD = "300"


def common_environment(token_file: Path) -> dict[str, str]:
    """Variables that nodes, drivers and clients of the cluster all need."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        # Without this, Ray replaces 127.0.0.1 by the machine's outer address.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_gcs_rpc_server_reconnect_timeout_s": SECONDS_WITHOUT_HEAD,
        "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
    }


def machine_environment(keep: tuple[str, ...] = ()) -> dict[str, str]:
    """This process's environment without variables of other clusters, and with this Python first.

    Args:
        keep: Prefixes of CLUSTER_PREFIXES whose variables stay.
    """
    drop = tuple(prefix for prefix in CLUSTER_PREFIXES if prefix not in keep)
    rest = {name: value for name, value in os.environ.items() if not name.startswith(drop)}
    path = os.pathsep.join([str(BIN), os.environ.get("PATH", os.defpath)])
    return {**rest, "PATH": path, "RAY_USAGE_STATS_ENABLED": "0"}


def head_environment(ports: Ports, state: Path) -> dict[str, str]:
    """Variables of the head alone.

    Args:
        state: Folder of the head's state, which outlives the head.
    """
    return {
        "RAY_gcs_storage": "rocksdb",
        "RAY_gcs_storage_path": str(state),
        "RAY_health_check_period_ms": "1000",  # a dead node is noticed after 5 s, not 15
        # Time for a last checkpoint, for jobs that bcl-ray did not submit.
        "RAY_JOB_STOP_SIGNAL": "SIGINT",
        "RAY_JOB_STOP_WAIT_TIME_S": "90",
        "AUTOSCALER_METRIC_PORT": str(ports.autoscaler_metrics),
        "DASHBOARD_METRIC_PORT": str(ports.dashboard_metrics),
    }


def head_command(ports: Ports, temporary: Path) -> list[str]:
    """`ray start` of the head, which runs no tasks."""
    return [
        *_start_command("head", temporary, store_mib=128),
        "--head",
        *("--port", str(ports.gcs)),
        *("--num-cpus", "0"),
        *("--dashboard-host", LOOPBACK, "--dashboard-port", str(ports.dashboard)),
        *("--ray-client-server-port", str(ports.ray_client)),
    ]


def worker_command(
    name: str, group: str, *, cpus: int, store_mib: int, ports: Ports, temporary: Path
) -> list[str]:
    """`ray start` of a worker node.

    Args:
        group: data or train. The node has it as a label, and as a resource in the amount `cpus`.
        cpus: Number of CPUs that the node declares.
        store_mib: Size of its object store, in MiB.
    """
    return [
        *_start_command(name, temporary, store_mib),
        *("--address", f"{LOOPBACK}:{ports.gcs}"),
        *("--num-cpus", str(cpus)),
        *("--resources", json.dumps({group: cpus})),
        *("--labels", f"{GROUP}={group}"),
    ]


def _start_command(name: str, temporary: Path, store_mib: int) -> list[str]:
    return [
        *RAY,
        "start",
        "--block",
        "--disable-usage-stats",
        *("--include-log-monitor", "false"),  # it would send logs to drivers, which do not use them
        *("--node-name", name),
        *("--node-ip-address", LOOPBACK),
        *("--num-gpus", "0"),
        *("--object-store-memory", str(store_mib * 2**20)),
        *("--temp-dir", str(temporary)),
        # 0: any free port. With Ray's fixed ones, the nodes of one machine would collide.
        *("--min-worker-port", "0", "--max-worker-port", "0"),
        *("--dashboard-agent-listen-port", "0"),
    ]


def drain_command(node_id: str, notice_seconds: int, ports: Ports) -> list[str]:
    """`ray drain-node` with a deadline, as on a cloud's notice that it takes a machine back."""
    return [
        *RAY,
        "drain-node",
        *("--address", f"{LOOPBACK}:{ports.gcs}"),
        *("--node-id", node_id),
        *("--reason", "DRAIN_NODE_REASON_PREEMPTION"),
        *("--reason-message", f"this machine ends in {notice_seconds} s"),
        *("--deadline-remaining-seconds", str(notice_seconds)),
    ]
