"""The same checks on every node, by a task on each; runs where Ray can be reached: in a job."""

import time
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bcl_ray.machine.errors import UserError
from bcl_ray.ops.doctor.finding import Finding, look
from bcl_ray.ops.doctor.machine import examine
from bcl_ray.ray_runtime import node_groups
from bcl_ray.ray_runtime.connection import Resources, connected, one_line

START_SECONDS = 60.0  # in which a node must have begun and ended a task of 37 s at most


def examine_nodes(store: str | None, mlflow: str | None) -> Iterator[Finding]:
    """What every living node finds, the head too, in the order in which they answer.

    Args:
        store: s3:// address, or None.
        mlflow: tracking URI, or None.
    """
    with connected() as resources:
        yield look("autoscaler", "cluster", lambda: growth(resources))
        task = ray.remote(num_cpus=0, max_retries=0)(_examine)
        waiting = {}
        for node in ray.nodes():
            if node["Alive"]:
                name = node.get("NodeName") or node["NodeManagerAddress"]
                place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                asked = task.options(scheduling_strategy=place)
                waiting[asked.remote(name, store, mlflow, node["Resources"])] = name
        deadline = time.monotonic() + START_SECONDS
        while waiting and time.monotonic() < deadline:
            done, _ = ray.wait(list(waiting), timeout=0.5)
            for one in done:
                yield from _answer(one, waiting.pop(one))
        for one, name in waiting.items():
            ray.cancel(one, force=True)
            yield Finding(
                "node",
                name,
                good=False,
                text=f"ran no task in {START_SECONDS:g} s: look at its logs",
            )


def growth(resources: Resources) -> str:
    """How far the cluster grows, which a run goes by.

    Raises:
        ValueError: there are no CPUs, and none will come.
    """
    if not resources.grows:
        if not resources.cpus:
            raise UserError("none, and no node has CPUs: no work can run, add worker nodes")
        return "none: the nodes are those that there are"
    if not resources.limited:
        return (
            "adds nodes, nobody says how many: set "
            f"{node_groups.VARIABLE} on the head, or give runs their options for it"
        )
    return f"adds nodes, up to {resources.cpus:g} CPUs and {resources.gpus:g} GPUs in all"


def _examine(name: str, store: str | None, mlflow: str | None, has: Any) -> list[Finding]:
    folder = ray.get_runtime_context().get_temp_dir()
    return list(examine(name, store, mlflow, has, folder))


def _answer(task: Any, name: str) -> list[Finding]:
    try:
        found: list[Finding] = ray.get(task)
    except RayError as error:
        text = f"the checks did not run ({one_line(error)}): look at its logs"
        return [Finding("node", name, good=False, text=text)]
    return found
