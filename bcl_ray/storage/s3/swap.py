"""A small object that is written only over the version that its writer has read.

PUT with If-None-Match: * and If-Match: AWS S3 and Ceph have both, atomically. OpenStack Swift looks
up, then writes, for the first, and answers 501 to the second; some servers overlook both. So
`compares` asks the server, and without it a version is read before it is replaced.
"""

from dataclasses import dataclass
from typing import Any

from bcl_ray.storage.s3.faults import fault_of
from bcl_ray.storage.s3.location import Location, client

UNKNOWN_TAG = '"00000000000000000000000000000000"'


class ChangedError(Exception):
    """The object is not the version that was to be replaced."""


@dataclass(frozen=True)
class Version:
    """What an object held when it was read, and by what its next writer names that."""

    data: bytes
    tag: str = ""


def read_version(location: Location) -> Version | None:
    """The object as it is now; None where there is none."""
    try:
        found = _client(location).get_object(Bucket=location.bucket, Key=location.key)
        return Version(bytes(found["Body"].read()), str(found["ETag"]))
    except Exception as error:
        fault = fault_of(error)
        if fault is not None and fault.code == "nosuchkey":
            return None
        raise


def replace_version(location: Location, data: bytes, old: Version | None) -> Version:
    """Write the object, once, if it is still `old`; safe to repeat with the same, unique data.

    Raises:
        ChangedError: it is another version.
    """
    condition = {"IfNoneMatch": "*"} if old is None else {"IfMatch": old.tag}
    try:
        return _put(location, data, **condition)
    except Exception as error:
        fault = fault_of(error)
        if fault is None or (fault.status not in (409, 412, 501) and fault.code != "nosuchkey"):
            raise
        unsupported = fault.status == 501
    found = read_version(location)
    if found is not None and found.data == data:  # an attempt whose answer was lost has written it
        return found
    if found != old:
        raise ChangedError
    if unsupported:
        return _put(location, data)
    if old is None:  # it was there a moment ago, or another writer is at it
        raise ChangedError
    return _unquoted(location, data, old)


def compares(location: Location, own: Version) -> bool:
    """Whether the server compares: `own`, which is there, must not replace what is not there."""
    try:
        _put(location, own.data, IfMatch=UNKNOWN_TAG)
    except Exception as error:
        fault = fault_of(error)
        if fault is None or fault.status not in (412, 501):
            raise
        return fault.status == 412
    return False


def _unquoted(location: Location, data: bytes, old: Version) -> Version:
    """Ceph 16 compares with the tag as it is sent, and has it without quotes."""
    try:
        return _put(location, data, IfMatch=old.tag.strip('"'))
    except Exception as error:
        fault = fault_of(error)
        if fault is not None and fault.status in (409, 412):
            raise ChangedError from None
        raise


def _put(location: Location, data: bytes, **condition: str) -> Version:
    done = _client(location).put_object(
        Bucket=location.bucket, Key=location.key, Body=data, **condition
    )
    return Version(data, str(done["ETag"]))


def _client(location: Location) -> Any:
    return client(location, silence_seconds=10)  # what is late does not help: leases run out
