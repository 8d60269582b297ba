"""A cluster in one file, which `bcl-ray cluster render` turns into other systems' files.

It holds no secret, only the names of secrets.
"""

import re
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from bcl_ray.experiment.options import Section
from bcl_ray.machine.errors import UserError
from bcl_ray.ops.manifests.jobs import Job, Jobs
from bcl_ray.ops.manifests.sections import (
    DataGroup,
    GpuGroup,
    Head,
    Image,
    Name,
    ObjectStore,
    Queue,
    Tracking,
)

INLINE_PASSWORD = re.compile(r"\s(-p|--password)[\s=]")


class Dns(Section):
    """Where pods ask for names, so that network policies let them."""

    namespace: Name = Field("kube-system", description="Of the DNS pods; OpenShift: openshift-dns.")
    ports: tuple[int, ...] = Field(
        (53,), min_length=1, description="Of the DNS pods themselves; OpenShift: 5353."
    )
    local_address: str | None = Field(
        None,
        pattern=r"^\d+(\.\d+){3}$",
        description="IP of NodeLocal DNSCache where it runs, most often 169.254.20.10.",
    )


class Kubernetes(Section):
    """What differs from one Kubernetes cluster to another."""

    operator_namespace: Name = Field("ray-system", description="Where the KubeRay operator runs.")
    storage_class: Name | None = Field(None, description="Of the database; none: the default.")
    scratch_class: Name | None = Field(
        None,
        description="Storage class of volumes for temporary files; none: the nodes' own disks.",
    )
    steady_selector: dict[str, str] = Field({}, description="Labels of nodes that stay.")
    spot_selector: dict[str, str] = Field({}, description="Labels of spot nodes.")
    spot_taint: str | None = Field(None, description="Key of the taint of spot nodes, if any.")
    services_selector: dict[str, str] = Field(
        {}, description="Labels of nodes for MLflow, PostgreSQL, Redis and submitters."
    )
    dns: Dns = Field(Dns(), description="Where pods ask for names.")
    monitoring_namespace: Name | None = Field(
        None, description="Namespace of Prometheus, which may then read Ray's metrics."
    )


def _without_password(line: str) -> str:
    if INLINE_PASSWORD.search(line):
        raise UserError("must not hold a password: give it by --password-stdin")
    return line


class Aws(Section):
    """What `ray up` needs beside the node groups."""

    image_id: str = Field(
        pattern=r"^ami-[0-9a-f]{8,17}$",
        description="AMI of the region with Docker, the NVIDIA container toolkit, the AWS CLI and "
        "an NVIDIA driver for the CUDA of the image's PyTorch.",
    )
    ssh_user: str = Field("ubuntu", description="The AMI's user.")
    root_device: str = Field("/dev/sda1", description="The AMI's root device.")
    login: tuple[Annotated[str, AfterValidator(_without_password)], ...] = Field(
        (),
        description="Shell lines by which a node logs in to the image's registry; none for ECR, "
        "which takes the instance profile.",
    )
    security_group_ids: tuple[str, ...] = Field(
        min_length=1,
        description="Yours, for Ray's own lets SSH in from everywhere: all traffic within the "
        "group, SSH from you alone.",
    )
    head_instance_profile: str = Field(
        description="IAM instance profile of the head, which starts and ends the other nodes."
    )
    subnet_ids: tuple[str, ...] = Field((), description="Subnets; none: those of the default VPC.")
    system_gib: int = Field(
        100, ge=30, description="GiB of disk for the AMI and the image, beside `scratch_gib`."
    )
    idle_minutes: int = Field(10, ge=1, description="Minutes until an idle node ends.")


