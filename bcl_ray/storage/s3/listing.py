"""Listing of all objects below a prefix."""

from collections.abc import Iterator
from typing import Any

from bcl_ray.storage.retry import Retry
from bcl_ray.storage.s3.clients import client
from bcl_ray.storage.s3.location import Location

PAGE_KEYS = 1000  # the most that S3 returns


def list_keys(location: Location, retry: Retry) -> Iterator[str]:
    """Keys below a folder, relative to it, in the order of their bytes.

    Only one page of PAGE_KEYS keys is in memory. Keys that end in '/', which mark folders, are left
    out.
    """
    prefix = f"{location.key}/" if location.key else ""
    request: dict[str, Any] = {"Bucket": location.bucket, "Prefix": prefix, "MaxKeys": PAGE_KEYS}
    while True:
        page = retry(lambda: client(location).list_objects_v2(**request))
        names = (str(item["Key"]).removeprefix(prefix) for item in page.get("Contents", ()))
        yield from (name for name in names if name and not name.endswith("/"))
        if not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]
