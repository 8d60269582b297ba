"""All objects below a prefix, a page at a time."""

from collections.abc import Callable, Iterator
from typing import Any

from bcl_ray.storage.s3.location import Location, client

Persist = Callable[[Callable[[], Any]], Any]  # calls until it succeeds, or gives up

PAGE = 1000  # keys, as many as S3 gives


def keys(location: Location, persist: Persist) -> Iterator[str]:
    """Keys below a prefix, without it, in the order of their bytes; PAGE of them are held.

    What only marks a folder, a key that ends in '/', is left out.
    """
    prefix = f"{location.key}/" if location.key else ""
    request: dict[str, Any] = {"Bucket": location.bucket, "Prefix": prefix, "MaxKeys": PAGE}
    while True:
        page = persist(lambda: client(location).list_objects_v2(**request))
        names = (str(item["Key"]).removeprefix(prefix) for item in page.get("Contents", ()))
        yield from (name for name in names if name and not name.endswith("/"))
        if not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]