class Slurm(Section):
    """The allocation, of nodes that are alike, and what a site has of its own."""

    nodes: int = Field(ge=1, description="Nodes of the allocation.")
    gpus_per_node: int = Field(ge=0, description="GPUs of a node; 0: workers train on CPUs.")
    folder: str = Field(
        pattern=r"^/[^\s'\"$`\\]+$", description="Folder that all nodes mount: shards/, runs/."
    )
    setup: tuple[str, ...] = Field(
        (), description="Shell lines that bring `bcl-ray` onto the path of every node."
    )
    wait_seconds: int = Field(600, ge=60, description="Longest wait for all nodes to join.")
    partition: str | None = Field(None, pattern=r"^[\w.,-]+$", description="Partition.")
    account: str | None = Field(None, pattern=r"^[\w.-]+$", description="Account.")
    qos: str | None = Field(None, pattern=r"^[\w.-]+$", description="Quality of service.")
    constraint: str | None = Field(
        None, pattern=r"^[^\s'\"$`\\#]+$", description="Features of nodes, such as a100&ib."
    )
    reservation: str | None = Field(None, pattern=r"^[\w.,-]+$", description="Reservation.")
    gres: str | None = Field(
        None,
        pattern=r"^[\w.,:-]+$",
        description="GPUs by --gres in place of --gpus-per-node, such as gpu:a100:4.",
    )
    exclusive: bool = Field(
        True, description="Whole nodes; else shared ones, of which cpus_per_node are the job's."
    )
    cpus_per_node: int | None = Field(
        None, ge=1, description="CPUs of a node for Ray; none: all of a whole node."
    )
    memory_gib: int | None = Field(
        None,
        ge=2,
        description="GiB of a node's memory; none: all of a whole node, a site's default of a "
        "shared one.",
    )
    lines: tuple[Annotated[str, Field(pattern=r"^--?[a-zA-Z][^\n]*$")], ...] = Field(
        (), description="More options of sbatch, one a line, such as --licenses=scratch."
    )
    interface: str | None = Field(
        None,
        pattern=r"^[\w.:-]+$",
        description="Network interface of Ray, NCCL and Gloo, such as ib0; none: the one that "
        "leads to the other nodes (NCCL chooses its own).",
    )
    tmp: str = Field(
        "/tmp",  # noqa: S108
        pattern=r"^(/[\w.-]+)+$",
        max_length=24,
        description="Folder on each node's own disk, for Ray's logs, sockets and spilled objects; "
        "a socket's path has at most 107 letters.",
    )
    container: str = Field(
        "",
        pattern=r"^[^\n]*$",
        description="What goes between `srun` and the command: `apptainer exec --nv IMAGE`, or "
        "options such as --container-image=IMAGE; FOLDER and tmp must be mounted.",
    )

    @model_validator(mode="after")
    def _whole_or_shared(self) -> "Slurm":
        if not self.exclusive and self.cpus_per_node is None:
            raise UserError(
                "slurm.exclusive=false needs slurm.cpus_per_node: Slurm would give the job one CPU "
                "of each shared node"
            )
        return self

    @model_validator(mode="after")
    def _gpus_agree(self) -> "Slurm":
        if self.gres is None:
            return self
        kinds = [part.split(":") for part in self.gres.split(",")]  # gpu, gpu:2 or gpu:a100:2
        counts = [kind[-1] for kind in kinds if kind[0] == "gpu"]
        asked = sum(int(count) if count.isdigit() else 1 for count in counts)
        if asked != self.gpus_per_node:
            raise UserError(
                f"slurm.gres ({self.gres}) asks for {asked} GPUs, slurm.gpus_per_node is "
                f"{self.gpus_per_node}: change one of them"
            )
        return self


class ClusterDescription(Section):
    """One cluster, wherever it runs."""

    name: str = Field(
        pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$",
        max_length=40,
        description="Of the cluster and its namespace; KubeRay's own names add up to 13 letters.",
    )
    ray_version: str = Field(pattern=r"^\d+\.\d+\.\d+$", description="Ray's, in the image.")
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
        wanted = self.job.experiment().scale.min_workers
        places = self.gpu.gpus or self.gpu.cpus
        room = places * (self.gpu.steady_nodes + self.gpu.spot_nodes)
        if wanted > room:
            raise UserError(
                f"job.workers ({wanted}) is more than gpu.steady_nodes and "
                f"gpu.spot_nodes have room for ({room}): raise one of them"
            )
        if self.slurm and self.slurm.gpus_per_node:
            room = self.slurm.nodes * self.slurm.gpus_per_node
            if wanted > room:
                raise UserError(
                    f"job.workers ({wanted}) is more than slurm.nodes times "
                    f"slurm.gpus_per_node ({room}): raise one of them"
                )
        return self
