"""Errors of file operations: which are retried, and how they are explained."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from bcl_ray.machine.errors import flat_text
from bcl_ray.storage import s3
from bcl_ray.storage.retry import RETRY_SECONDS, TransientError, local_retry_seconds, retry

Result = TypeVar("Result")

# Errors of a network filesystem that may pass.
_TRANSIENT_ERRNOS = {
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH,
    errno.ENETDOWN, errno.ENETUNREACH,
}  # fmt: skip


def with_retries(attempt: Callable[[], Result], uri: str) -> Result:
    """Call a function until it succeeds, or its error has lasted too long or will not pass.

    Args:
        attempt: The function; must be safe to repeat.
        uri: The file that it accesses.

    Raises:
        OSError: An error as `explain_errors` raises it.
    """

    def retry_seconds(error: BaseException) -> float:
        seconds = s3.retry_seconds(error) if s3.is_s3(uri) else local_retry_seconds(error)
        if 0 < seconds < RETRY_SECONDS:  # access is denied: the credentials may have been renewed
            s3.forget_clients()
        return seconds

    with explain_errors(uri):
        return retry(attempt, uri, retry_seconds, s3.summary)


@contextmanager
def explain_errors(uri: str) -> Iterator[None]:
    """Raise errors of file access with one line of text that names the URI and says what to do.

    Raises:
        FileNotFoundError: The file does not exist.
        PermissionError: Access is denied.
        TransientError: The error may be over later.
        OSError: Another error of file access.
    """
    try:
        yield
    except TransientError:  # already explained
        raise
    except FileNotFoundError:
        raise FileNotFoundError(f"{uri} does not exist: check its spelling") from None
    except Exception as error:
        if s3.is_s3(uri) and s3.fault_of(error) is not None:
            raise s3.explain(error, uri, s3.parse_uri(uri)) from error
        if not isinstance(error, OSError):
            raise
        raise _explain(error, uri) from error


def _explain(error: OSError, uri: str) -> OSError:
    text = flat_text(error)
    if isinstance(error, FileExistsError):
        return FileExistsError(f"{uri} exists already")
    if isinstance(error, PermissionError) or "access denied" in text.lower().replace("_", " "):
        return PermissionError(
            f"access to {uri} is denied: check its owner and mode, or the credentials and the "
            f"bucket's policy ({text})"
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        full = TransientError(f"{uri}: the disk is full: make room on it ({text})")
        full.errno = error.errno
        return full
    is_transient = (
        isinstance(error, ConnectionError | TimeoutError) or error.errno in _TRANSIENT_ERRNOS
    )
    return (TransientError if is_transient else OSError)(f"{uri}: {text}")
