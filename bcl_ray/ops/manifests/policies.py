"""IAM policies: what each kind of machine may do in S3."""

from bcl_ray.ops.manifests.sections import ObjectStore

PARTITIONS = {"cn-": "aws-cn", "us-gov-": "aws-us-gov"}  # by how a region's name begins


def policy_values(store: ObjectStore) -> dict[str, object]:
    """The partition, and ARNs of the store and of its sources, by the templates' names."""
    others = (name for start, name in PARTITIONS.items() if store.region.startswith(start))
    partition = next(others, "aws")
    s3 = f"arn:{partition}:s3:::"
    bucket, prefix = _bucket_and_prefix(store.uri)
    sources = [_bucket_and_prefix(uri) for uri in store.sources]
    buckets = sorted({bucket, *(name for name, _ in sources)})
    return {
        "partition": partition,
        "store_arn": f"{s3}{bucket}/{prefix}",
        "store_bucket_arn": f"{s3}{bucket}",
        "source_arns": [f"{s3}{name}/{path}*" for name, path in sources],
        "bucket_arns": [f"{s3}{name}" for name in buckets],
    }


def _bucket_and_prefix(uri: str) -> tuple[str, str]:
    """The bucket and the prefix of s3://bucket/prefix; a prefix ends in a slash."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    return bucket, f"{prefix.rstrip('/')}/" if prefix.strip("/") else ""
