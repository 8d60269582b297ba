"""Objects as a whole: list, read, create, and replace only a known version.

Conditional PUT requests (If-None-Match: *, and If-Match) let one of several simultaneous writers
succeed. AWS S3 and Ceph check both conditions atomically. OpenStack Swift supports only the first,
and not atomically; it answers 501 to the second. Some servers ignore both. On these, an object is
read before it is written, and two writers at the same moment may both succeed.
"""

from collections.abc import Iterator
from typing import Any

from bcl_ray.storage.file_version import ChangedError, FileVersion
from bcl_ray.storage.retry import Retry
from bcl_ray.storage.s3.clients import TIMEOUTS, client
from bcl_ray.storage.s3.faults import code_of, status_of
from bcl_ray.storage.s3.location import Location

PAGE_KEYS = 1000  # of a listing, the most that S3 returns
ABSENT_TAG = '"00000000000000000000000000000000"'  # ETag that no object has
# Of a version's requests: a late answer is of no use, because leases run out.
VERSION_TIMEOUTS = TIMEOUTS._replace(silence=10.0)


def list_keys(location: Location, retry: Retry, after: str = "") -> Iterator[str]:
    """Keys below a folder, relative to it, in the order of their bytes.

    Only one page of PAGE_KEYS keys is in memory. Empty objects whose keys end in '/', which mark
    folders, are left out, and so are `after` and all keys before it.
    """
    prefix = location.prefix
    request: dict[str, Any] = {"Bucket": location.bucket, "Prefix": prefix, "MaxKeys": PAGE_KEYS}
    if after:
        request["StartAfter"] = prefix + after
    while True:
        page = retry(lambda: client(location).list_objects_v2(**request))
        for item in page.get("Contents", ()):
            name = str(item["Key"]).removeprefix(prefix)
            if name and (item["Size"] or not name.endswith("/")):
                yield name
        if not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


def read_object(location: Location, size: int | None = None) -> bytes:
    """Read an object in one request, so that all of it is of one version.

    Args:
        location: The object.
        size: Read this many bytes at most; None for all of them.

    Raises:
        FileNotFoundError: There is no object.
    """
    try:
        response = client(location).get_object(**location.object)
        with response["Body"] as body:
            return bytes(body.read(size))
    except Exception as error:
        if code_of(error) == "nosuchkey":
            raise FileNotFoundError from None
        raise


def create_object(location: Location, data: bytes, retry: Retry) -> None:
    """Write an object unless there is one.

    Raises:
        FileExistsError: There is one.
    """
    attempts = 0

    def write() -> None:
        nonlocal attempts
        attempts += 1
        try:
            # The client itself does not retry, so that all attempts are counted here.
            client(location).put_object(**location.object, Body=data, IfNoneMatch="*")
        except Exception as error:
            if status_of(error) == 501:  # the server knows no conditions
                client(location).put_object(**location.object, Body=data)
            elif status_of(error) != 412:
                raise
            # An earlier attempt whose answer was lost may have written the object.
            elif attempts == 1 or read_object(location) != data:
                raise FileExistsError from None

    # Servers that ignore the condition need the check before.
    retry(lambda: _check_absent(location))
    retry(write)


def _check_absent(location: Location) -> None:
    folder = {"Bucket": location.bucket, "Prefix": location.key}
    page = client(location).list_objects_v2(**folder, MaxKeys=1)
    if any(item["Key"] == location.key for item in page.get("Contents", ())):
        raise FileExistsError


def read_version(location: Location) -> FileVersion | None:
    """Read an object and its ETag; None if there is no object."""
    try:
        response = _version_client(location).get_object(**location.object)
        return FileVersion(bytes(response["Body"].read()), str(response["ETag"]))
    except Exception as error:
        if code_of(error) == "nosuchkey":
            return None
        raise


def replace_version(location: Location, data: bytes, old: FileVersion | None) -> FileVersion:
    """Write an object if it is still the version `old`; None stands for no object.

    The call may be repeated, if no other writer writes the same data.

    Raises:
        ChangedError: The object is another version.
    """
    condition = {"IfNoneMatch": "*"} if old is None else {"IfMatch": old.tag}
    try:
        return _put(location, data, **condition)
    except Exception as error:
        if status_of(error) not in (409, 412, 501) and code_of(error) != "nosuchkey":
            raise
        unsupported = status_of(error) == 501
    current = read_version(location)
    if current is not None and current.data == data:  # written by an attempt whose answer was lost
        return current
    if current != old:
        raise ChangedError
    if unsupported:
        return _put(location, data)
    if old is None:  # the object was there a moment ago, or another writer is at work
        raise ChangedError
    return _put_with_bare_tag(location, data, old)


def replaces_atomically(location: Location, own: FileVersion) -> bool:
    """Whether the server checks the condition If-Match.

    Args:
        location: An object.
        own: The object's current version, which this process has written. It is written again
            under a condition that cannot hold.
    """
    try:
        _put(location, own.data, IfMatch=ABSENT_TAG)
    except Exception as error:
        if status_of(error) not in (412, 501):
            raise
        return status_of(error) == 412
    return False


def _put_with_bare_tag(location: Location, data: bytes, old: FileVersion) -> FileVersion:
    """Write with an ETag without quotes, as Ceph 16 needs it."""
    try:
        return _put(location, data, IfMatch=old.tag.strip('"'))
    except Exception as error:
        if status_of(error) in (409, 412):
            raise ChangedError from None
        raise


def _put(location: Location, data: bytes, **condition: str) -> FileVersion:
    response = _version_client(location).put_object(**location.object, Body=data, **condition)
    return FileVersion(data, str(response["ETag"]))


def _version_client(location: Location) -> Any:
    return client(location, timeouts=VERSION_TIMEOUTS)
