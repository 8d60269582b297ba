"""A file for `ray up`: head, data nodes, and training nodes on and off spot capacity."""

import re
import shlex

from bcl_ray.machine.errors import UserError
from bcl_ray.ops.manifests import policies
from bcl_ray.ops.manifests.description import Aws, ClusterDescription
from bcl_ray.ops.manifests.growth import most_nodes
from bcl_ray.ops.manifests.pods import Plain, store_variables
from bcl_ray.ops.manifests.sections import GroupSection
from bcl_ray.ray_runtime.node_groups import MARKET
from bcl_ray.tracking import mlflow_server

CUDA, LEAST_DRIVER = 13, 580  # of PyTorch in constraints.txt, and what NVIDIA asks for it
# Ends the start of a node whose driver is older, and says why.
DRIVER_CHECK = (
    "driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader -i 0); "
    f'[ "${{driver%%.*}}" -ge {LEAST_DRIVER} ] || {{ echo "NVIDIA driver \'$driver\' is not r'
    f'{LEAST_DRIVER} or later, which CUDA {CUDA} wants: set aws.image_id" >&2; exit 1; }}'
)
ECR = re.compile(r"(?P<host>\d+\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(\.cn)?)/")
HOME = "/home/ray"  # of the image's user
LIMITS = "ulimit -n 65536"


def ray_up(description: ClusterDescription) -> Plain:
    """The cluster as `ray up` takes it.

    Raises:
        ValueError: the description has no section aws, no instance profile, or files elsewhere.
    """
    aws, store = description.aws, description.object_store
    if aws is None:
        raise UserError("the description has no section aws: add aws.security_group_ids")
    if not store.instance_profile:
        raise UserError(
            "object_store.instance_profile is missing: nodes get to the object store by an IAM "
            "instance profile, for no keys are written into files"
        )
    if not store.uri.startswith("s3://"):
        raise UserError(f"object_store.uri ({store.uri}) must be s3://, for nodes share no folder")
    types = _node_types(description, aws)
    return {
        "cluster_name": description.name,
        "max_workers": sum(kind["max_workers"] for kind in types.values()),
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": aws.idle_minutes,
        "provider": {
            "type": "aws",
            "region": store.region,
            "cache_stopped_nodes": False,  # an ended node is gone, and costs nothing
        },
        "auth": {"ssh_user": aws.ssh_user},
        "docker": {
            "container_name": description.name,
            "image": description.image.cpu,
            "pull_before_run": True,
            "run_options": _run_options(description),
        },
        # The token that guards the cluster, made by `ray get-auth-token --generate` where
        # `ray up` runs; copied over SSH, never printed.
        "file_mounts": {f"{HOME}/.ray/auth_token": "~/.ray/auth_token"},
        "head_node_type": "head",
        "available_node_types": types,
        "head_start_ray_commands": _head_commands(description),
        # On the node itself, before the image is pulled.
        "initialization_commands": _login(description, aws),
        "worker_start_ray_commands": [
            "ray stop",
            f"{LIMITS}; ray start --address=$RAY_HEAD_IP:6379 --object-manager-port=8076",
        ],
    }


def _node_types(description: ClusterDescription, aws: Aws) -> dict[str, Plain]:
    data, gpu = description.data, description.gpu
    head = _type(description, aws, description.head, most=0)
    head["resources"]["CPU"] = 0  # drivers only
    head["node_config"]["IamInstanceProfile"] = {"Name": aws.head_instance_profile}
    types = {"head": head}
    groups: list[tuple[str, GroupSection, int, int, int, bool]] = [
        ("data", data, 0, data.min_nodes, data.max_nodes, data.spot),
        ("steady", gpu, gpu.gpus, 0, gpu.steady_nodes, False),
        ("spot", gpu, gpu.gpus, 0, gpu.spot_nodes, True),
    ]
    for name, group, gpus, least, most, spot in groups:
        if most:
            types[name] = _type(
                description, aws, group, gpus=gpus, least=least, most=most, spot=spot
            )
    return types


