"""A cluster that starts from its head: Ray's own autoscaler, whose nodes are processes.

Configuration and node provider are those of ray.cluster_utils.AutoscalingCluster; not its start and
end, which stop every Ray of the user on this machine.
"""

import contextlib
import json
import secrets
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FakeMultiNodeProvider,
)
from ray.cluster_utils import AutoscalingCluster

from bcl_ray.ops.local.ports import LOOPBACK, Ports
from bcl_ray.ops.local.ray_commands import RAY, common_environment, machine_environment
from bcl_ray.ops.local.ray_nodes import list_nodes

MIB = 2**20
IDLE_SECONDS = 3.0


class Autoscaled(AutoscalingCluster):
    """A head without CPUs, and types of nodes of which there are none yet.

    Args:
        folder: where Ray keeps its session; a short path.
        first: of the head's ports.
        types: `resources`, `max_workers` and `labels` of each type of node.
        v2: which autoscaler runs.
    """

    def __init__(
        self, folder: Path, first: int, types: Mapping[str, Mapping[str, Any]], *, v2: bool
    ) -> None:
        self.folder, self.v2, self.ports = folder, v2, Ports(first)
        self.token = folder / "token"
        self.address = f"{LOOPBACK}:{self.ports.gcs}"
        self._process: subprocess.Popen[bytes] | None = None
        given = {
            name: {"node_config": {}, "min_workers": 0, **options}
            for name, options in types.items()
        }
        super().__init__({"CPU": 0}, given, autoscaler_v2=v2)

    def _generate_config(
        self,
        head_resources: dict[str, float],
        worker_node_types: dict[str, Any],
        autoscaler_v2: bool = False,
        **more: Any,
    ) -> dict[str, Any]:
        """What the example.yaml beside the provider would give, which no wheel of Ray has."""
        head = {"resources": head_resources, "node_config": {}, "max_workers": 0}
        return {
            "cluster_name": "autoscaled",
            "max_workers": sum(kind["max_workers"] for kind in worker_node_types.values()),
            "upscaling_speed": 100.0,
            "idle_timeout_minutes": IDLE_SECONDS / 60,
            "provider": {
                # Not by its name, for which Ray reads the file that is missing.
                "type": "external",
                "module": f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__name__}",
                "gcs_address": self.address,
                "launch_multiple": True,
                "use_node_id_as_ip": True,  # version 1 knows nodes by it, and ours are one machine
                "head_node_id": FAKE_HEAD_NODE_ID,
            },
            "auth": {},
            "head_node_type": "ray.head.default",
            "available_node_types": {**worker_node_types, "ray.head.default": head},
            "head_node": {},
            "worker_nodes": {},
            "file_mounts": {},
            "cluster_synced_files": [],
            "file_mounts_sync_continuously": False,
            "rsync_exclude": [],
            "rsync_filter": [],
            "initialization_commands": [],
            "setup_commands": [],
            "head_setup_commands": [],
            "worker_setup_commands": [],
            "head_start_ray_commands": [],
            "worker_start_ray_commands": [],
            **more,
        }

    def environment(self) -> dict[str, str]:
        """What nodes and drivers have in common."""
        return {**common_environment(self.token), "RAY_ADDRESS": self.address}

    def start(self, environment: Mapping[str, str]) -> None:
        """Start the head, and wait for it.

        Args:
            environment: more of the head's and of all that it starts.
        """
        config = self.folder / "autoscaler.json"
        config.write_text(json.dumps(self._config))
        self.token.write_text(secrets.token_hex(32))
        ports = self.ports.head()
        command = [
            *RAY,
            *("start", "--head", "--block", "--disable-usage-stats"),
            *("--include-log-monitor", "false"),
            *("--autoscaling-config", str(config)),
            *("--port", str(self.ports.gcs), "--node-ip-address", LOOPBACK),
            *("--num-cpus", "0", "--num-gpus", "0"),
            *("--object-store-memory", str(128 * MIB)),
            *("--temp-dir", str(self.folder)),
            *("--min-worker-port", "0", "--max-worker-port", "0"),
            *("--dashboard-host", LOOPBACK, "--dashboard-port", str(self.ports.dashboard)),
            *("--dashboard-agent-listen-port", "0"),
            *("--ray-client-server-port", str(ports["Ray client"])),
        ]
        settings = {
            **machine_environment(),
            **common_environment(self.token),
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_FAKE_CLUSTER": "1",
            "AUTOSCALER_METRIC_PORT": str(ports["Ray monitor"]),
            "DASHBOARD_METRIC_PORT": str(ports["Ray metrics"]),
            "RAY_health_check_period_ms": "1000",
            # Ray Data, ended with its process, still wants its nodes for three minutes.
            "RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S": "25",
            **environment,
        }
        if self.v2:
            settings |= {
                "RAY_enable_autoscaler_v2": "1",
                "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
            }
        with (self.folder / "head.log").open("w") as log:
            self._process = subprocess.Popen(
                command, env=settings, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        deadline = time.monotonic() + 180
        while not self._answers():
            assert self._process.poll() is None, (self.folder / "head.log").read_text()
            assert time.monotonic() < deadline, "the head does not answer"
            time.sleep(0.5)

    def _answers(self) -> bool:
        try:
            return bool(list_nodes(self.ports, self.token))
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def nodes(self) -> list[Mapping[str, float]]:
        """Resources of each node that is alive, but for the head."""
        alive = [node for node in list_nodes(self.ports, self.token) if node["state"] == "ALIVE"]
        return [node["resources_total"] for node in alive if not node["is_head_node"]]

    def shutdown(self) -> None:
        """End the head and all nodes: what has the session's folder in its command."""
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        if self._process is not None:
            self._process.wait(30)

    def _processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if str(self.folder) in " ".join(process.cmdline()):
                    found.append(process)
        return found
