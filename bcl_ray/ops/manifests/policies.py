"""IAM policies: what each kind of machine does with the object store, and no more."""

import json
from collections.abc import Sequence

from bcl_ray.ops.manifests.description import ClusterDescription
from bcl_ray.ops.manifests.pods import Plain

Actions = tuple[str, ...]
READ: Actions = ("s3:GetObject",)
# Uploads in parts, which may have to be looked through and ended, need the last two.
CHANGE: Actions = (
    *READ,
    "s3:PutObject",
    "s3:DeleteObject",
    "s3:AbortMultipartUpload",
    "s3:ListMultipartUploadParts",
)

# By role: the folders below object_store.uri, and what is done with the objects in each.
HEAD: dict[str, Actions] = {"shards": CHANGE, "runs": CHANGE, "predictions": CHANGE}
WORKER: dict[str, Actions] = {"shards": READ, "runs": CHANGE, "predictions": READ}
MLFLOW: dict[str, Actions] = {"mlflow": CHANGE}
Folders = dict[str, dict[str, Actions]]
ON_KUBERNETES: Folders = {"head": HEAD, "worker": WORKER, "mlflow": MLFLOW}
ON_EC2: Folders = {"head": {**HEAD, **MLFLOW}, "worker": WORKER}  # MLflow runs on the head
WITH_SOURCES = ("head", "worker")


def policies(
    description: ClusterDescription, roles: Folders, more: Sequence[Plain] = ()
) -> dict[str, Plain]:
    """Policy documents by role, each to be attached to the IAM role of that kind of machine.

    Args:
        description: of the cluster, whose files are in S3.
        roles: ON_KUBERNETES or ON_EC2.
        more: statements of the head beside those on S3.
    """
    bucket, prefix = split(description.object_store.uri)
    found: dict[str, Plain] = {}
    for role, folders in roles.items():
        sources = description.object_store.sources if role in WITH_SOURCES else ()
        read = [split(uri) for uri in sources]
        objects = [
            allow(actions, [f"arn:aws:s3:::{bucket}/{prefix}{folder}/*"])
            for folder, actions in folders.items()
        ]
        if read:
            objects.append(allow(READ, [f"arn:aws:s3:::{name}/{path}*" for name, path in read]))
        buckets = sorted({bucket, *(name for name, _ in read)})
        # Of the whole bucket: else S3 answers 403 and not 404 for an object that is not there.
        listing = allow(("s3:ListBucket",), [f"arn:aws:s3:::{name}" for name in buckets])
        statements = [*objects, listing, *(more if role == "head" else ())]
        found[role] = {"Version": "2012-10-17", "Statement": statements}
    return found


def files(documents: dict[str, Plain]) -> dict[str, str]:
    """Text of each policy by its file's name."""
    return {
        f"policies/{role}.json": json.dumps(document, indent=2) + "\n"
        for role, document in documents.items()
    }


def allow(actions: Sequence[str], resources: Sequence[str], **condition: Plain) -> Plain:
    """A statement; of one resource the text alone, as AWS itself writes it."""
    return {
        "Effect": "Allow",
        "Action": list(actions),
        "Resource": resources[0] if len(resources) == 1 else list(resources),
        **({"Condition": condition} if condition else {}),
    }


def split(uri: str) -> tuple[str, str]:
    """Bucket of s3://bucket/prefix, and the prefix with a slash at its end."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    return bucket, f"{prefix.rstrip('/')}/" if prefix.strip("/") else ""
