"""The connection to Ray, on the cluster of RAY_ADDRESS or on this machine, and its resources."""

import contextlib
import errno
import logging
import math
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayTaskError

from bcl_ray.machine import container, user
from bcl_ray.machine.errors import UserError
from bcl_ray.ray_runtime import autoscaler, node_groups
from bcl_ray.ray_runtime.internals import worker as ray_worker
from bcl_ray.ray_runtime.node_groups import MARKET
from bcl_ray.storage.retry import TransientError

# Not a name below `bcl_ray`, since warnings of such loggers are shown to the user.
logger = logging.getLogger("ray.messages")

LISTEN_SECONDS = 10.0  # until something that listens at RAY_ADDRESS answers
NOTICE_POLL = "1"  # seconds; by default Ray Train notices up to 5 s late that a node will go
ACCELERATOR = "accelerator_type:"  # prefix of Ray's resource that names a kind of GPU
REPORT_POLL = "0.2"  # seconds; Ray Train takes one report per poll, by default every 2 s


@dataclass(frozen=True)
class Resources:
    """What a cluster has; for a growing cluster, the most that it can have."""

    cpus: float
    """In total; infinite if the limit of a growing cluster is unknown, like `gpus`."""
    gpus: float
    store_bytes: float
    """Memory of the object store on the present nodes."""
    nodes: tuple[Mapping[str, float], ...]
    """Resources of each node; of each present node if the limit is unknown."""
    grows: bool = False
    """Whether an autoscaler adds nodes."""
    markets: frozenset[str] = frozenset()
    """Values of the label MARKET among the nodes."""

    @property
    def limited(self) -> bool:
        """Whether the most that the cluster can have is known."""
        return self.cpus < math.inf

    @property
    def has_steady_nodes(self) -> bool:
        """Whether some nodes, present or future, are marked as never taken away."""
        return "steady" in self.markets

    @property
    def described(self) -> str:
        """CPUs and GPUs as text, such as "1 GPU (H200), 16 CPUs"."""
        kinds = sorted({key for node in self.nodes for key in node if key.startswith(ACCELERATOR)})
        cpus = f"{self.cpus:g} CPUs"
        if not self.gpus:
            return f"{cpus} ({container.processor()})" if len(self.nodes) == 1 else cpus
        names = ", ".join(key.removeprefix(ACCELERATOR) for key in kinds) or "unknown kind"
        return f"{self.gpus:g} GPU{'s' * (self.gpus != 1)} ({names}), {cpus}"

    @property
    def several_nodes(self) -> bool:
        """Whether there are, or can be, nodes on other machines, which have other local files."""
        return self.grows or len(self.nodes) > 1


@contextlib.contextmanager
def connected() -> Iterator[Resources]:
    """Connect to Ray for a block; an existing connection of this process is used and kept.

    Raises:
        OSError: Ray does not start on this machine, or the cluster does not answer.
        ValueError: RAY_ADDRESS is not an address that drivers connect to.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", REPORT_POLL)
    os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", NOTICE_POLL)
    is_new = not ray.is_initialized()
    if is_new:
        _connect(os.environ.get("RAY_ADDRESS"))
    for name in ("ray.data", "ray.train"):  # their handlers print to the terminal
        logging.getLogger(name).setLevel(logging.ERROR)
    ray_worker.print_to_stdstream = _log_ray_message  # type: ignore[assignment]
    try:
        yield resources()
    finally:
        if is_new:
            ray.shutdown()


def _connect(address: str | None) -> None:
    if address and address.startswith(("http://", "https://")):
        raise UserError(
            f"RAY_ADDRESS ({address}) is a dashboard's, which takes jobs: put `submit` before the "
            "command (bcl-ray submit train ...), or unset RAY_ADDRESS to run on this machine"
        )
    if address:
        _check_listens(address)
    options: dict[str, Any] = {}
    if not address:
        # "local": Ray would otherwise join a cluster that somebody started on this machine.
        # num_cpus: Ray would count CPUs that this process or its container must not use.
        cpus = int(container.cpus())
        options = {"address": "local", "include_dashboard": False, "num_cpus": cpus}
        # This machine is not taken away with notice, and no other one is added.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        os.environ.pop(node_groups.VARIABLE, None)
        # KubeRay sets it for every process in a head's pod.
        os.environ["RAY_enable_autoscaler_v2"] = "0"  # noqa: SIM112  (Ray's spelling)
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except ValueError as error:  # not the address of a head
        raise UserError(
            f"RAY_ADDRESS ({address}) is not an address that drivers connect to: "
            f"{one_line(error)}; unset it to run on this machine"
        ) from error
    except Exception as error:  # Ray also raises plain ones: "The current node timed out ..."
        raise _connection_error(error, address) from error


def _check_listens(address: str) -> None:
    """Ask whether something listens at host:port: Ray itself tries for more than five minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():  # "auto", or not an address; Ray knows
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), LISTEN_SECONDS).close()
    except OSError as error:
        raise _connection_error(error, address) from error


