"""The description of a cluster, from which `bcl-ray cluster render` writes other systems' files.

A description holds no secrets, only their names.
"""

from pydantic import Field, model_validator

from bcl_ray.experiment.options import Section
from bcl_ray.machine.errors import UserError
from bcl_ray.ops.manifests.job_sections import Job, Jobs
from bcl_ray.ops.manifests.platforms import Aws, Kubernetes, Slurm
from bcl_ray.ops.manifests.sections import (
    DataGroup,
    GpuGroup,
    Head,
    Image,
    ObjectStore,
    Queue,
    Tracking,
)


class ClusterDescription(Section):
    """One cluster, wherever it runs."""

    name: str = Field(
        pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$",
        max_length=40,
        description="Name of the cluster and of its namespace; KubeRay appends up to 13 "
        "characters.",
    )
    ray_version: str = Field(pattern=r"^\d+\.\d+\.\d+$", description="Version of Ray in the image.")
    image: Image
    head: Head
    data: DataGroup
    gpu: GpuGroup
    job: Job
    jobs: Jobs = Jobs()
    object_store: ObjectStore
    tracking: Tracking = Tracking()
    queue: Queue | None = None
    kubernetes: Kubernetes = Kubernetes()
    aws: Aws | None = None
    slurm: Slurm | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "ClusterDescription":
        if tuple(int(part) for part in self.ray_version.split(".")) < (2, 52, 0):
            raise UserError(
                f"ray_version ({self.ray_version}) must be at least 2.52.0: older ones have no "
                "token authentication"
            )
        scale, nodes = self.job.experiment().scale, self.gpu.steady_nodes + self.gpu.spot_nodes
        workers, capacity = scale.min_workers, self.gpu.workers_per_node(scale) * nodes
        if workers > capacity:
            raise UserError(
                f"job.workers ({workers}) is more than gpu.steady_nodes and "
                f"gpu.spot_nodes have room for ({capacity}): raise one of them"
            )
        return self
