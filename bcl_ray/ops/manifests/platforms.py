"""The sections of a description that concern one platform: Kubernetes, EC2 or Slurm."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from bcl_ray.experiment.options import Section
from bcl_ray.machine.errors import UserError
from bcl_ray.ops.manifests.sections import Name

INLINE_PASSWORD = re.compile(r"\s(-p|--password)[\s=]")


class Dns(Section):
    """The cluster's DNS, which network policies let pods reach."""

    namespace: Name = Field(
        "kube-system", description="Namespace of the DNS pods; on OpenShift openshift-dns."
    )
    ports: tuple[int, ...] = Field(
        (53,), min_length=1, description="Ports of the DNS pods themselves; on OpenShift 5353."
    )
    local_address: str | None = Field(
        None,
        pattern=r"^\d+(\.\d+){3}$",
        description="IP address of NodeLocal DNSCache if it runs, usually 169.254.20.10.",
    )


class Kubernetes(Section):
    """What differs from one Kubernetes cluster to another."""

    operator_namespace: Name = Field("ray-system", description="Namespace of the KubeRay operator.")
    storage_class: Name | None = Field(
        None, description="Storage class of the databases' volumes; none: the cluster's default."
    )
    scratch_class: Name | None = Field(
        None,
        description="Storage class of volumes for temporary files; none: the nodes' own disks.",
    )
    steady_selector: dict[str, str] = Field({}, description="Labels of nodes off spot capacity.")
    spot_selector: dict[str, str] = Field({}, description="Labels of spot nodes.")
    spot_taint: str | None = Field(None, description="Key of the taint of spot nodes, if any.")
    services_selector: dict[str, str] = Field(
        {}, description="Labels of nodes for MLflow, PostgreSQL, Redis and submitters."
    )
    dns: Dns = Field(Dns(), description="The cluster's DNS.")
    monitoring_namespace: Name | None = Field(
        None,
        description="Namespace of Prometheus, which then may read Ray's metrics. A PodMonitor, "
        "which needs the Prometheus operator, and a Grafana dashboard are rendered.",
    )
    monitoring_labels: dict[str, str] = Field(
        {}, description="Labels by which that Prometheus finds PodMonitors, such as a release."
    )


def _without_password(line: str) -> str:
    if INLINE_PASSWORD.search(line):
        raise UserError("must not hold a password: use --password-stdin")
    return line


class Aws(Section):
    """What `ray up` on EC2 needs in addition to the node groups."""

    image_id: str = Field(
        pattern=r"^ami-[0-9a-f]{8,17}$",
        description="AMI of the region with Docker, the NVIDIA container toolkit, the AWS CLI and "
        "an NVIDIA driver for the CUDA version of the image's PyTorch.",
    )
    ssh_user: str = Field("ubuntu", description="The AMI's user.")
    root_device: str = Field("/dev/sda1", description="The AMI's root device.")
    login: tuple[Annotated[str, AfterValidator(_without_password)], ...] = Field(
        (),
        description="Shell lines by which a node logs in to the image's registry; none for ECR, "
        "which accepts the instance profile.",
    )
    security_group_ids: tuple[str, ...] = Field(
        min_length=1,
        description="Security groups that allow all traffic between the nodes, and SSH only from "
        "your machine. (Ray's own group allows SSH from everywhere.)",
    )
    head_instance_profile: str = Field(
        description="IAM instance profile of the head, which starts and ends the other nodes."
    )
    subnet_ids: tuple[str, ...] = Field((), description="Subnets; none: those of the default VPC.")
    system_gib: int = Field(
        100, ge=30, description="GiB of disk for the AMI and the image, added to `scratch_gib`."
    )
    idle_minutes: int = Field(10, ge=1, description="Minutes after which an idle node ends.")


class Slurm(Section):
    """A Slurm allocation of equal nodes, and the settings of a site."""

    nodes: int = Field(ge=1, description="Nodes of the allocation.")
    gpus_per_node: int = Field(ge=0, description="GPUs of a node; 0: workers train on CPUs.")
    folder: str = Field(
        pattern=r"^/[^\s'\"$`\\]+$",
        description="Folder that all nodes mount; it contains shards/ and runs/.",
    )
    setup: tuple[str, ...] = Field(
        (), description="Shell lines that put `bcl-ray` onto the path of every node."
    )
    wait_seconds: int = Field(
        600, ge=60, description="Longest wait for all nodes to join, in seconds."
    )
    partition: str | None = Field(
        None, pattern=r"^[\w.,-]+$", description="Partition (sbatch --partition)."
    )
    account: str | None = Field(
        None, pattern=r"^[\w.-]+$", description="Account (sbatch --account)."
    )
    qos: str | None = Field(
        None, pattern=r"^[\w.-]+$", description="Quality of service (sbatch --qos)."
    )
    constraint: str | None = Field(
        None,
        pattern=r"^[^\s'\"$`\\#]+$",
        description="Required features of nodes, such as a100&ib (sbatch --constraint).",
    )
    reservation: str | None = Field(
        None, pattern=r"^[\w.,-]+$", description="Reservation (sbatch --reservation)."
    )
    gres: str | None = Field(
        None,
        pattern=r"^[\w.,:-]+$",
        description="GPUs for --gres, such as gpu:a100:4; none: --gpus-per-node is used.",
    )
    exclusive: bool = Field(
        True,
        description="Whole nodes; false: shared nodes, of which the job gets cpus_per_node CPUs.",
    )
    cpus_per_node: int | None = Field(
        None, ge=1, description="CPUs of a node for Ray; none: all CPUs of a whole node."
    )
    memory_gib: int | None = Field(
        None,
        ge=2,
        description="GiB of a node's memory; none: all memory of a whole node, or the site's "
        "default for a shared node.",
    )
    lines: tuple[Annotated[str, Field(pattern=r"^--?[a-zA-Z][^\n]*$")], ...] = Field(
        (), description="Further options of sbatch, such as --licenses=scratch."
    )
    interface: str | None = Field(
        None,
        pattern=r"^[\w.:-]+$",
        description="Network interface of Ray, NCCL and Gloo, such as ib0; none: the one with "
        "the route to the other nodes (NCCL chooses its own).",
    )
    tmp: str = Field(
        "/tmp",  # noqa: S108
        pattern=r"^(/[\w.-]+)+$",
        max_length=24,
        description="Folder on each node's own disk, for Ray's logs, sockets and spilled objects; "
        "short, because a socket's path has at most 107 characters.",
    )
    container: str = Field(
        "",
        pattern=r"^[^\n]*$",
        description="Words between `srun` and the command: `apptainer exec --nv IMAGE`, or options "
        "such as --container-image=IMAGE. The container must mount `folder` and `tmp`.",
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
        resources = [part.split(":") for part in self.gres.split(",")]  # gpu, gpu:2, gpu:a100:2
        counts = [words[-1] for words in resources if words[0] == "gpu"]
        gpus = sum(int(count) if count.isdigit() else 1 for count in counts)
        if gpus != self.gpus_per_node:
            raise UserError(
                f"slurm.gres ({self.gres}) asks for {gpus} GPUs, slurm.gpus_per_node is "
                f"{self.gpus_per_node}: change one of them"
            )
        return self
