"""Uploads that appear whole or not at all, and what interrupted ones have left behind."""

import io
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from bcl_ray.storage.s3.faults import explained, fault_of
from bcl_ray.storage.s3.location import Location, client, parse_uri

PART_BYTES = 16 << 20  # 10,000 parts at most: objects up to 156 GiB

Persist = Callable[[Callable[[], Any]], Any]


class Upload(io.RawIOBase):
    """A sink whose object appears at `complete`; `abort` leaves nothing.

    pyarrow's own sink completes the object when a block fails: readers would see a part.

    Args:
        location: of the object.
        persist: calls a function until it succeeds.
    """

    def __init__(self, location: Location, persist: Persist) -> None:
        self._location, self._persist = location, persist
        self._key = {"Bucket": location.bucket, "Key": location.key}
        self._waiting = bytearray()
        self._parts: list[dict[str, Any]] = []
        self._id: str | None = None
        self._size = 0

    def writable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Bytes so far."""
        return self._size

    def write(self, data: Any) -> int:
        """Take bytes, all of them."""
        view = memoryview(data).cast("B")
        self._size += len(view)
        self._waiting += view
        while len(self._waiting) > PART_BYTES:  # the last part waits for `complete`
            self._send(bytes(self._waiting[:PART_BYTES]))
            del self._waiting[:PART_BYTES]
        return len(view)

    def complete(self) -> None:
        """Make the object appear."""
        last = bytes(self._waiting)
        if self._id is None:
            self._persist(lambda: self._s3().put_object(**self._key, Body=last))
            return
        self._send(last)
        parts = {"Parts": self._parts}

        def finish() -> None:
            try:
                self._s3().complete_multipart_upload(
                    **self._key, UploadId=self._id, MultipartUpload=parts
                )
            except Exception as error:
                if not self._is_complete(error):
                    raise

        self._persist(finish)

    def abort(self) -> None:
        """Give back the space of the parts; where that fails, `stale_uploads` lists them."""
        if self._id is not None:
            s3 = client(self._location, attempts=3)
            s3.abort_multipart_upload(**self._key, UploadId=self._id)

    def _send(self, data: bytes) -> None:
        if self._id is None:
            begun = self._persist(lambda: self._s3().create_multipart_upload(**self._key))
            self._id = str(begun["UploadId"])
        number = len(self._parts) + 1
        sent = self._persist(
            lambda: self._s3().upload_part(
                **self._key, UploadId=self._id, PartNumber=number, Body=data
            )
        )
        self._parts.append({"PartNumber": number, "ETag": sent["ETag"]})

    def _is_complete(self, error: Exception) -> bool:
        """Whether an earlier attempt succeeded, and only its answer was lost."""
        fault = fault_of(error)
        if fault is None or fault.code != "nosuchupload":
            return False
        return bool(self._s3().head_object(**self._key)["ContentLength"] == self._size)

    def _s3(self) -> Any:
        return client(self._location)


def read(location: Location) -> bytes:
    """A whole object, in one request, so that all of it is of one version.

    Raises:
        FileNotFoundError: there is none.
    """
    try:
        found = client(location).get_object(Bucket=location.bucket, Key=location.key)
        return bytes(found["Body"].read())
    except Exception as error:
        fault = fault_of(error)
        if fault is not None and fault.code == "nosuchkey":
            raise FileNotFoundError from None
        raise


def create(location: Location, data: bytes, persist: Persist) -> None:
    """Write an object unless there is one.

    Raises:
        FileExistsError: there is one.
    """
    key: dict[str, Any] = {"Bucket": location.bucket, "Key": location.key}
    tried = 0

    def write() -> None:
        nonlocal tried
        tried += 1
        try:
            # One attempt each, so that we know of all of them.
            client(location).put_object(**key, Body=data, IfNoneMatch="*")
        except Exception as error:
            fault = fault_of(error)
            if fault is not None and fault.status == 501:  # it knows no conditions
                client(location).put_object(**key, Body=data)
            elif fault is None or fault.status != 412:
                raise
            # An earlier attempt, whose answer was lost, may have written it.
            elif tried == 1 or client(location).get_object(**key)["Body"].read() != data:
                raise FileExistsError from None

    # Some stores overlook the condition, so that it is looked up first in any case.
    persist(lambda: _refuse_if_there(location))
    persist(write)


def _refuse_if_there(location: Location) -> None:
    listed = client(location).list_objects_v2(
        Bucket=location.bucket, Prefix=location.key, MaxKeys=1
    )
    if any(item["Key"] == location.key for item in listed.get("Contents", ())):
        raise FileExistsError


class StaleUpload(NamedTuple):
    """A multipart upload that nobody has completed; its parts cost space until it is aborted."""

    uri: str
    begun: datetime
    upload_id: str


def stale_uploads(uri: str, older_than: timedelta = timedelta(days=1)) -> list[StaleUpload]:
    """Multipart uploads below a URI that were begun that long ago, the oldest first.

    A shard or checkpoint takes minutes, so that a day's uploads are those of dead processes.
    """
    location, before = parse_uri(uri), datetime.now(UTC) - older_than
    with explained(uri, location):
        pages = client(location, attempts=3).get_paginator("list_multipart_uploads")
        found = [
            StaleUpload(
                f"s3://{location.bucket}/{item['Key']}", item["Initiated"], item["UploadId"]
            )
            for page in pages.paginate(Bucket=location.bucket, Prefix=location.key)
            for item in page.get("Uploads", ())
            # `runs` begins runs-prod/... too, which is not below it.
            if f"{item['Key']}/".startswith(f"{location.key}/" if location.key else "")
            and item["Initiated"] <= before
        ]
    return sorted(found, key=lambda upload: upload.begun)


def abort_uploads(uri: str, uploads: list[StaleUpload]) -> None:
    """Abort uploads that `stale_uploads(uri)` has listed; one that has ended since is no error."""
    location = parse_uri(uri)
    for upload in uploads:
        key = {
            "Bucket": location.bucket,
            "Key": upload.uri.removeprefix(f"s3://{location.bucket}/"),
        }
        with explained(upload.uri, location):
            try:
                client(location, attempts=3).abort_multipart_upload(
                    **key, UploadId=upload.upload_id
                )
            except Exception as error:
                fault = fault_of(error)
                if fault is None or fault.code != "nosuchupload":
                    raise
