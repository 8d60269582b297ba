"""Multipart uploads whose parts are sent in parallel: the object appears whole or not at all."""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from bcl_ray.storage.retry import Retry
from bcl_ray.storage.s3.clients import client
from bcl_ray.storage.s3.faults import code_of
from bcl_ray.storage.s3.location import Location

PARALLEL_PARTS = 4  # that are sent at once; no more of them are in memory

Request = Callable[[Any, dict[str, Any]], Any]


class MultipartUpload:
    """A multipart upload, which begins with its first part.

    Args:
        location: The object.
        retry: Repeats a request, from any thread.
    """

    def __init__(self, location: Location, retry: Retry) -> None:
        self._location, self._retry = location, retry
        self._key = location.object
        self._threads = ThreadPoolExecutor(PARALLEL_PARTS, thread_name_prefix="part")
        self._sent: list[Future[dict[str, Any]]] = []
        self._id: str | None = None
        self._is_aborted = False

    def __bool__(self) -> bool:
        """Whether there are parts."""
        return bool(self._sent)

    def add(self, request: Request) -> None:
        """Send the next part from a thread; waits while PARALLEL_PARTS of them are being sent.

        Args:
            request: Called with a client and the arguments that name the part; returns the answer,
                which has the part's ETag.

        Raises:
            Exception: The error of an earlier part.
        """
        if self._id is None:
            response = self._retry(lambda: self._client().create_multipart_upload(**self._key))
            self._id = str(response["UploadId"])
        number = len(self._sent) + 1
        part = {**self._key, "UploadId": self._id, "PartNumber": number}

        def attempt() -> Any:
            if self._is_aborted:
                raise InterruptedError(f"the upload of {self._location.path} was aborted")
            return request(self._client(), part)

        def send() -> dict[str, Any]:
            return {"PartNumber": number, "ETag": self._retry(attempt)["ETag"]}

        if number > PARALLEL_PARTS:
            self._sent[-PARALLEL_PARTS].result()
        self._sent.append(self._threads.submit(send))

    def complete(self, size: int) -> None:
        """Make the object appear, after all parts have been sent.

        Args:
            size: Bytes of the object.

        Raises:
            Exception: The error of a part.
        """
        parts = {"Parts": [part.result() for part in self._sent]}

        def finish() -> None:
            try:
                self._client().complete_multipart_upload(
                    **self._key, UploadId=self._id, MultipartUpload=parts
                )
            except Exception as error:
                if not self._is_complete(error, size):
                    raise

        self._retry(finish)
        self._threads.shutdown()

    def abort(self) -> None:
        """Delete the parts; if that fails, `stale_uploads` lists them later."""
        self._is_aborted = True
        self._threads.shutdown(cancel_futures=True)  # a part that arrived later would stay
        if self._id is not None:
            s3 = client(self._location, attempts=3)
            s3.abort_multipart_upload(**self._key, UploadId=self._id)

    def _is_complete(self, error: Exception, size: int) -> bool:
        """Whether an earlier attempt succeeded and only its answer was lost."""
        if code_of(error) != "nosuchupload":
            return False
        return bool(self._client().head_object(**self._key)["ContentLength"] == size)

    def _client(self) -> Any:
        return client(self._location)


@contextlib.contextmanager
def aborted_on_error(parts: MultipartUpload) -> Iterator[None]:
    """Abort an upload if the block fails; the block's error is the one that is raised."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):
            parts.abort()
        raise
