"""A cluster in one file, which `bcl-ray cluster render` turns into other systems' files.

It holds no secret, only the names of secrets.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, Field, ValidationError, model_validator

from bcl_ray.config import Experiment, Section, Workers
from bcl_ray.parse import with_overrides
from bcl_ray.recipes import RECIPES, nearest

RUN_NAME = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"
FOLLOWS = (  # options of the job that the rest of a description decides on
    "data.path",
    "tracking.runs",
    "tracking.run",
    "tracking.uri",
    "scale.workers",
    "scale.device",
    "scale.wait_timeout",
)
KUBERNETES_NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"


def _tagged(image: str) -> str:
    tag = image.rpartition("/")[2].partition("@")[0].partition(":")[2]
    if "@sha256:" not in image and tag in ("", "latest"):
        raise ValueError(
            "must end in a tag other than latest, or in a digest: nodes that start later would run "
            "other code"
        )
    return image


def _without_user(url: str) -> str:
    address = urlsplit(url)
    if address.scheme not in ("http", "https") or not address.hostname or "@" in address.netloc:
        raise ValueError("must be an http(s):// address without a user name or password")
    return url.rstrip("/")


ImageName = Annotated[str, AfterValidator(_tagged)]
Address = Annotated[str, AfterValidator(_without_user)]
Name = Annotated[str, Field(pattern=KUBERNETES_NAME, max_length=63)]


class Image(Section):
    """What every node runs: the image of cluster/Dockerfile."""

    cpu: ImageName = Field(description="For head and data nodes: DEVICE=cpu.")
    gpu: ImageName = Field(description="For training nodes: DEVICE=gpu.")
    pull_secret: Name | None = Field(None, description="Kubernetes secret of a private registry.")


class Group(Section):
    """Nodes of one size. On Kubernetes the size is a pod's: leave room for the node's own pods."""

    cpus: int = Field(ge=1, description="CPUs of a node that Ray may use.")
    memory_gib: int = Field(ge=2, description="GiB of memory of a node; a third is for objects.")
    instance_type: str = Field(description="EC2 instance type, for `ray up`.")


class Head(Group):
    """The head: control and drivers, no Ray tasks."""

    redis: bool = Field(
        False, description="Kubernetes: keep the control store's state in Redis, beyond the head."
    )


class DataGroup(Group):
    """CPU nodes that read, decode and crop."""

    min_nodes: int = Field(0, ge=0, description="Nodes that are always there.")
    max_nodes: int = Field(ge=0, description="Most nodes, at least data.min_nodes; 0: no group.")
    spot: bool = Field(True, description="On spot capacity: a lost data task is simply repeated.")

    @model_validator(mode="after")
    def _rising(self) -> "DataGroup":
        if self.min_nodes > self.max_nodes:
            raise ValueError(
                f"data.min_nodes ({self.min_nodes}) must be at most data.max_nodes "
                f"({self.max_nodes})"
            )
        return self


class GpuGroup(Group):
    """Training nodes: a few that stay, for rank 0, and spot nodes for the other ranks."""

    gpus: int = Field(ge=0, description="GPUs of a node; 0: workers train on its CPUs.")
    steady_nodes: int = Field(
        1, ge=1, description="Most nodes off spot capacity, at least 1: rank 0 runs on one."
    )
    spot_nodes: int = Field(0, ge=0, description="Most nodes on spot capacity; 0: no such group.")


class Job(Section):
    """The training that RayJob and the sbatch script submit."""

    recipe: str = Field(description="A recipe's name.")
    overrides: tuple[str, ...] = Field((), description="Changes, each section.field=value.")
    run: str = Field(
        pattern=RUN_NAME,
        max_length=63,
        description="Name of the run: a submission that is repeated goes on with it.",
    )
    workers: Workers | tuple[Workers, Workers] = Field(
        description="Ray Train workers, or [least, most] of them; one GPU each."
    )
    retries: int = Field(3, ge=0, description="New clusters after one that failed.")
    wait_minutes: int = Field(60, ge=1, description="Longest wait for nodes before training.")
    hours: int = Field(ge=1, description="Longest time of a submission, waiting included.")
    notice_seconds: int = Field(
        90, ge=30, le=3600, description="From the notice to leave to the end of a node or driver."
    )

    @model_validator(mode="after")
    def _known(self) -> "Job":
        if self.recipe not in RECIPES:
            raise ValueError(f"job.recipe '{self.recipe}' is no recipe: {nearest(self.recipe)}")
        for override in self.overrides:
            if override.partition("=")[0].strip() in FOLLOWS:
                raise ValueError(
                    f"job.overrides must not set {override.partition('=')[0]}: it follows from "
                    "the rest of the description"
                )
        try:
            self.experiment()
        except ValueError as error:
            raise ValueError(f"job: {error}") from None
        return self

    def experiment(self) -> Experiment:
        """What the job trains."""
        return with_overrides(RECIPES[self.recipe](), [*self.overrides, self.scale])

    @property
    def scale(self) -> str:
        """The option that sets the number of workers."""
        workers = self.workers
        return f"scale.workers={workers if isinstance(workers, int) else [*workers]}"


class ObjectStore(Section):
    """Where shards, runs and MLflow artifacts are, and who may use it."""

    uri: str = Field(
        pattern=r"^(s3://[a-z0-9][a-z0-9.-]+[a-z0-9](/[^?#@\s]+)?|file://(/[\w.-]+)+)$",
        description="s3://bucket/prefix, above shards/, runs/ and mlflow/; or file:///path, a "
        "volume that all pods mount.",
    )
    region: str = Field(pattern=r"^[a-z0-9-]+$", description="Region of the bucket.")
    endpoint: Address | None = Field(None, description="A server other than AWS S3.")
    checksums: str = Field(
        "when_supported",
        pattern="^(when_supported|when_required)$",
        description="AWS_REQUEST_CHECKSUM_CALCULATION: when_required for servers that answer 411.",
    )
    role_arn: str | None = Field(
        None,
        pattern=r"^arn:aws[a-z-]*:iam::\d{12}:role/.+$",
        description="IAM role that pods take on EKS (IRSA).",
    )
    instance_profile: str | None = Field(
        None, description="IAM instance profile of worker nodes, for `ray up`."
    )
    secret: Name | None = Field(
        None, description="Kubernetes secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
    )

    @model_validator(mode="after")
    def _one_identity(self) -> "ObjectStore":
        if self.role_arn and self.secret:
            raise ValueError(
                "object_store.role_arn and object_store.secret are two identities: set one"
            )
        return self


class Tracking(Section):
    """The MLflow server."""

    uri: Address | None = Field(None, description="A server that exists; none: one of our own.")
    storage_gib: int = Field(20, ge=1, description="GiB of disk of our own server's database.")
    secret: Name | None = Field(
        None,
        description="Secret with `username` and `password` (and `session`, at random, for our own "
        "server), by which the server on Kubernetes lets clients in; none: it asks nobody.",
    )


class Queue(Section):
    """Kueue: a job starts when the whole of it fits, and not before."""

    cluster_queue: Name = Field(description="The ClusterQueue of the cluster's administrators.")
    elastic: bool = Field(
        False,
        description="Autoscaling under Kueue (ElasticJobsViaWorkloadSlices); else sizes are fixed.",
    )


class Kubernetes(Section):
    """What differs from one Kubernetes cluster to another."""

    operator_namespace: Name = Field("ray-system", description="Where the KubeRay operator runs.")
    storage_class: Name | None = Field(None, description="Of the database; none: the default.")
    steady_selector: dict[str, str] = Field({}, description="Labels of nodes that stay.")
    spot_selector: dict[str, str] = Field({}, description="Labels of spot nodes.")
    spot_taint: str | None = Field(None, description="Key of the taint of spot nodes, if any.")


class Aws(Section):
    """What `ray up` needs beside the node groups."""

    image_id: str = Field(
        "latest_dlami", description="AMI with Docker and the NVIDIA runtime; must be the region's."
    )
    ssh_user: str = Field("ubuntu", description="The AMI's user.")
    security_group_ids: tuple[str, ...] = Field(
        min_length=1,
        description="Yours, for Ray's own lets SSH in from everywhere: all traffic within the "
        "group, SSH from you alone.",
    )
    head_instance_profile: str = Field(
        description="IAM instance profile of the head, which starts and ends the other nodes."
    )
    subnet_ids: tuple[str, ...] = Field((), description="Subnets; none: those of the default VPC.")
    disk_gib: int = Field(200, ge=50, description="GiB of disk of a node.")
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
            raise ValueError(
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
            raise ValueError(
                f"slurm.gres ({self.gres}) asks for {asked} GPUs, slurm.gpus_per_node is "
                f"{self.gpus_per_node}: change one of them"
            )
        return self


class Description(Section):
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
    object_store: ObjectStore
    tracking: Tracking = Tracking()
    queue: Queue | None = None
    kubernetes: Kubernetes = Kubernetes()
    aws: Aws | None = None
    slurm: Slurm | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "Description":
        if tuple(int(part) for part in self.ray_version.split(".")) < (2, 52, 0):
            raise ValueError(
                f"ray_version ({self.ray_version}) must be at least 2.52.0: older ones have no "
                "token authentication"
            )
        wanted = self.job.experiment().scale.min_workers
        places = self.gpu.gpus or self.gpu.cpus
        room = places * (self.gpu.steady_nodes + self.gpu.spot_nodes)
        if wanted > room:
            raise ValueError(
                f"job.workers ({wanted}) is more than gpu.steady_nodes and "
                f"gpu.spot_nodes have room for ({room}): raise one of them"
            )
        if self.slurm and self.slurm.gpus_per_node:
            room = self.slurm.nodes * self.slurm.gpus_per_node
            if wanted > room:
                raise ValueError(
                    f"job.workers ({wanted}) is more than slurm.nodes times "
                    f"slurm.gpus_per_node ({room}): raise one of them"
                )
        return self


def read(path: Path) -> Description:
    """A description from a YAML file.

    Raises:
        ValueError: the file cannot be read or is no YAML, or naming the first wrong field, its
            value and the rule.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"{path}: {str(error.strerror).lower()}; name a description with --description"
        ) from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must be a YAML mapping, got {type(content).__name__}")
    try:
        return Description.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{path}: {_first(error)}") from None


def _first(error: ValidationError) -> str:
    """Pydantic's first complaint in one line."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    name = ".".join(path)
    if first["type"] == "extra_forbidden":
        known = _fields(path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
        return f"no field '{name}'; {hint}"
    if first["type"] == "missing":
        return f"field '{name}' is missing"
    message = first["msg"].removeprefix("Value error, ")
    shown = "" if "@" in str(first["input"]) else f"={first['input']}"  # it may hold a password
    if first["type"] == "value_error":  # ours; those that compare fields name them
        compares = message.startswith(tuple(Description.model_fields))
        return message if compares else f"{name}{shown} {message}"
    return f"{name}{shown}: {message[0].lower()}{message[1:]}"


def _fields(path: list[str]) -> list[str]:
    section: Any = Description
    for part in path:
        annotation = section.model_fields[part].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        section = next(option for option in options if hasattr(option, "model_fields"))
    return list(section.model_fields)
