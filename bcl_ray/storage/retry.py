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
        retry_seconds: How long an error is retried; 0 raises it at once. The time counts from the
            first of consecutive failures whose errors are retried no longer than this one.
        summary: Text of an error for the log.
    """
    # Start of the current failures, by their retry time. A denial between throttled requests does
    # not end the retries of the throttling: it only shows that the store is throttling.
    began: dict[float, float] = {}
    logged = False

    def is_over(state: RetryCallState) -> bool:
        now, seconds = time.monotonic(), retry_seconds(_error(state))
        for shorter in [other for other in began if other < seconds]:
            del began[shorter]
        return now - began.setdefault(seconds, now) >= seconds

    def log_failure(state: RetryCallState) -> None:
        nonlocal logged
        lasts = time.monotonic() - min(began.values()) + state.upcoming_sleep
        if not logged and lasts >= QUIET_SECONDS:
            logged, error = True, _error(state)
            log.warning(
                "%s: %s, trying again for up to %g s", name, summary(error), retry_seconds(error)
            )

    result = Retrying(
        retry=retry_if_exception(lambda error: retry_seconds(error) > 0),
        wait=wait_random_exponential(multiplier=0.25, max=10),
        stop=is_over,
        before_sleep=log_failure,
        reraise=True,
    )(attempt)
    if logged:
        log.warning("%s: works again, after %.0f s", name, time.monotonic() - min(began.values()))
    return result


def local_retry_seconds(error: BaseException) -> float:
    """How long an error of a local file is retried: only a full disk, for others may make room."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return RETRY_SECONDS if full else 0.0


def _error(state: RetryCallState) -> BaseException:
    error = state.outcome.exception() if state.outcome else None
    assert error is not None
    return error
