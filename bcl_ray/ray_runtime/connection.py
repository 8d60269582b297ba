"""Ray itself: the cluster of RAY_ADDRESS, or one of our own on this machine."""

import contextlib
import errno
import logging
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayTaskError

from bcl_ray.experiment.options import Experiment
from bcl_ray.machine import container
from bcl_ray.machine.errors import UserError
from bcl_ray.ray_runtime import autoscaler, node_groups
from bcl_ray.ray_runtime.internals import worker as ray_worker
from bcl_ray.ray_runtime.node_groups import MARKET
from bcl_ray.storage.paths import is_local
from bcl_ray.storage.retry import PassingError

logger = logging.getLogger("ray.messages")  # not ours: workers' own warnings go to the person

NOTICE_POLL = "1"  # seconds; of a notice of 30 s, Ray Train would take up to 5 to see it
POLL = "0.2"  # seconds; Ray Train takes one report per poll, 2 s apart by default


@dataclass(frozen=True)
class Resources:
    """What a cluster has; of one that grows, the most that it can come to have.

    Args:
        cpus: in all; infinite where nobody knows how far the cluster may grow. So also gpus.
        gpus: in all.
        store_bytes: of object store, of the nodes that are there.
        nodes: resources of each node; where the most is not known, of each that is there.
        grows: whether an autoscaler adds nodes.
        markets: values of the label MARKET that nodes carry.
    """

    cpus: float
    gpus: float
    store_bytes: float
    nodes: tuple[Mapping[str, float], ...]
    grows: bool = False
    markets: frozenset[str] = frozenset()

    @property
    def limited(self) -> bool:
        """Whether the most that the cluster can have is known."""
        return self.cpus < math.inf

    @property
    def has_steady_nodes(self) -> bool:
        """Whether there are nodes, or can be, that are marked as not to be taken away."""
        return "steady" in self.markets

    @property
    def several_nodes(self) -> bool:
        """Whether a path of this machine may be another one's too."""
        return self.grows or len(self.nodes) > 1


@contextlib.contextmanager
def connected() -> Iterator[Resources]:
    """The cluster, for as long as the block lasts; one that this process uses already is kept.

    Raises:
        OSError: Ray does not start here, or the cluster of RAY_ADDRESS does not answer.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", POLL)
    os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", NOTICE_POLL)
    begun = not ray.is_initialized()
    if begun:
        _connect(os.environ.get("RAY_ADDRESS"))
    for name in ("ray.data", "ray.train"):  # they set themselves up to print
        logging.getLogger(name).setLevel(logging.ERROR)
    ray_worker.print_to_stdstream = _log_ray_message  # type: ignore[assignment]
    try:
        yield resources()
    finally:
        if begun:
            ray.shutdown()


def _connect(address: str | None) -> None:
    # Without an address Ray would join a cluster that somebody started on this machine.
    # Ray by itself counts CPUs that this process, or its control group, is not bound to.
    own = {"address": "local", "include_dashboard": False, "num_cpus": int(container.cpus())}
    options: dict[str, Any] = {} if address else own
    if address and address.startswith(("http://", "https://")):
        raise UserError(
            f"RAY_ADDRESS ({address}) is a dashboard's, which takes jobs: put `submit` before the "
            "command (bcl-ray submit train ...), or unset RAY_ADDRESS to run on this machine"
        )
    if not address:  # nobody takes this machine away with notice, or adds another one
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        os.environ.pop(node_groups.VARIABLE, None)
        # KubeRay sets it for all that runs in a head's pod.
        os.environ["RAY_enable_autoscaler_v2"] = "0"  # noqa: SIM112  (Ray's spelling)
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except ValueError as error:  # no address of a head, such as that of its dashboard
        raise UserError(
            f"RAY_ADDRESS ({address}) is not where a driver connects to: {one_line(error)}; unset "
            "it to run on this machine"
        ) from error
    except Exception as error:  # Ray raises bare ones, too: "The current node timed out ..."
        where = f"the cluster of RAY_ADDRESS ({address})" if address else "a Ray of our own"
        remedy = "is it up?" if address else "is the machine overloaded, or its disk full?"
        kind: type[Exception] = PassingError
        if "AF_UNIX path length" in str(error):
            remedy, kind = "set RAY_TMPDIR, or TMPDIR, to a shorter path", UserError
        if getattr(root_cause(error), "errno", None) in (errno.EROFS, errno.EACCES):
            remedy = "set HOME to a folder that can be written to"  # where Ray keeps its token
            kind = OSError
        raise kind(f"{where} did not answer: {one_line(error)}; {remedy}") from error


def _log_ray_message(data: dict[str, Any], **_: Any) -> None:
    """Keep what nodes tell every driver, a worker's death above all, off the terminal."""
    logger.warning("%s", "\n".join(data["lines"]))


