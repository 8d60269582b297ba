"""Checks, before a training starts, that the driver and every node can use the object storage.

Nodes differ in their network, clock, credentials and environment. Without a check, a node that
cannot reach the data would show only when its first task fails, and would fail again and again.
"""

import time
from collections import Counter
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray.exceptions import NodeDiedError, RayError, TaskUnschedulableError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bcl_ray.machine.errors import UserError
from bcl_ray.ray_runtime.connection import one_line
from bcl_ray.storage import s3
from bcl_ray.storage.retry import TransientError

Locations = Mapping[str, tuple[str, Collection[str]]]  # by option: its URI, and the actions

SECONDS = 15.0  # for all nodes together, even if a store does not answer at all
MARGIN = 4.0  # seconds of these in which a check does not wait for the store
START_SECONDS = 60.0  # in which a loaded node must have started a task's process
MAX_PROBLEMS = 20  # in an error message
MAX_NODES = 8  # named for each problem


def check_everywhere(
    locations: Locations, per_worker: Mapping[str, float] | None = None, seconds: float = SECONDS
) -> None:
    """Make sure that this process and every node of the cluster can use S3 as they will need to.

        check_everywhere({
            "data.path": (data, {"list", "read"}),
            "tracking.runs": (runs, {"list", "read", "write", "delete"}),
        }, per_worker={"CPU": 1, "GPU": 1})

    Needs a connection to Ray. Nodes without CPUs run nothing and are not checked. Nodes on which
    no worker fits run only data tasks, and are checked only for what those list and read.

    Args:
        locations: For each option, its URI and actions as `s3.check_access` takes them. Local
            paths and URIs of other stores are skipped.
        per_worker: Resources of one worker; None: workers may run on every node.
        seconds: Time in which problems of the store are reported.

    Raises:
        ValueError: All problems, each with its option and the nodes that have it.
        TransientError: The same, if all problems may be temporary.
    """
    on_s3 = {
        option: (uri, actions) for option, (uri, actions) in locations.items() if s3.is_s3(uri)
    }
    if not on_s3:
        return
    nodes_with: dict[str, list[str]] = {}
    for name, problems in _check_nodes(on_s3, per_worker or {}, seconds).items():
        for problem in problems:
            nodes_with.setdefault(problem, []).append(name)
    if nodes_with:
        lines = [f"\n  {problem}\n    on {_joined(names)}" for problem, names in nodes_with.items()]
        more = f"\n  and {len(lines) - MAX_PROBLEMS} more" if len(lines) > MAX_PROBLEMS else ""
        is_transient = all(isinstance(problem, s3.TransientProblem) for problem in nodes_with)
        raise (TransientError if is_transient else UserError)(
            "object storage cannot be used as this run needs it:"
            + "".join(lines[:MAX_PROBLEMS])
            + more
        )


def check_here(locations: Locations, seconds: float = SECONDS) -> list[str]:
    """Problems of this machine, each with its option; all locations are checked at once."""
    with ThreadPoolExecutor(max(1, len(locations))) as pool:
        checks = {
            option: pool.submit(s3.check_access, uri, actions, seconds)
            for option, (uri, actions) in locations.items()
        }
        return [
            type(problem)(f"{option}: {problem}")
            for option, check in checks.items()
            for problem in check.result()
        ]


def _check_nodes(
    locations: Locations, per_worker: Mapping[str, float], seconds: float
) -> dict[str, list[str]]:
    """Problems of the driver and of each node, by their names."""
    begun = time.monotonic()
    remote: Any = ray.remote(num_cpus=0, max_retries=0)(check_here)
    pending: dict[Any, str] = {}
    for name, node in _by_name(ray.nodes()).items():
        needed = _needed(locations, node["Resources"], per_worker)
        if needed:
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = remote.options(scheduling_strategy=strategy).remote(needed, seconds - MARGIN)
            pending[task] = name
    problems = {"the driver": check_here(locations, seconds - MARGIN)}
    while pending:
        elapsed = time.monotonic() - begun
        if elapsed > START_SECONDS or (elapsed > seconds and any(problems.values())):
            break
        done, _ = ray.wait(list(pending), timeout=0.5)
        for task in done:
            problems[pending.pop(task)] = _result(task)
    if not any(problems.values()):
        late = f"no answer within {START_SECONDS:g} s: check whether the node is overloaded"
        problems |= {name: [s3.TransientProblem(late)] for name in pending.values()}
    for task in pending:
        ray.cancel(task, force=True)
    return problems


def _result(task: Any) -> list[str]:
    try:
        return list(ray.get(task))
    except (NodeDiedError, TaskUnschedulableError):
        return []  # the node has left the cluster
    except RayError as error:
        text = f"the check did not run ({one_line(error)}): see the node's logs"
        return [s3.TransientProblem(text)]


def _needed(
    locations: Locations, resources: Mapping[str, float], per_worker: Mapping[str, float]
) -> dict[str, tuple[str, Collection[str]]]:
    """The locations that a node with these resources will use."""
    if not resources.get("CPU"):
        return {}
    hosts_workers = all(resources.get(name, 0) >= amount for name, amount in per_worker.items())
    return {
        option: (uri, actions)
        for option, (uri, actions) in locations.items()
        # Data tasks list and read. A single object that is only read holds weights, for workers.
        if hosts_workers or ("list" in actions and "write" not in actions)
    }


def _by_name(nodes: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Living nodes by name, with a part of the id if several have the same name."""
    alive = [node for node in nodes if node["Alive"]]
    names = [node.get("NodeName") or node["NodeManagerAddress"] for node in alive]
    counts = Counter(names)
    return {
        f"node {name}" + (f" ({node['NodeID'][:8]})" if counts[name] > 1 else ""): node
        for name, node in zip(names, alive, strict=True)
    }


def _joined(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NODES} more" if len(names) > MAX_NODES else ""
    return ", ".join(names[:MAX_NODES]) + more
