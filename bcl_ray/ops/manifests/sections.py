"""The sections of a description that concern every cluster: images, nodes, storage, MLflow."""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from bcl_ray.experiment.options import ScaleConfig, Section
from bcl_ray.machine.errors import UserError

KUBERNETES_NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
ROLE_ARN = r"^arn:aws[a-z-]*:iam::\d{12}:role/.+$"


def _check_tag(image: str) -> str:
    tag = image.rpartition("/")[2].partition("@")[0].partition(":")[2]
    if "@sha256:" not in image and tag in ("", "latest"):
        raise UserError(
            "must end in a tag other than latest, or in a digest: otherwise nodes that start later "
            "could run other code"
        )
    return image


def _check_address(url: str) -> str:
    address = urlsplit(url)
    if address.scheme not in ("http", "https") or not address.hostname or "@" in address.netloc:
        raise UserError("must be an http(s):// address without a user name or password")
    return url.rstrip("/")


ImageName = Annotated[str, AfterValidator(_check_tag)]
Address = Annotated[str, AfterValidator(_check_address)]
Name = Annotated[str, Field(pattern=KUBERNETES_NAME, max_length=63)]
RoleArn = Annotated[str, Field(pattern=ROLE_ARN)]


class Image(Section):
    """The container images, built from cluster/Dockerfile."""

    cpu: ImageName = Field(description="Image of head and data nodes, built with DEVICE=cpu.")
    gpu: ImageName = Field(description="Image of training nodes, built with DEVICE=gpu.")
    pull_secret: Name | None = Field(None, description="Kubernetes secret of a private registry.")


