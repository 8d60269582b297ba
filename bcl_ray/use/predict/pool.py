"""The actors that run the network: how many there are, and the wait for their nodes."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from bcl_ray.machine.errors import FailedError, UserError
from bcl_ray.ray_runtime import node_groups
from bcl_ray.ray_runtime.autoscaler import Demand, wait_for_nodes
from bcl_ray.ray_runtime.connection import Resources
from bcl_ray.ray_runtime.elastic import usable_nodes

# Without GPUs, an actor and the task that reads for it share a CPU, so that CPUs are left for
# reading.
READER_CPU_SHARE = 0.25
# Reading tasks for a GPU at once, at most. A CPU decodes about 400 images a second (measured
# 2026-11), and a GPU labels a few thousand.
READERS_PER_GPU = 16


class PredictionError(FailedError):
    """A prediction failed after it had begun; the parts that are written stay."""


@dataclass(frozen=True)
class ActorPool:
    """Actors that run the network, and the tasks that read images for them."""

    actors: int  # at most
    actor: dict[str, float]  # resources of one actor
    reader: dict[str, float]  # resources of one reading task
    readers: int  # reading tasks for one actor at once, at most

    def max_readers(self, actors: int, cpus: float) -> int:
        """The number of reading tasks at once.

        More of them would wait for CPUs, and an autoscaler would add nodes for them.

        Args:
            actors: Actors that have started.
            cpus: CPUs of the present nodes.
        """
        room = (cpus - actors * self.actor["CPU"]) / self.reader["CPU"]
        return max(1, min(actors * self.readers, int(room)))

    @property
    def device(self) -> str:
        """The devices of the network, in words."""
        return f"{self.actors} {'GPUs' if 'GPU' in self.actor else 'CPUs'}"

    def shortage(self) -> str:
        """What the cluster lacks for one actor and one reader, in words; "" if it has enough."""
        nodes = usable_nodes().values()
        needed = {**self.actor, "CPU": self.actor["CPU"] + self.reader["CPU"]}
        available = {name: sum(node.get(name, 0.0) for node in nodes) for name in needed}
        return "; ".join(
            f"{amount:g} {name}, and there are {available[name]:g}"
            for name, amount in needed.items()
            if available[name] < amount
        )


def plan_pool(
    resources: Resources, batches: int, max_gpus: int | None, max_cpus: int | None
) -> ActorPool:
    """As many actors as the cluster has room for, on GPUs if it has any, else on CPUs.

    Args:
        resources: Resources of the cluster; for one that grows, those of its largest size.
        batches: Number of batches to label.
        max_gpus: GPUs to use at most, 0 for none; None: all.
        max_cpus: CPUs to use at most, if no GPU is used; None: all.

    Raises:
        ValueError: An option is out of range, or the cluster grows without a known limit.
    """
    for option, value, minimum in (("--gpus", max_gpus, 0), ("--cpus", max_cpus, 1)):
        if value is not None and value < minimum:
            raise UserError(f"{option} ({value}) must be at least {minimum}")
    if (max_gpus or 0) > resources.gpus:
        raise UserError(
            f"--gpus ({max_gpus}) is more than the cluster can have ({resources.gpus:g})"
        )
    gpus = resources.gpus if max_gpus is None else max_gpus
    cpus = resources.cpus if max_cpus is None else min(resources.cpus, max_cpus)
    if math.isinf(gpus or cpus):
        raise UserError(
            "the cluster grows, and its largest size is not known: give "
            f"{'--gpus' if gpus else '--cpus'}, or set {node_groups.VARIABLE} on its head"
        )
    if int(gpus):
        actor = {"CPU": READER_CPU_SHARE, "GPU": 1.0}
        return ActorPool(min(int(gpus), batches), actor, {"CPU": 1.0}, READERS_PER_GPU)
    actor, reader = {"CPU": 1 - READER_CPU_SHARE}, {"CPU": READER_CPU_SHARE}
    return ActorPool(max(1, min(int(cpus), batches)), actor, reader, 1)


def request_nodes(
    pool: ActorPool, demand: Demand, seconds: float, notify: Callable[[str], None]
) -> None:
    """Request nodes for all actors and readers, and wait until there is room for one of each.

    Args:
        pool: The actors and readers.
        demand: The request to the autoscaler.
        seconds: The longest time to wait, scale.wait_timeout of the model.
        notify: Called with messages for the user.

    Raises:
        PredictionError: The nodes did not come in time.
    """
    demand.request([pool.actor] * pool.actors + [pool.reader] * pool.actors)
    if not wait_for_nodes(pool.shortage, seconds, notify):
        raise PredictionError(
            f"the nodes did not come within the model's scale.wait_timeout ({seconds:g} s): it "
            f"needs {pool.shortage()}; see `ray status` on the head"
        )
