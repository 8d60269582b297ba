"""The Ray head and worker nodes of a local cluster, and what the head knows of them."""

import json
import subprocess
import urllib.request
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from bcl_ray.machine.messages import last_line
from bcl_ray.machine.waiting import answers
from bcl_ray.ops.local import ray_commands
from bcl_ray.ops.local.cluster_folder import LocalDescription
from bcl_ray.ops.local.ports import LOOPBACK, Ports
from bcl_ray.ops.local.processes import START_SECONDS, Processes

WORKER_CLASS = "RayTrainWorker"  # class of Ray Train's actors, one for each training worker


class RayNodes:
    """Starts the Ray nodes of one cluster, and asks the head about them.

    Args:
        processes: Processes of the cluster; a node's process has the node's name.
        environment: Environment variables of every node.
    """

    def __init__(
        self,
        processes: Processes,
        description: LocalDescription,
        token_file: Path,
        environment: Mapping[str, str],
    ) -> None:
        self._processes = processes
        self._description = description
        self._ports = description.ports
        self._token_file = token_file
        self._environment = environment

    def start_all(self) -> None:
        """Start the head and all nodes, and wait until all have joined."""
        self.start_head()
        for name in self._description.nodes:
            self.start_worker(name)
        for name in ("head", *self._description.nodes):
            self.wait_until_joined(name)

    def start_head(self) -> None:
        """Start the head, and wait until it accepts connections."""
        folder = Path(self._description.ray_folder)
        # If this file exists, Ray mistakes nodes that wait for the head for a running head.
        (folder / "head" / "ray_current_cluster").unlink(missing_ok=True)
        command = ray_commands.head_command(self._ports, folder / "head")
        environment = ray_commands.head_environment(self._ports, folder / "gcs")
        self._processes.start("head", command, {**self._environment, **environment})
        ready = partial(answers, LOOPBACK, self._ports.gcs)
        self._processes.wait("head", ready, START_SECONDS)

    def restart_head(self) -> None:
        """Start the head again, and wait until it lists itself."""
        self.start_head()
        self.wait_until_joined("head")

    def start_worker(self, name: str) -> None:
        """Start the process of a worker node."""
        command = ray_commands.worker_command(
            name,
            self._description.nodes[name],
            cpus=self._description.cpus,
            store_mib=self._description.store_mib,
            ports=self._ports,
            temporary=Path(self._description.ray_folder) / name,
        )
        self._processes.start(name, command, self._environment)

    def wait_until_joined(self, name: str) -> None:
        """Wait until the head lists a node as alive.

        Raises:
            OSError: The node's process has ended, or did not join in time.
        """
        self._processes.wait(name, lambda: self._node_id(name) is not None, START_SECONDS)

    def drain(self, name: str, notice_seconds: int) -> None:
        """Tell Ray that a node will end.

        Raises:
            OSError: The head does not know the node, or Ray refuses.
        """
        node_id = self._node_id(name)
        if node_id is None:
            raise OSError(f"the head does not know '{name}': look at `bcl-ray cluster status`")
        done = subprocess.run(  # noqa: S603 (the command is ours)
            ray_commands.drain_command(node_id, notice_seconds, self._ports),
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        if done.returncode:
            raise OSError(
                f"'{name}' is not drained: {last_line(done.stderr, 'Ray gave no reason')}"
            )

    def training_workers(self) -> Mapping[str, int]:
        """The number of training workers on each node that has some, by the node's name.

        Raises:
            OSError: The head does not answer within a few seconds.
        """
        query = f"filter_keys=class_name&filter_predicates=%3D&filter_values={WORKER_CLASS}"
        actors = _state("actors", self._ports, self._token_file, query, timeout=3)
        nodes = list_nodes(self._ports, self._token_file, timeout=3)
        names = {node["node_id"]: node["node_name"] for node in nodes}
        alive = [actor for actor in actors if actor["state"] == "ALIVE"]
        return Counter(names.get(actor["node_id"], "unknown") for actor in alive)

    def _node_id(self, name: str) -> str | None:
        """Ray's id of the living node of a name, or None."""
        # The head lists a killed node as alive for some seconds: only a node that is as young as
        # the process counts. (1 s, for Ray and psutil read different clocks.)
        earliest = self._processes.created(name) - 1
        try:
            nodes = list_nodes(self._ports, self._token_file)
        except (OSError, ValueError, KeyError, TypeError):  # a starting head may answer anything
            return None
        return next(
            (
                str(node["node_id"])
                for node in nodes
                if node["node_name"] == name and node["state"] == "ALIVE"
                if node["start_time_ms"] / 1000 >= earliest
            ),
            None,
        )


def list_nodes(ports: Ports, token_file: Path, timeout: float = 10) -> list[Mapping[str, Any]]:
    """The nodes that the head knows, dead ones too, as Ray's State API describes them.

    Raises:
        OSError: No head answers.
    """
    return _state("nodes", ports, token_file, "detail=1", timeout)


def _state(
    resource: str, ports: Ports, token_file: Path, query: str, timeout: float
) -> list[Mapping[str, Any]]:
    """A list that the head's State API has, such as that of nodes."""
    request = urllib.request.Request(
        f"http://{LOOPBACK}:{ports.dashboard}/api/v0/{resource}?{query}&limit=1000",
        headers={"Authorization": f"Bearer {token_file.read_text()}"},
    )
    with urllib.request.urlopen(request, timeout=timeout) as answer:  # noqa: S310
        rows: list[Mapping[str, Any]] = json.load(answer)["data"]["result"]["result"]
    return rows
