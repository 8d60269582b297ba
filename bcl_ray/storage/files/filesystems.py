"""The pyarrow filesystem of a path or URI."""

from collections.abc import Callable
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import fs

from bcl_ray.machine.errors import UserError, flat_text
from bcl_ray.storage import s3
from bcl_ray.storage.files.errors import explain_errors, with_retries
from bcl_ray.storage.files.local import AtomicFileSystem
from bcl_ray.storage.paths import is_local, local
from bcl_ray.storage.retry import TransientError
from bcl_ray.storage.s3.clients import Guard

Result = TypeVar("Result")


def resolve(uri: str) -> tuple[Any, str]:
    """The pyarrow filesystem of a path or URI, and the path within it.

    The filesystem of S3 retries by itself for about 100 s. Where it is unpickled, it takes the
    settings and credentials of that machine.

    Raises:
        ValueError: The URI is malformed, or pyarrow does not know its scheme.
    """
    if s3.is_s3(uri):
        location = s3.parse_uri(uri)
        with explain_errors(uri):
            return s3.patient_filesystem(location), location.path
    if is_local(uri):
        return fs.LocalFileSystem(), local(uri)
    if "#" in uri:  # pyarrow would cut the name there
        raise UserError(f"'{uri}': write '#' as %23")
    with explain_errors(uri):
        try:
            filesystem, path = fs.FileSystem.from_uri(uri)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise UserError(
                f"'{uri}' is not a URI that pyarrow opens ({flat_text(error)}): use a local path, "
                "file://, s3://, gs:// or hdfs://"
            ) from None
    return filesystem, path


def atomic_filesystem(uri: str, guard: Guard) -> tuple[Any, str]:
    """Like `resolve`, for a library that writes files itself: readers see whole files.

    Ray Train overwrites the list of its checkpoints; half a list would end the run.

    Args:
        uri: A folder.
        guard: Called before each change on local disks and in S3, and raises to forbid it. It must
            be hashable, and is pickled with the filesystem.
    """
    if s3.is_s3(uri):
        location = s3.parse_uri(uri)
        with explain_errors(uri):
            return s3.patient_filesystem(location, guard), location.path
    filesystem, path = resolve(uri)
    if isinstance(filesystem, fs.LocalFileSystem):
        filesystem = AtomicFileSystem(guard)
    return filesystem, path


def with_filesystem(function: Callable[[Any, str], Result], uri: str) -> Result:
    """Call function(filesystem, path) for a URI, with retries as in `with_retries`.

    For callers that read with pyarrow themselves. The function must contain all of the reading:

        def read(filesystem, path):
            with filesystem.open_input_file(path) as file:
                return pq.ParquetFile(file).read_row_group(0)

        table = files.with_filesystem(read, uri)

    Raises:
        OSError: An error as `explain_errors` raises it.
    """

    def attempt() -> Result:
        if not s3.is_s3(uri):
            return function(*resolve(uri))
        location = s3.parse_uri(uri)
        # pyarrow makes few attempts, which it does not log; longer faults are retried here.
        filesystem = s3.filesystem(location, attempts=s3.QUICK_ATTEMPTS)
        try:
            return function(filesystem, location.path)
        except Exception as error:
            clearer = s3.clarify(error, location)
            if clearer is error:
                raise
            raise clearer from None

    return with_retries(attempt, uri)


def check_usable(uri: str, *actions: str) -> None:
    """Check within 15 s that a folder in S3 can be used; other folders are not checked.

    Args:
        uri: The folder.
        actions: The actions that will be needed: list, read, write, delete.

    Raises:
        ValueError: A problem, with what to do.
        TransientError: A problem that may be over later, with what to do.
    """
    problems = s3.check_access(uri, actions) if s3.is_s3(uri) else []
    if problems:
        are_transient = all(isinstance(problem, s3.TransientProblem) for problem in problems)
        raise (TransientError if are_transient else UserError)("; ".join(problems))