def _connection_error(error: Exception, address: str | None) -> Exception:
    """The error for the user, with what to do about it."""
    where = f"the cluster of RAY_ADDRESS ({address})" if address else "the local Ray"
    if not address:
        for check in (user.check_home, user.check_temporary_folder):
            try:
                check()
            except UserError as reason:
                return UserError(f"{where} does not start: {reason}")
    remedy = "is it up?" if address else "is the machine overloaded, or its disk full?"
    kind: type[Exception] = TransientError
    if getattr(root_cause(error), "errno", None) in (errno.EROFS, errno.EACCES):
        # Ray keeps an authentication token there.
        remedy, kind = "set HOME to a folder that can be written to", OSError
    return kind(f"{where} did not answer: {one_line(error)}; {remedy}")


def _log_ray_message(data: dict[str, Any], **_: Any) -> None:
    """Log what nodes print in every driver, such as a worker's death, instead of printing it."""
    logger.warning("%s", "\n".join(data["lines"]))


def resources() -> Resources:
    """Resources of the connected cluster.

    Raises:
        ValueError: node_groups.VARIABLE has an invalid value.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]
    present: tuple[Mapping[str, float], ...] = tuple(node["Resources"] for node in alive)
    labels = [node["Labels"] for node in alive if node["Resources"].get("CPU")]
    groups = node_groups.from_environment()
    grows = groups != () and autoscaler.is_running(expected=groups is not None)
    nodes = present
    if grows and groups is not None:
        nodes = tuple(group.resources for group in groups for _ in range(group.nodes))
        labels += [group.labels for group in groups if group.nodes]

    def most(name: str) -> float:
        if grows and groups is None:
            return math.inf
        return max(sum(node.get(name, 0.0) for node in each) for each in (nodes, present))

    return Resources(
        cpus=most("CPU"),
        gpus=most("GPU"),
        store_bytes=sum(node.get("object_store_memory", 0.0) for node in present),
        nodes=nodes,
        grows=grows,
        markets=frozenset(label[MARKET] for label in labels if MARKET in label),
    )


def local_path_message(what: str, resources: Resources) -> str:
    """Why a path of this machine cannot be used, and what to use instead."""
    nodes = "adds nodes" if resources.grows else f"has {len(resources.nodes)} nodes"
    return (
        f"{what} is a path of this machine, and the cluster {nodes}: use a URI, or file:// for a "
        "folder that every node mounts"
    )


def root_cause(error: BaseException) -> BaseException:
    """The first error of a chain, without the errors that Ray wraps around it."""
    while True:
        cause = error.cause if isinstance(error, RayTaskError) else error.__cause__
        cause = getattr(error, "health_check_failure", cause)  # Ray Train's, of a dead worker
        if cause is None:
            return error
        error = cause


def one_line(error: BaseException) -> str:
    """The class and the first line of an error's root cause."""
    cause = root_cause(error)
    lines = str(cause).strip().splitlines() or [""]
    return f"{type(cause).__name__}: {lines[0]}"
