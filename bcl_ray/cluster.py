"""Ray itself: the cluster of RAY_ADDRESS, or one of our own on this machine."""

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.state import state  # Ray Data asks it, too, what an autoscaler may add
from ray.exceptions import RayTaskError

from bcl_ray import container
from bcl_ray.config import Experiment
from bcl_ray.runs import is_local

logger = logging.getLogger("ray.messages")  # not ours: workers' own warnings go to the person

MARKET = "bcl-ray.io/market"  # a node's label: steady, or spot where it may be taken away
NOTICE_POLL = "1"  # seconds; of a notice of 30 s, Ray Train would take up to 5 to see it
POLL = "0.2"  # seconds; Ray Train takes one report per poll, 2 s apart by default


@dataclass(frozen=True)
class Resources:
    """What a cluster has, in all: CPUs, GPUs, and bytes of object store.

    Args:
        cpus: with those that an autoscaler may add; so also gpus.
        gpus: of the whole cluster.
        store_bytes: of the nodes that are there.
        nodes: resources of each of them.
        grows: whether an autoscaler adds nodes.
        markets: values of the label MARKET that nodes carry.
    """

    cpus: float
    gpus: float
    store_bytes: float
    nodes: tuple[dict[str, float], ...]
    grows: bool = False
    markets: frozenset[str] = frozenset()

    @property
    def has_steady_nodes(self) -> bool:
        """Whether there are nodes, or will be, that are marked as not to be taken away."""
        return "steady" in self.markets or (self.grows and bool(self.markets))


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
    ray._private.worker.print_to_stdstream = _log_ray_message
    try:
        yield _resources()
    finally:
        if begun:
            ray.shutdown()


def _connect(address: str | None) -> None:
    # Without an address Ray would join a cluster that somebody started on this machine.
    # Ray by itself counts CPUs that this process, or its control group, is not bound to.
    own = {"address": "local", "include_dashboard": False, "num_cpus": int(container.cpus())}
    options = {} if address else own
    if not address:  # nobody takes this machine away with notice
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except ValueError as error:  # no address of a head, such as that of its dashboard
        raise ValueError(
            f"RAY_ADDRESS ({address}) is not where a driver connects to: {one_line(error)}; an "
            "http:// address is for `bcl-ray submit`: unset RAY_ADDRESS to run on this machine"
        ) from error
    except Exception as error:  # Ray raises bare ones, too: "The current node timed out ..."
        where = f"the cluster of RAY_ADDRESS ({address})" if address else "a Ray of our own"
        remedy = "is it up?" if address else "is the machine overloaded, or its disk full?"
        if getattr(root_cause(error), "errno", None) in (errno.EROFS, errno.EACCES):
            remedy = "set HOME to a folder that can be written to"  # where Ray keeps its token
        raise OSError(f"{where} did not answer: {one_line(error)}; {remedy}") from error


def _log_ray_message(data: dict[str, Any], **_: Any) -> None:
    """Keep what nodes tell every driver, a worker's death above all, off the terminal."""
    logger.warning("%s", "\n".join(data["lines"]))


def _resources() -> Resources:
    total = ray.cluster_resources()
    nodes = tuple(node["Resources"] for node in ray.nodes() if node["Alive"])
    most = state.get_max_resources_from_cluster_config()
    cpus, gpus = (max(total.get(name, 0.0), (most or {}).get(name, 0)) for name in ("CPU", "GPU"))
    store = total.get("object_store_memory", 0.0)
    labels = [
        node["Labels"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")
    ]
    markets = frozenset(label[MARKET] for label in labels if MARKET in label)
    return Resources(cpus, gpus, store, nodes, most is not None, markets)


def uses_gpus(experiment: Experiment, resources: Resources) -> bool:
    """Whether workers get a GPU each.

    Raises:
        ValueError: fewer GPUs than workers, though some are asked for or there: workers would
            wait for ever, or train on CPUs without a word.
    """
    device, workers = experiment.scale.device, experiment.scale.min_workers
    if device == "cpu" or (device == "auto" and resources.gpus == 0):
        return False
    if resources.gpus < workers * experiment.scale.gpus_per_worker:
        raise ValueError(
            f"scale.workers ({workers}) is more than the cluster has GPUs ({resources.gpus:g}): "
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
    if places < scale.min_workers and not resources.grows:
        raise ValueError(
            f"the cluster's nodes have room for {places} workers of scale.cpus_per_worker "
            f"({scale.cpus_per_worker:g}), scale.workers is {scale.min_workers}: lower one of them"
        )
    paths = {"data.path": experiment.data.path, "tracking.runs": experiment.tracking.runs}
    if experiment.model.weights is not None:
        paths["model.weights"] = experiment.model.weights
    for option, path in paths.items():
        if len(resources.nodes) > 1 and is_local(path) and not path.startswith("file://"):
            raise ValueError(
                f"{option} ({path}) is a path of this machine, and the cluster has "
                f"{len(resources.nodes)} nodes: use a URI, or file:// for a folder that every "
                "node mounts"
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
