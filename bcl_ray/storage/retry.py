"""Retries of whole operations, with random exponential backoff."""

import errno
import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

Result = TypeVar("Result")
Retry = Callable[[Callable[[], Any]], Any]  # calls a function until it succeeds

# How long a store that throttles or does not answer, or a full disk, is retried.
RETRY_SECONDS = 300.0
QUIET_SECONDS = 1.0  # shorter faults are not logged

log = logging.getLogger("bcl_ray.storage")


class TransientError(OSError):
    """A fault that may be over later: a store that does not answer, a full disk."""


def retry(
    attempt: Callable[[], Result],
    name: str,
    retry_seconds: Callable[[BaseException], float],
    summary: Callable[[BaseException], str] = str,
) -> Result:
    """Call `attempt` until it succeeds or has failed for too long.

    Args:
        attempt: The operation; must be safe to repeat.
        name: Path or URI of the file, for the log.
        retry_seconds: Seconds for which an error is retried, from its first occurrence on; 0 raises
            it at once. An error that is retried longer restarts the time of those that are retried
            shorter: a denial among throttled requests only shows that the store is throttling.
        summary: Text of an error for the log.
    """
    failures = _Failures(name, retry_seconds, summary)
    result = Retrying(
        retry=retry_if_exception(lambda error: retry_seconds(error) > 0),
        wait=wait_random_exponential(multiplier=0.25, max=10),
        stop=failures.last_too_long,
        before_sleep=failures.log,
        reraise=True,
    )(attempt)
    failures.log_end()
    return result


class _Failures:
    """The failures of an operation: since when, and whether they were logged."""

    def __init__(
        self,
        name: str,
        retry_seconds: Callable[[BaseException], float],
        summary: Callable[[BaseException], str],
    ) -> None:
        self._name, self._retry_seconds, self._summary = name, retry_seconds, summary
        self._began: dict[float, float] = {}  # by `retry_seconds` of the errors
        self._logged = False

    def last_too_long(self, state: RetryCallState) -> bool:
        now, seconds = time.monotonic(), self._retry_seconds(_error(state))
        for shorter in [other for other in self._began if other < seconds]:
            del self._began[shorter]
        return now - self._began.setdefault(seconds, now) >= seconds

    def log(self, state: RetryCallState) -> None:
        error = _error(state)
        if not self._logged and self._lasts() + state.upcoming_sleep >= QUIET_SECONDS:
            self._logged = True
            text, seconds = self._summary(error), self._retry_seconds(error)
            log.warning("%s: %s, trying again for up to %g s", self._name, text, seconds)

    def log_end(self) -> None:
        if self._logged:
            log.warning("%s: works again, after %.0f s", self._name, self._lasts())

    def _lasts(self) -> float:
        return time.monotonic() - min(self._began.values())


def local_retry_seconds(error: BaseException) -> float:
    """How long an error of a local file is retried: only a full disk, for others may make room."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return RETRY_SECONDS if full else 0.0


def _error(state: RetryCallState) -> BaseException:
    error = state.outcome.exception() if state.outcome else None
    assert error is not None
    return error
