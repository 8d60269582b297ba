"""The cluster's autoscaler: whether there is one, and how a program requests nodes from it."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from bcl_ray.ray_runtime.internals import (
    DEBUG_AUTOSCALING_STATUS,
    ResourceRequestPriority,
    _internal_kv_get,
    get_or_create_autoscaling_coordinator,
    get_or_create_stats_actor,
    get_or_create_usage_collection_actor,
    is_autoscaler_v2,
    usage_collection_disabled,
)

RENEWAL_INTERVAL = 45.0  # seconds
EXPIRY = 180.0  # seconds after its last renewal at which a request lapses
REQUEST_TIMEOUT = 10.0  # seconds for Ray to take a request
STATUS_TIMEOUT = 15.0  # seconds for an autoscaler that has just started to publish its status
POLL_INTERVAL = 1.0  # seconds


def is_running(*, expected: bool = False) -> bool:
    """Whether the connected cluster adds nodes when programs need them.

    Args:
        expected: Whether the cluster's description says so. An autoscaler without a status then
            gets STATUS_TIMEOUT seconds to publish one.
    """
    # Version 2 of the autoscaler runs only if KubeRay or `ray up` starts it; KubeRay may start it
    # as an observer, which cannot be detected. Every other head runs version 1. If version 1 only
    # observes, without adding nodes, each node has a node type of its own: node_<id of the node>.
    if is_autoscaler_v2(fetch_from_server=True):
        return True
    deadline = time.monotonic() + (STATUS_TIMEOUT if expected else 0)
    while (status := _internal_kv_get(DEBUG_AUTOSCALING_STATUS)) is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_INTERVAL)
    report = json.loads(status).get("autoscaler_report") or {}
    node_types = (report.get("node_type_mapping") or {}).values()
    return any(not node_type.startswith("node_") for node_type in node_types)


def start_ray_data_actors() -> None:
    """Start on this node, the head, the actors that all Ray Data executions of a cluster share.

    Ray Data starts them on the node of the first program that needs them, and they stay there.
    On a worker's node they would keep that node from ever being idle. Started by a trial, they
    would end with its placement group, and start again on another node: a search calls this
    before its trials.
    """
    get_or_create_autoscaling_coordinator()
    get_or_create_stats_actor()
    if not usage_collection_disabled():
        get_or_create_usage_collection_actor()


class Demand:
    """Resources that a program requests from the cluster, until the `with` block ends.

        with Demand("predict-7f3a") as demand:
            demand.request([{"CPU": 1, "GPU": 1}] * 4)

    An autoscaler adds the nodes that this takes, and keeps them even while they are idle. In a
    cluster without an autoscaler the request only reserves resources: Ray Data does not use
    what is requested. Requests of several programs add up. A request lapses EXPIRY seconds after
    its program was killed.

    Args:
        name: Of the program, unique in the cluster.
    """

    def __init__(self, name: str) -> None:
        self._name, self._lock = f"bcl-ray-{name}", threading.Lock()
        self._bundles: list[dict[str, float]] = []
        self._labels: list[dict[str, str]] = []
        self._ended = threading.Event()

    def __enter__(self) -> "Demand":
        start_ray_data_actors()
        self._coordinator = get_or_create_autoscaling_coordinator()
        self._thread = threading.Thread(target=self._renew, name="demand", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(RayError):  # the request then lapses
            ray.get(self._coordinator.cancel_request.remote(self._name), timeout=REQUEST_TIMEOUT)

    def request(
        self,
        bundles: Sequence[Mapping[str, float]],
        labels: Sequence[Mapping[str, str]] | None = None,
    ) -> None:
        """Request resources, instead of those of an earlier call.

        Args:
            bundles: Sets of resources, each of which must be on one node.
            labels: For each bundle, labels that its node must have.
        """
        with self._lock:
            self._bundles = [dict(bundle) for bundle in bundles]
            self._labels = [dict(label) for label in labels or [{}] * len(bundles)]
        self._send()

    def _send(self) -> None:
        # Otherwise a renewal could send, afterwards, what this request has replaced.
        with self._lock:
            answer = self._coordinator.request_resources.remote(
                requester_id=self._name,
                resources=self._bundles,
                label_selectors=self._labels,
                expire_after_s=EXPIRY,
                priority=ResourceRequestPriority.HIGH,
            )
        with contextlib.suppress(RayError):  # the next renewal sends it again
            ray.get(answer, timeout=REQUEST_TIMEOUT)

    def _renew(self) -> None:
        while not self._ended.wait(RENEWAL_INTERVAL):
            self._send()


def wait_for_nodes(
    shortage: Callable[[], str],
    seconds: float,
    notify: Callable[[str], None],
    stop_requested: Callable[[], Any] = lambda: False,
) -> bool:
    """Wait until the cluster has enough nodes; the user is told once what is missing.

    Args:
        shortage: What the cluster lacks now, in words; empty if it has enough.
        seconds: The longest time to wait.
        notify: Shows a message to the user.
        stop_requested: Whether to stop waiting.

    Returns:
        Whether the cluster has enough.
    """
    deadline, notified = time.monotonic() + seconds, False
    while text := shortage():
        if stop_requested() or time.monotonic() > deadline:
            return False
        if not notified:
            notify(f"waiting up to {seconds:g} s for nodes: {text}")
            notified = True
        time.sleep(POLL_INTERVAL)
    return True