class NodeSize(Section):
    """What each node of a group has.

    On Kubernetes this is the size of a pod, which must leave room for the node's own pods.
    """

    cpus: int = Field(ge=1, description="CPUs of a node that Ray may use.")
    memory_gib: int = Field(
        ge=2, description="GiB of a node's memory; a third of it is for Ray's object store."
    )
    instance_type: str = Field(description="EC2 instance type, for `ray up`.")
    scratch_gib: int = Field(
        50,
        ge=5,
        description="GiB of a node's disk for temporary files: Ray's logs and spilled objects.",
    )

    @property
    def shared_memory_gib(self) -> int:
        """GiB of shared memory, which holds Ray's object store."""
        return max(1, self.memory_gib // 3)

    @property
    def object_store_bytes(self) -> int:
        """Bytes of Ray's object store: a little less than the shared memory."""
        return self.shared_memory_gib * 2**30 * 9 // 10


class Head(NodeSize):
    """The head, which runs Ray's control store and drivers but no tasks."""

    redis: bool = Field(
        False,
        description="Kubernetes: keep the control store's state in Redis, so that it outlives the "
        "head.",
    )


class DataGroup(NodeSize):
    """CPU nodes that read, decode and crop images."""

    min_nodes: int = Field(0, ge=0, description="Nodes that always run.")
    max_nodes: int = Field(
        ge=0, description="Most nodes, at least data.min_nodes; 0: no such group."
    )
    spot: bool = Field(
        True, description="Whether they use spot capacity; the tasks of a lost node are repeated."
    )

    @model_validator(mode="after")
    def _min_below_max(self) -> "DataGroup":
        if self.min_nodes > self.max_nodes:
            raise UserError(
                f"data.min_nodes ({self.min_nodes}) must be at most data.max_nodes "
                f"({self.max_nodes})"
            )
        return self


class GpuGroup(NodeSize):
    """Training nodes: steady ones, one of them for rank 0, and spot nodes for the other ranks."""

    gpus: int = Field(ge=0, description="GPUs of a node; 0: workers train on its CPUs.")
    steady_nodes: int = Field(
        1, ge=1, description="Most nodes off spot capacity, at least 1: rank 0 runs on one of them."
    )
    spot_nodes: int = Field(0, ge=0, description="Most nodes on spot capacity; 0: no such group.")

    def workers_per_node(self, scale: ScaleConfig) -> int:
        """Number of workers for which a node has room: one on each GPU, or on its CPUs."""
        return self.gpus or int(self.cpus / scale.cpus_per_worker + 1e-6)  # 4 // 0.1 is 39


class Roles(Section):
    """IAM roles on EKS (IRSA), one for each kind of pod; their policies are rendered."""

    head: RoleArn = Field(description="Role of the head's pod; its policy is policies/head.json.")
    worker: RoleArn = Field(
        description="Role of data and training pods; its policy is policies/worker.json."
    )
    mlflow: RoleArn = Field(
        description="Role of the rendered MLflow server; its policy is policies/mlflow.json."
    )


class ObjectStore(Section):
    """Where shards, runs and MLflow artifacts are, and how nodes get access."""

    uri: str = Field(
        pattern=r"^(s3://[a-z0-9][a-z0-9.-]+[a-z0-9](/[^?#@\s]+)?|file://(/[\w.-]+)+)$",
        description="s3://bucket/prefix, which contains shards/, runs/, predictions/ and mlflow/; "
        "or file:///path, a volume that all pods mount.",
    )
    sources: tuple[Annotated[str, Field(pattern=r"^s3://[^?#@\s]+$")], ...] = Field(
        (), description="s3://bucket/prefix of images in other locations, which are only read."
    )
    storage_gib: int = Field(
        20, ge=1, description="GiB of the volume of a file:// `uri`: shards, runs and predictions."
    )
    region: str = Field(pattern=r"^[a-z0-9-]+$", description="Region of the bucket.")
    endpoint: Address | None = Field(
        None, description="Address of the server; none: AWS S3 of the region."
    )
    checksums: str = Field(
        "when_supported",
        pattern="^(when_supported|when_required)$",
        description="AWS_REQUEST_CHECKSUM_CALCULATION; when_required for servers that answer 411.",
    )
    roles: Roles | None = Field(None, description="IAM roles of pods on EKS (IRSA).")
    instance_profile: str | None = Field(
        None, description="IAM instance profile of worker nodes, for `ray up`."
    )
    secret: Name | None = Field(
        None, description="Kubernetes secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
    )

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which boto3 and pyarrow find the store; they do not hold its keys."""
        if not self.uri.startswith("s3://"):
            return {}
        return {
            "AWS_REGION": self.region,
            **({"AWS_ENDPOINT_URL": self.endpoint} if self.endpoint else {}),
            "AWS_REQUEST_CHECKSUM_CALCULATION": self.checksums,
        }

    @property
    def shared_folder(self) -> str | None:
        """Folder at which pods mount the shared volume; None if the files are in S3."""
        return self.uri.removeprefix("file://") if self.uri.startswith("file://") else None

    @model_validator(mode="after")
    def _one_identity(self) -> "ObjectStore":
        if self.roles and self.secret:
            raise UserError(
                "object_store.roles and object_store.secret are two identities: set one"
            )
        if self.roles and self.shared_folder:
            raise UserError(
                f"object_store.roles need object_store.uri ({self.uri}) to be s3://, to which "
                "their policies give access: leave object_store.roles out"
            )
        return self


class Tracking(Section):
    """The MLflow server."""

    uri: Address | None = Field(
        None, description="Address of an existing server; none: a server is rendered."
    )
    storage_gib: int = Field(
        20, ge=1, description="GiB of disk for the database of the rendered server."
    )
    secret: Name | None = Field(
        None,
        description="Kubernetes secret with `username` and `password` of the account of Ray's "
        "pods; none: the rendered server asks nobody for a password.",
    )
    admin_secret: Name = Field(
        "mlflow-admin",
        description="Secret with `username`, `password` and `session` (random text) of the "
        "rendered server's administrator, used if `secret` is set; Ray's pods do not get it.",
    )

    @model_validator(mode="after")
    def _two_accounts(self) -> "Tracking":
        if self.secret == self.admin_secret:
            raise UserError(
                f"tracking.secret ({self.secret}) must not be tracking.admin_secret: clients need "
                "an account of their own"
            )
        return self


class Queue(Section):
    """Kueue, which starts a job only when the whole job fits."""

    cluster_queue: Name = Field(
        description="Name of the ClusterQueue that the cluster's administrators have made."
    )
    elastic: bool = Field(
        False,
        description="Whether Kueue allows autoscaling (ElasticJobsViaWorkloadSlices); otherwise "
        "sizes are fixed.",
    )
