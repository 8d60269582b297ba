"""Retries of whole operations, with random exponential backoff."""

import errno
import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

Result = TypeVar("Result")
Retry = Callable[[Callable[[], Any]], Any]  # calls a function until it succeeds

# How long an operation is retried if the store throttles or does not answer, or the disk is full.
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
        retry_seconds: For how many seconds an error is retried, counted from when it first came; 0
            raises it at once. Each duration has its own deadline. An error with a longer one resets
            the shorter ones: a denial between throttled requests is probably throttling.
        summary: Text of an error for the log.
    """
    failures = _Failures(name, retry_seconds, summary)
    result = Retrying(
        retry=retry_if_exception(lambda error: retry_seconds(error) > 0),
        wait=wait_random_exponential(multiplier=0.25, max=10),
        stop=failures.have_lasted_too_long,
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
        self._began: dict[float, float] = {}  # when errors first came, by their `retry_seconds`
        self._logged = False

    def have_lasted_too_long(self, state: RetryCallState) -> bool:
        """Record one more failure; whether errors like it have now lasted too long."""
        now, seconds = time.monotonic(), self._retry_seconds(_error(state))
        for shorter in [other for other in self._began if other < seconds]:
            del self._began[shorter]
        return now - self._began.setdefault(seconds, now) >= seconds

    def log(self, state: RetryCallState) -> None:
        error = _error(state)
        if not self._logged and self._seconds_so_far() + state.upcoming_sleep >= QUIET_SECONDS:
            self._logged = True
            text, seconds = self._summary(error), self._retry_seconds(error)
            log.warning("%s: %s, trying again for up to %g s", self._name, text, seconds)

    def log_end(self) -> None:
        if self._logged:
            log.warning("%s: works again, after %.0f s", self._name, self._seconds_so_far())

    def _seconds_so_far(self) -> float:
        return time.monotonic() - min(self._began.values())


def local_retry_seconds(error: BaseException) -> float:
    """How long an error of a local file is retried; 0 unless the disk is full, which may pass."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return RETRY_SECONDS if full else 0.0


def _error(state: RetryCallState) -> BaseException:
    error = state.outcome.exception() if state.outcome else None
    assert error is not None
    return error
