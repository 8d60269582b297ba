"""Uploads and copies of whole objects, and what interrupted uploads leave."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

from bcl_ray.storage.retry import Retry
from bcl_ray.storage.s3.clients import client
from bcl_ray.storage.s3.diagnosis import explained_faults
from bcl_ray.storage.s3.faults import code_of
from bcl_ray.storage.s3.location import Location, parse_uri
from bcl_ray.storage.s3.parts import MultipartUpload, aborted_on_error

PART_BYTES = 16 << 20  # S3 allows 10,000 parts: objects of up to 156 GiB
# The most that one request copies. S3 allows 5 GiB, but some servers answer only when the copy is
# complete, which must be within the client's time limit.
COPIED_BYTES = 256 << 20


class Upload(io.RawIOBase):
    """A binary sink that sends what is written in parts, from threads.

    Args:
        location: The object.
        retry: Repeats a request, from any thread.
    """

    def __init__(self, location: Location, retry: Retry) -> None:
        self._location, self._retry = location, retry
        self.parts = MultipartUpload(location, retry)
        self._buffer = bytearray()
        self._size = 0

    def writable(self) -> bool:
        """Always true."""
        return True

    def tell(self) -> int:
        """Number of bytes written so far."""
        return self._size

    def write(self, data: Any) -> int:
        """Write all of the data; they may be sent later, and an error may be of an earlier part."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), PART_BYTES):
            self._buffer += view[start : start + PART_BYTES]
            if len(self._buffer) > PART_BYTES:  # the last part is left to `complete`
                self._send(bytes(self._buffer[:PART_BYTES]))
                del self._buffer[:PART_BYTES]
        self._size += len(view)
        return len(view)

    def complete(self) -> None:
        """Make the object appear."""
        last = bytes(self._buffer)
        if not self.parts:
            self._retry(lambda: _put(self._location, last))
            return
        self._send(last)
        self.parts.complete(self._size)

    def _send(self, data: bytes) -> None:
        self.parts.add(lambda s3, part: s3.upload_part(**part, Body=data))


@contextmanager
def open_upload(location: Location, retry: Retry) -> Iterator[Upload]:
    """A binary sink whose object appears when the block ends; after an error, none appears.

    pyarrow's own sink also completes the object when a block fails, so that readers would see a
    part of the data.
    """
    upload = Upload(location, retry)
    with aborted_on_error(upload.parts):
        yield upload
        upload.complete()


def copy_object(source: Location, size: int, target: Location, retry: Retry) -> None:
    """Let the server copy an object; the copy appears whole.

    Args:
        source: The object.
        size: Its bytes.
        target: The copy, on the same server.
        retry: Repeats a request, from any thread.
    """
    origin = {"CopySource": source.object}
    if size <= COPIED_BYTES:
        retry(lambda: client(target).copy_object(**target.object, **origin))
        return

    def copy(s3: Any, part: dict[str, Any], *, byte_range: str) -> Any:
        return s3.upload_part_copy(**part, **origin, CopySourceRange=byte_range)["CopyPartResult"]

    parts = MultipartUpload(target, retry)
    with aborted_on_error(parts):
        for start in range(0, size, COPIED_BYTES):
            end = min(start + COPIED_BYTES, size) - 1
            parts.add(partial(copy, byte_range=f"bytes={start}-{end}"))
        parts.complete(size)


def object_size(location: Location) -> int:
    """Bytes of an object.

    Raises:
        FileNotFoundError: There is no object.
    """
    try:
        return int(client(location).head_object(**location.object)["ContentLength"])
    except Exception as error:
        if code_of(error) == "404":  # an answer without a body has no other code
            raise FileNotFoundError from None
        raise


def _put(location: Location, data: bytes) -> None:
    client(location).put_object(**location.object, Body=data)


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
    with explained_faults(uri, location):
        pages = client(location, attempts=3).get_paginator("list_multipart_uploads")
        uploads = [
            StaleUpload(
                f"s3://{location.bucket}/{item['Key']}", item["Initiated"], item["UploadId"]
            )
            for page in pages.paginate(Bucket=location.bucket, Prefix=location.key)
            for item in page.get("Uploads", ())
            # The prefix `runs` also matches `runs-prod/...`, which is not below it.
            if f"{item['Key']}/".startswith(location.prefix) and item["Initiated"] <= latest
        ]
    return sorted(uploads, key=lambda upload: upload.begun)


def abort_uploads(uri: str, uploads: list[StaleUpload]) -> None:
    """Abort uploads that `stale_uploads(uri)` has listed, unless they have ended since."""
    location = parse_uri(uri)
    for upload in uploads:
        key = upload.uri.removeprefix(f"s3://{location.bucket}/")
        with explained_faults(upload.uri, location):
            try:
                client(location, attempts=3).abort_multipart_upload(
                    Bucket=location.bucket, Key=key, UploadId=upload.upload_id
                )
            except Exception as error:
                if code_of(error) != "nosuchupload":
                    raise
