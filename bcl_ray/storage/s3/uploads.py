"""Uploads in parts: objects that appear whole or not at all, and what interrupted uploads leave."""

import io
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from bcl_ray.storage.retry import Retry
from bcl_ray.storage.s3.clients import client
from bcl_ray.storage.s3.diagnosis import explain_errors
from bcl_ray.storage.s3.faults import code_of
from bcl_ray.storage.s3.location import Location, parse_uri

PART_BYTES = 16 << 20  # S3 allows 10,000 parts: objects of up to 156 GiB


class Upload(io.RawIOBase):
    """A binary sink whose object appears when `complete` is called; `abort` leaves nothing.

    pyarrow's own sink also completes the object when a block fails, so that readers would see a
    part of the data.
    """

    def __init__(self, location: Location, retry: Retry) -> None:
        self._location, self._retry = location, retry
        self._key = {"Bucket": location.bucket, "Key": location.key}
        self._buffer = bytearray()
        self._parts: list[dict[str, Any]] = []
        self._id: str | None = None
        self._size = 0

    def writable(self) -> bool:
        """Always true."""
        return True

    def tell(self) -> int:
        """Number of bytes written so far."""
        return self._size

    def write(self, data: Any) -> int:
        """Write all of the data."""
        view = memoryview(data).cast("B")
        self._size += len(view)
        self._buffer += view
        while len(self._buffer) > PART_BYTES:  # the last part waits for `complete`
            self._send(bytes(self._buffer[:PART_BYTES]))
            del self._buffer[:PART_BYTES]
        return len(view)

    def complete(self) -> None:
        """Make the object appear."""
        last = bytes(self._buffer)
        if self._id is None:
            self._retry(lambda: self._client().put_object(**self._key, Body=last))
            return
        self._send(last)
        parts = {"Parts": self._parts}

        def finish() -> None:
            try:
                self._client().complete_multipart_upload(
                    **self._key, UploadId=self._id, MultipartUpload=parts
                )
            except Exception as error:
                if not self._is_complete(error):
                    raise

        self._retry(finish)

    def abort(self) -> None:
        """Delete the parts; if that fails, `stale_uploads` lists them later."""
        if self._id is not None:
            s3 = client(self._location, attempts=3)
            s3.abort_multipart_upload(**self._key, UploadId=self._id)

    def _send(self, data: bytes) -> None:
        if self._id is None:
            response = self._retry(lambda: self._client().create_multipart_upload(**self._key))
            self._id = str(response["UploadId"])
        number = len(self._parts) + 1
        response = self._retry(
            lambda: self._client().upload_part(
                **self._key, UploadId=self._id, PartNumber=number, Body=data
            )
        )
        self._parts.append({"PartNumber": number, "ETag": response["ETag"]})

    def _is_complete(self, error: Exception) -> bool:
        """Whether an earlier attempt succeeded and only its answer was lost."""
        if code_of(error) != "nosuchupload":
            return False
        return bool(self._client().head_object(**self._key)["ContentLength"] == self._size)

    def _client(self) -> Any:
        return client(self._location)


class StaleUpload(NamedTuple):
    """An upload that was not completed; its parts take up space until it is aborted."""

    uri: str
    begun: datetime
    upload_id: str


def stale_uploads(uri: str, older_than: timedelta = timedelta(days=1)) -> list[StaleUpload]:
    """List the uploads below a URI that began at least that long ago, the oldest first.

    The upload of a shard or a checkpoint takes minutes: one that is a day old has lost its process.
    """
    location, latest = parse_uri(uri), datetime.now(UTC) - older_than
    prefix = f"{location.key}/" if location.key else ""
    with explain_errors(uri, location):
        pages = client(location, attempts=3).get_paginator("list_multipart_uploads")
        uploads = [
            StaleUpload(
                f"s3://{location.bucket}/{item['Key']}", item["Initiated"], item["UploadId"]
            )
            for page in pages.paginate(Bucket=location.bucket, Prefix=location.key)
            for item in page.get("Uploads", ())
            # The prefix `runs` also matches `runs-prod/...`, which is not below it.
            if f"{item['Key']}/".startswith(prefix) and item["Initiated"] <= latest
        ]
    return sorted(uploads, key=lambda upload: upload.begun)


def abort_uploads(uri: str, uploads: list[StaleUpload]) -> None:
    """Abort uploads that `stale_uploads(uri)` has listed, unless they have ended since."""
    location = parse_uri(uri)
    for upload in uploads:
        key = {
            "Bucket": location.bucket,
            "Key": upload.uri.removeprefix(f"s3://{location.bucket}/"),
        }
        with explain_errors(upload.uri, location):
            try:
                s3 = client(location, attempts=3)
                s3.abort_multipart_upload(**key, UploadId=upload.upload_id)
            except Exception as error:
                if code_of(error) != "nosuchupload":
                    raise
