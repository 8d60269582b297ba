"""Trying again: whole operations, with jittered backoff, for as long as the fault is worth it."""

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

Result = TypeVar("Result")

PATIENCE = 300.0  # seconds, with a store that throttles or does not answer, or with a full disk
QUIET = 1.0  # seconds that a fault may last before a word is said

log = logging.getLogger("bcl_ray.storage")


class TransientError(OSError):
    """What may be over at a later start: a store that does not answer, a full disk."""


def persist(
    attempt: Callable[[], Result],
    what: str,
    patience: Callable[[BaseException], float],
    reason: Callable[[BaseException], str] = str,
) -> Result:
    """Call `attempt` until it succeeds, or has failed for longer than its error is worth.

    Args:
        attempt: the operation; must be safe to repeat.
        what: the file, for the log.
        patience: seconds that an error is worth, counted from the first of a row of failures
            that are worth no more; 0: raise it at once.
        reason: what the log says of an error, in a few words.
    """
    since: dict[float, float] = {}  # when failures worth so many seconds began
    told = False

    def stop(state: RetryCallState) -> bool:
        now, worth = time.monotonic(), patience(_error(state))
        # A denial between throttled requests says no more than that the store is throttling.
        for shorter in [seconds for seconds in since if seconds < worth]:
            del since[shorter]
        return now - since.setdefault(worth, now) >= worth

    def tell(state: RetryCallState) -> None:
        nonlocal told
        if not told and time.monotonic() - min(since.values()) + state.upcoming_sleep >= QUIET:
            told, error = True, _error(state)
            log.warning("%s: %s, trying again for up to %g s", what, reason(error), patience(error))

    result = Retrying(
        retry=retry_if_exception(lambda error: patience(error) > 0),
        wait=wait_random_exponential(multiplier=0.25, max=10),
        stop=stop,
        before_sleep=tell,
        reraise=True,
    )(attempt)
    if told:
        log.warning("%s: works again, after %.0f s", what, time.monotonic() - min(since.values()))
    return result


def local_patience(error: BaseException) -> float:
    """Seconds that a local file's error is worth: somebody may make room on a full disk."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return PATIENCE if full else 0.0


def _error(state: RetryCallState) -> BaseException:
    error = state.outcome.exception() if state.outcome else None
    assert error is not None
    return error
