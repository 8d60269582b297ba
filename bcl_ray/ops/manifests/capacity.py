"""The machines of a description that a run would use, for a forecast."""

import math

from bcl_ray.experiment.options import Experiment
from bcl_ray.machine.errors import UserError
from bcl_ray.ops.manifests.description import ClusterDescription
from bcl_ray.runs.limits import Machines
from bcl_ray.runs.rates import CPU, GPUS


def machines_of(
    description: ClusterDescription,
    experiment: Experiment,
    gpu: str | None = None,
    price: float | None = None,
) -> Machines:
    """All data nodes of a description, and as many training nodes as a run's workers need.

    Args:
        description: The cluster.
        experiment: The run; an elastic one has its most workers.
        gpu: Key of `rates.GPUS`; None for the GPU of the description's instance type.
        price: $ an hour and device; None for an assumption.

    Raises:
        UserError: The cluster has no room for the workers, or its GPU is unknown.
    """
    group, data = description.gpu, description.data
    workers, scale = experiment.scale.max_workers, experiment.scale
    per_node = group.workers_per_node(scale)
    most = per_node * (group.steady_nodes + group.spot_nodes)
    if workers > most:
        raise UserError(
            f"scale.workers ({workers}) is more than gpu.steady_nodes and gpu.spot_nodes of the "
            f"description have room for ({most}): raise one of them, or lower scale.workers"
        )
    nodes = math.ceil(workers / per_node)
    data_cpus = float(data.cpus * data.max_nodes)
    object_store_bytes = nodes * group.object_store_bytes + data.max_nodes * data.object_store_bytes
    return Machines(
        device=(gpu or _gpu_of(group.instance_type)) if group.gpus else CPU,
        workers=workers,
        worker_nodes=nodes,
        data_nodes=data.max_nodes,
        cpus=nodes * group.cpus + data_cpus,
        data_node_cpus=data_cpus,
        store_bytes=object_store_bytes,
        price=price,
    )


def _gpu_of(instance_type: str) -> str:
    family = instance_type.partition(".")[0]
    for name, gpu in GPUS.items():
        if family in gpu.instances:
            return name
    raise UserError(
        f"gpu.instance_type '{instance_type}' is none whose GPU is known here: name the GPU with "
        f"--gpu ({', '.join(GPUS)})"
    )
