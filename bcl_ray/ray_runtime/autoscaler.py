"""An autoscaler: whether a cluster has one, and asking it for nodes."""

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

Bundles = Sequence[Mapping[str, float]]

RENEW = 45.0  # seconds between two reminders of what is wanted
FORGOTTEN = 180.0  # seconds after the last of them: a driver that was killed wants nothing
ANSWER = 10.0  # seconds for Ray to take a request
STATUS = 15.0  # seconds in which an autoscaler that has just been started says what it has
LOOK = 1.0  # seconds between two looks at the cluster


def runs(*, expected: bool = False) -> bool:
    """Whether the cluster that this process is connected to adds nodes when work asks for them.

    Args:
        expected: somebody said so: one that has said nothing yet is given STATUS seconds.
    """
    # Version 2 runs where KubeRay or `ray up` asks for it (with KubeRay as a mere observer too,
    # which cannot be told from outside); every other head runs version 1, without an autoscaler
    # as an observer, which names a type for each node: node_<its id>.
    if is_autoscaler_v2(fetch_from_server=True):
        return True
    deadline = time.monotonic() + (STATUS if expected else 0)
    while (status := _internal_kv_get(DEBUG_AUTOSCALING_STATUS)) is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK)
    report = json.loads(status).get("autoscaler_report") or {}
    types = (report.get("node_type_mapping") or {}).values()
    return any(not kind.startswith("node_") for kind in types)


def start_ray_data_actors() -> None:
    """Start the actors of which Ray Data has one in a cluster, on this process's node: the head.

    They outlive programs, on the node of whoever needs them first. Were that a worker, its node
    would never be idle again. And were it a trial, they would end with its placement group, and
    somebody else's node would be next: a search calls this before its trials.
    """
    get_or_create_autoscaling_coordinator()
    get_or_create_stats_actor()
    if not usage_collection_disabled():
        get_or_create_usage_collection_actor()


class Demand:
    """What a program wants a cluster to have, from `ask` to the end of the `with` block.

        with Demand("predict-7f3a") as demand:
            demand.ask([{"CPU": 1, "GPU": 1}] * 4)

    An autoscaler adds the nodes that this takes, and keeps them, idle or not; a cluster without
    one takes note. Several programs' demands add up, and Ray Data leaves alone what they want.

    Args:
        name: of whoever wants it, unique in the cluster.
    """

    def __init__(self, name: str) -> None:
        self._name, self._wanted = f"bcl-ray-{name}", threading.Lock()
        self._bundles: list[dict[str, float]] = []
        self._labels: list[dict[str, str]] = []
        self._over = threading.Event()

    def __enter__(self) -> "Demand":
        start_ray_data_actors()
        self._coordinator = get_or_create_autoscaling_coordinator()
        self._thread = threading.Thread(target=self._remind, name="demand", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        with contextlib.suppress(RayError):  # then it is forgotten in a while
            ray.get(self._coordinator.cancel_request.remote(self._name), timeout=ANSWER)

    def ask(self, bundles: Bundles, labels: Sequence[Mapping[str, str]] | None = None) -> None:
        """Want this, and no longer what was asked for before.

        Args:
            bundles: resources, each of which one node is to have.
            labels: for each bundle those that its node must carry.
        """
        with self._wanted:
            self._bundles = [dict(bundle) for bundle in bundles]
            self._labels = [dict(label) for label in labels or [{}] * len(bundles)]
        self._send()

    def _send(self) -> None:
        with self._wanted:
            bundles, labels = self._bundles, self._labels
        request = self._coordinator.request_resources.remote(
            requester_id=self._name,
            resources=bundles,
            label_selectors=labels,
            expire_after_s=FORGOTTEN,
            priority=ResourceRequestPriority.HIGH,
        )
        with contextlib.suppress(RayError):  # it is sent again
            ray.get(request, timeout=ANSWER)

    def _remind(self) -> None:
        while not self._over.wait(RENEW):
            self._send()


def wait_until_there(
    lacking: Callable[[], str],
    seconds: float,
    notify: Callable[[str], None],
    stopping: Callable[[], Any] = lambda: False,
) -> bool:
    """Wait for nodes; a person is told what for.

    Args:
        lacking: looks at the cluster, and says what it lacks; nothing: it has all.
        seconds: to wait, at most.
        notify: called with messages for the user.
        stopping: whether to wait no longer.

    Returns:
        Whether nothing is lacking.
    """
    deadline, told = time.monotonic() + seconds, False
    while text := lacking():
        if stopping() or time.monotonic() > deadline:
            return False
        if not told:
            notify(f"waiting up to {seconds:g} s for nodes: {text}")
            told = True
        time.sleep(LOOK)
    return True
