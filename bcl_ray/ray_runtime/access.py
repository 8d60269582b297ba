"""Object storage as the driver and every node see it, before a training starts.

Nodes differ in their network, clock, credentials and environment. A node that cannot reach the
data would otherwise show when the first task lands on it, and fail again and again.
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

Places = Mapping[str, tuple[str, Collection[str]]]  # of an option: its URI, and the actions

SECONDS = 15.0  # for a place that swallows packets, on all nodes at the same time
MARGIN = 4.0  # of these, for what is not waiting for the store
START_SECONDS = 60.0  # in which a loaded node must have started a task's process
SHOWN = 20  # problems


def check_everywhere(
    places: Places, worker: Mapping[str, float] | None = None, seconds: float = SECONDS
) -> None:
    """Make sure that this process and every node of the cluster may use S3 as they will.

        check_everywhere({
            "data.path": (data, {"list", "read"}),
            "tracking.runs": (runs, {"list", "read", "write", "delete"}),
        }, worker={"CPU": 1, "GPU": 1})

    Needs a connection to Ray. Nodes without CPUs take no work and are not asked; those on which
    no worker fits run data tasks alone, and are asked only for places that are listed and read.

    Args:
        places: of each option its URI and actions of `s3.check_access`; local paths and other
            stores' URIs are passed over.
        worker: resources that a worker takes; None: workers may come to be on every node.
        seconds: in which problems of the store are reported.

    Raises:
        ValueError: all problems, each with its option and where it was met.
        TransientError: likewise, where all of them may pass.
    """
    asked = {name: place for name, place in places.items() if s3.is_s3(place[0])}
    if not asked:
        return
    where: dict[str, list[str]] = {}
    for name, problems in _ask_all(asked, worker or {}, seconds).items():
        for problem in problems:
            where.setdefault(problem, []).append(name)
    if where:
        lines = [f"\n  {problem}\n    on {_few(names)}" for problem, names in where.items()]
        more = f"\n  and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
        passing = all(isinstance(problem, s3.TransientProblem) for problem in where)
        raise (TransientError if passing else UserError)(
            "object storage cannot be used as this run needs it:" + "".join(lines[:SHOWN]) + more
        )


def problems_here(places: Places, seconds: float = SECONDS) -> list[str]:
    """What this machine meets, each with its option; all places at the same time."""
    with ThreadPoolExecutor(max(1, len(places))) as pool:
        checks = {
            name: pool.submit(s3.check_access, uri, actions, seconds)
            for name, (uri, actions) in places.items()
        }
        return [
            type(text)(f"{name}: {text}")
            for name, check in checks.items()
            for text in check.result()
        ]


def _ask_all(places: Places, worker: Mapping[str, float], seconds: float) -> dict[str, list[str]]:
    """The problems of the driver and of each node, by their names."""
    begun = time.monotonic()
    remote: Any = ray.remote(num_cpus=0, max_retries=0)(problems_here)
    waiting: dict[Any, str] = {}
    for name, node in _named(ray.nodes()).items():
        needed = _needed(places, node["Resources"], worker)
        if needed:
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked = remote.options(scheduling_strategy=strategy).remote(needed, seconds - MARGIN)
            waiting[asked] = name
    found = {"the driver": problems_here(places, seconds - MARGIN)}
    while waiting:
        spent = time.monotonic() - begun
        if spent > START_SECONDS or (spent > seconds and any(found.values())):
            break
        done, _ = ray.wait(list(waiting), timeout=0.5)
        for task in done:
            found[waiting.pop(task)] = _answer(task)
    if not any(found.values()):
        late = f"no answer within {START_SECONDS:g} s: look whether the node is overloaded"
        found |= {name: [s3.TransientProblem(late)] for name in waiting.values()}
    for task in waiting:
        ray.cancel(task, force=True)
    return found


def _answer(task: Any) -> list[str]:
    try:
        return list(ray.get(task))
    except (NodeDiedError, TaskUnschedulableError):
        return []  # it has left the cluster in the meantime
    except RayError as error:
        return [
            s3.TransientProblem(
                f"the check did not run ({one_line(error)}): look at the node's logs"
            )
        ]


def _needed(
    places: Places, resources: Mapping[str, float], worker: Mapping[str, float]
) -> dict[str, tuple[str, Collection[str]]]:
    """What a node will use of the places."""
    if not resources.get("CPU"):
        return {}
    hosts_workers = all(resources.get(name, 0) >= amount for name, amount in worker.items())
    return {
        name: (uri, actions)
        for name, (uri, actions) in places.items()
        # Data tasks list and read; an object that is only read has weights, for workers.
        if hosts_workers or ("list" in actions and "write" not in actions)
    }


def _named(nodes: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Living nodes by name; by part of their ids too where several have the same name."""
    alive = [node for node in nodes if node["Alive"]]
    names = [node.get("NodeName") or node["NodeManagerAddress"] for node in alive]
    times = Counter(names)
    return {
        f"node {name}" + (f" ({node['NodeID'][:8]})" if times[name] > 1 else ""): node
        for name, node in zip(names, alive, strict=True)
    }


def _few(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