def _type(
    description: ClusterDescription,
    aws: Aws,
    group: GroupSection,
    *,
    gpus: int = 0,
    least: int = 0,
    most: int,
    spot: bool = False,
) -> Plain:
    node: Plain = {
        "InstanceType": group.instance_type,
        "ImageId": aws.image_id,
        "SecurityGroupIds": list(aws.security_group_ids),
        **({"SubnetIds": list(aws.subnet_ids)} if aws.subnet_ids else {}),
        "IamInstanceProfile": {"Name": description.object_store.instance_profile},
        "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 2},
        "BlockDeviceMappings": [
            {
                "DeviceName": aws.root_device,
                "Ebs": {
                    "VolumeSize": aws.system_gib + group.scratch_gib,
                    "VolumeType": "gp3",
                    "Encrypted": True,
                },
            }
        ],
    }
    if spot:
        node["InstanceMarketOptions"] = {
            "MarketType": "spot",
            "SpotOptions": {"InstanceInterruptionBehavior": "terminate"},
        }
    found: Plain = {
        "min_workers": least,
        "max_workers": most,
        "resources": {"CPU": group.cpus, **({"GPU": gpus} if gpus else {})},
        "labels": {MARKET: "spot" if spot else "steady"},
        "node_config": node,
    }
    if gpus:
        found["docker"] = {"worker_image": description.image.gpu}
        found["initialization_commands"] = [*_login(description, aws), DRIVER_CHECK]
    if spot:  # tells Ray of the notice of two minutes that EC2 gives
        notice = description.job.notice_seconds
        found["worker_setup_commands"] = [
            f"nohup bcl-ray-watch-spot {notice} >/tmp/watch-spot.log 2>&1 </dev/null &"
        ]
    return found


def _login(description: ClusterDescription, aws: Aws) -> list[str]:
    """Commands by which a node may pull the image."""
    images = (description.image.cpu, description.image.gpu)
    hosts = {found["host"]: found["region"] for image in images if (found := ECR.match(image))}
    return [
        *aws.login,
        *(
            f"aws ecr get-login-password --region {region} | "
            f"docker login --username AWS --password-stdin {host}"
            for host, region in hosts.items()
        ),
    ]


def iam(description: ClusterDescription) -> dict[str, str]:
    """Policies of the two instance profiles, as files."""
    worker = description.object_store.instance_profile
    instances = ["arn:aws:ec2:*:*:instance/*"]
    mine = {"StringEquals": {"ec2:ResourceTag/ray-cluster-name": description.name}}
    new = {"StringEquals": {"ec2:CreateAction": "RunInstances"}}
    nodes = [
        policies.allow(("ec2:RunInstances", "ec2:Describe*"), ["*"]),
        policies.allow(("ec2:CreateTags",), instances, **new),
        policies.allow(("ec2:CreateTags", "ec2:TerminateInstances"), instances, **mine),
        policies.allow(("iam:PassRole",), [f"arn:aws:iam::*:role/{worker}"]),
    ]
    documents = policies.policies(description, policies.ON_EC2, more=nodes)
    if any(ECR.match(image) for image in (description.image.cpu, description.image.gpu)):
        pull = policies.allow(
            ("ecr:GetAuthorizationToken", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"), ["*"]
        )
        for document in documents.values():
            document["Statement"].append(pull)
    return policies.files(documents)


def _run_options(description: ClusterDescription) -> list[str]:
    variables = {
        "RAY_AUTH_MODE": "token",
        "MLFLOW_TRACKING_URI": description.tracking.uri or "http://127.0.0.1:5000",
        "RAY_JOB_STOP_SIGNAL": "SIGINT",
        "RAY_JOB_STOP_WAIT_TIME_S": str(description.job.notice_seconds),
        **store_variables(description),
        **most_nodes(description),
    }
    return [
        "--ulimit nofile=65536:65536",
        "--volume bcl-ray-mlflow:/var/lib/mlflow",  # outlives the container, not the head
        *(f"--env {name}={shlex.quote(value)}" for name, value in variables.items()),
    ]


def _head_commands(description: ClusterDescription) -> list[str]:
    """Ray's head and, where there is no other, an MLflow server for the drivers beside it.

    Only a driver writes to MLflow, and drivers run on the head: so it listens on loopback alone.
    """
    start = (
        f"{LIMITS}; ray start --head --port=6379 --object-manager-port=8076 --num-cpus=0 "
        "--autoscaling-config=~/ray_bootstrap_config.yaml --dashboard-host=127.0.0.1"
    )
    settings = " ".join(f"{name}={value}" for name, value in mlflow_server.SETTINGS.items())
    server = (
        f"pgrep -f '[m]lflow server' || {settings} "
        "nohup mlflow server --host 127.0.0.1 --port 5000 "
        "--workers 2 --backend-store-uri sqlite:////var/lib/mlflow/mlflow.db "
        f"--artifacts-destination {description.object_store.uri}/mlflow "
        ">/var/lib/mlflow/server.log 2>&1 </dev/null &"
    )
    return ["ray stop", start, *([] if description.tracking.uri else [server])]
