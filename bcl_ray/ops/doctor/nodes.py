"""The checks of `machine`, run by a task on every node; for a process that reaches Ray."""

import time
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bcl_ray.machine.errors import UserError
from bcl_ray.ops.doctor.finding import Finding, run_check
from bcl_ray.ops.doctor.machine import examine
from bcl_ray.ray_runtime import node_groups
from bcl_ray.ray_runtime.connection import Resources, connected, one_line

TASK_SECONDS = 80.0  # for the start of a task, and its checks, which take 57 s at most


def examine_nodes(store: str | None, mlflow: str | None) -> Iterator[Finding]:
    """Findings of every living node, the head included, in the order in which they answer.

    Args:
        store: s3:// URI, or None.
        mlflow: Tracking URI, or None.
    """
    with connected() as resources:
        yield run_check("autoscaler", "cluster", lambda: check_autoscaler(resources))
        task = ray.remote(num_cpus=0, max_retries=0)(_examine)
        waiting = {}
        for node in ray.nodes():
            if node["Alive"]:
                name = node.get("NodeName") or node["NodeManagerAddress"]
                strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                pinned = task.options(scheduling_strategy=strategy)
                waiting[pinned.remote(name, store, mlflow, node["Resources"])] = name
        deadline = time.monotonic() + TASK_SECONDS
        while waiting and time.monotonic() < deadline:
            done, _ = ray.wait(list(waiting), timeout=0.5)
            for reference in done:
                yield from _findings(reference, waiting.pop(reference))
        for reference, name in waiting.items():
            ray.cancel(reference, force=True)
            text = f"ran no task in {TASK_SECONDS:g} s: look at its logs"
            yield Finding("node", name, good=False, text=text)


def check_autoscaler(resources: Resources) -> str:
    """Report how far the cluster can grow, as a run sees it.

    Raises:
        ValueError: There are no CPUs, and none will come.
    """
    if not resources.grows:
        if not resources.cpus:
            raise UserError("none, and no node has CPUs: no work can run, add worker nodes")
        return "none: the number of nodes is fixed"
    if not resources.limited:
        return (
            f"adds nodes, but its limit is unknown: set {node_groups.VARIABLE} on the head, or "
            "give runs their options for it"
        )
    return f"adds nodes, up to {resources.cpus:g} CPUs and {resources.gpus:g} GPUs in all"


def _examine(
    name: str, store: str | None, mlflow: str | None, resources: dict[str, float]
) -> list[Finding]:
    folder = ray.get_runtime_context().get_temp_dir()
    return list(examine(name, store, mlflow, resources, folder))


def _findings(reference: Any, name: str) -> list[Finding]:
    try:
        findings: list[Finding] = ray.get(reference)
    except RayError as error:
        text = f"the checks did not run ({one_line(error)}): look at its logs"
        return [Finding("node", name, good=False, text=text)]
    return findings