def resources() -> Resources:
    """What the cluster that this process is connected to has, or can come to have.

    Raises:
        ValueError: node_groups.VARIABLE is not what it should be.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]
    there = tuple(node["Resources"] for node in alive)
    labels = [node["Labels"] for node in alive if node["Resources"].get("CPU")]
    groups = node_groups.from_environment()
    grows = groups != () and autoscaler.runs(expected=groups is not None)
    if grows and groups is not None:
        nodes = tuple(group.resources for group in groups for _ in range(group.nodes))
        labels += [group.labels for group in groups if group.nodes]
    else:
        nodes = there

    def most(name: str) -> float:
        if grows and groups is None:
            return math.inf
        return max(sum(node.get(name, 0.0) for node in each) for each in (nodes, there))

    return Resources(
        cpus=most("CPU"),
        gpus=most("GPU"),
        store_bytes=sum(node.get("object_store_memory", 0.0) for node in there),
        nodes=nodes,
        grows=grows,
        markets=frozenset(label[MARKET] for label in labels if MARKET in label),
    )


def uses_gpus(experiment: Experiment, resources: Resources) -> bool:
    """Whether workers get a GPU each.

    Raises:
        ValueError: fewer GPUs than workers, though some are asked for or there: workers would
            wait for ever, or train on CPUs without a word. Or none can say whether there will be.
    """
    device, workers = experiment.scale.device, experiment.scale.min_workers
    if device == "cpu" or (device == "auto" and resources.gpus == 0):
        return False
    if device == "auto" and not resources.limited:
        raise UserError(
            "scale.device is auto, and this cluster grows, without a word on whether it can have "
            f"GPUs: set scale.device=cuda or scale.device=cpu, or {node_groups.VARIABLE} on its "
            "head ([]: it does not grow)"
        )
    if resources.gpus < workers * experiment.scale.gpus_per_worker:
        has = "can grow to" if resources.grows else "has"
        raise UserError(
            f"scale.workers ({workers}) is more than the cluster {has} GPUs ({resources.gpus:g}): "
            "lower it, or set scale.device=cpu"
        )
    return True


def check_places(experiment: Experiment, resources: Resources) -> None:
    """Refuse workers that fit on no node, and files that not every node can see.

    Raises:
        ValueError: naming the option.
    """
    scale = experiment.scale
    places = sum(int(node.get("CPU", 0) / scale.cpus_per_worker) for node in resources.nodes)
    if places < scale.min_workers and resources.limited:
        raise UserError(
            f"the cluster's nodes have room for {places} workers of scale.cpus_per_worker "
            f"({scale.cpus_per_worker:g}), scale.workers is {scale.min_workers}: lower one of them"
        )
    paths = {"data.path": experiment.data.path, "tracking.runs": experiment.tracking.runs}
    if experiment.model.weights is not None:
        paths["model.weights"] = experiment.model.weights
    for option, path in paths.items():
        if resources.several_nodes and is_local(path) and not path.startswith("file://"):
            raise UserError(local_path(f"{option} ({path})", resources))


def local_path(what: str, resources: Resources) -> str:
    """Why a path of this machine will not do, and what will."""
    nodes = "adds nodes" if resources.grows else f"has {len(resources.nodes)} nodes"
    return (
        f"{what} is a path of this machine, and the cluster {nodes}: use a URI, or file:// for a "
        "folder that every node mounts"
    )


def root_cause(error: BaseException) -> BaseException:
    """What went wrong first, beneath what Ray wraps around it."""
    while True:
        cause = error.cause if isinstance(error, RayTaskError) else error.__cause__
        cause = getattr(error, "health_check_failure", cause)  # Ray Train's, of a dead worker
        if cause is None:
            return error
        error = cause


def one_line(error: BaseException) -> str:
    """The root cause's kind and first line."""
    cause = root_cause(error)
    lines = str(cause).strip().splitlines() or [""]
    return f"{type(cause).__name__}: {lines[0]}"
