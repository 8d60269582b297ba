"""A small object that is written only over the version that its writer has read.

PUT with If-None-Match: * and If-Match: AWS S3 and Ceph have both, atomically. OpenStack Swift looks
up, then writes, for the first, and answers 501 to the second; some servers overlook both. So
`compares` asks the server, and without it a version is read before it is replaced.
"""

from dataclasses import dataclass
from typing import Any

from bcl_ray.storage.s3.faults import fault_of
from bcl_ray.storage.s3.place import Place, client

UNKNOWN_TAG = '"00000000000000000000000000000000"'


class ChangedError(Exception):
    """The object is not the version that was to be replaced."""


@dataclass(frozen=True)
class Version:
    """What an object held when it was read, and by what its next writer names that."""

    data: bytes
    tag: str = ""


def read_version(place: Place) -> Version | None:
    """The object as it is now; None where there is none."""
    try:
        found = _client(place).get_object(Bucket=place.bucket, Key=place.key)
        return Version(bytes(found["Body"].read()), str(found["ETag"]))
    except Exception as error:
        fault = fault_of(error)
        if fault is not None and fault.code == "nosuchkey":
            return None
        raise


def replace_version(place: Place, data: bytes, old: Version | None) -> Version:
    """Write the object, once, if it is still `old`; safe to repeat with the same, unique data.

    Raises:
        ChangedError: it is another version.
    """
    condition = {"IfNoneMatch": "*"} if old is None else {"IfMatch": old.tag}
    try:
        return _put(place, data, **condition)
    except Exception as error:
        fault = fault_of(error)
        if fault is None or (fault.status not in (409, 412, 501) and fault.code != "nosuchkey"):
            raise
        unsupported = fault.status == 501
    found = read_version(place)
    if found is not None and found.data == data:  # an attempt whose answer was lost has written it
        return found
    if found != old:
        raise ChangedError
    if unsupported:
        return _put(place, data)
    if old is None:  # it was there a moment ago, or another writer is at it
        raise ChangedError
    return _unquoted(place, data, old)


def compares(place: Place, own: Version) -> bool:
    """Whether the server compares: `own`, which is there, must not replace what is not there."""
    try:
        _put(place, own.data, IfMatch=UNKNOWN_TAG)
    except Exception as error:
        fault = fault_of(error)
        if fault is None or fault.status not in (412, 501):
            raise
        return fault.status == 412
    return False


def _unquoted(place: Place, data: bytes, old: Version) -> Version:
    """Ceph 16 compares with the tag as it is sent, and has it without quotes."""
    try:
        return _put(place, data, IfMatch=old.tag.strip('"'))
    except Exception as error:
        fault = fault_of(error)
        if fault is not None and fault.status in (409, 412):
            raise ChangedError from None
        raise


def _put(place: Place, data: bytes, **condition: str) -> Version:
    done = _client(place).put_object(Bucket=place.bucket, Key=place.key, Body=data, **condition)
    return Version(data, str(done["ETag"]))


def _client(place: Place) -> Any:
    return client(place, silence_seconds=10)  # what is late does not help: leases run out
