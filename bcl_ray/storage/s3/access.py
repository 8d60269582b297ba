"""Whether a location in S3 may be used as a training will use it, said before it starts."""

import contextlib
import queue
import secrets
import threading
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from bcl_ray.machine.errors import UserError
from bcl_ray.storage.retry import TransientError
from bcl_ray.storage.s3.faults import explain, fault_of
from bcl_ray.storage.s3.location import Location, client, filesystem, parse_uri

SECONDS = 15.0  # for everything, whatever the endpoint does
CONNECT, SILENCE = 3.0, 5.0  # seconds, for each request of a check
SKEW = 300.0  # seconds between clocks; S3 refuses 900
ACTIONS = ("list", "read", "write", "delete")
PROBE = b"bcl_ray looks whether it may write here; may be deleted"


class TransientProblem(str):
    """A problem that may be over later."""

    __slots__ = ()


def _problem(error: OSError) -> str:
    return TransientProblem(error) if isinstance(error, TransientError) else str(error)


def check_access(uri: str, actions: Collection[str], seconds: float = SECONDS) -> list[str]:
    """What stands in the way of using a URI, each with what to do; empty: nothing.

    Problems that may be over later are `TransientProblem`.

    Writing is tried with an object of a random name in the folder, which is removed again.

    Args:
        uri: s3://bucket/folder; the folder need not be there. Or of an object that is only read.
        actions: of "list", "read", "write", "delete": those that will be needed; "read" alone: of
            the object that the URI names.
        seconds: after which an endpoint that does not answer is given up.

    Raises:
        ValueError: a malformed URI, or an unknown action.
    """
    unknown = sorted(set(actions) - set(ACTIONS))
    if unknown:
        raise UserError(f"action '{unknown[0]}' must be one of {', '.join(ACTIONS)}")
    location = parse_uri(uri)
    answer: queue.Queue[list[str]] = queue.Queue()

    def check() -> None:
        try:
            answer.put(_problems(uri, location, actions))
        except Exception as error:
            answer.put([_problem(explain(error, uri, location))])

    threading.Thread(target=check, name="check-s3", daemon=True).start()
    try:
        return answer.get(timeout=seconds)
    except queue.Empty:
        return [
            TransientProblem(
                f"{uri}: {location.server} has not answered within {seconds:g} s: check "
                "AWS_ENDPOINT_URL, the network and its firewalls"
            )
        ]


class _Attempts:
    """Requests, what was refused of them, and the server's time."""

    def __init__(self, uri: str, location: Location) -> None:
        self._uri, self._location = uri, location
        self.s3 = client(location, attempts=1, connect_seconds=CONNECT, silence_seconds=SILENCE)
        self.refused: list[str] = []
        self._skew = 0.0

    def __call__(self, request: Callable[[], Any]) -> Any:
        """The answer, or None where it was refused."""
        try:
            answer = request()
        except Exception as error:
            if fault_of(error) is None and not isinstance(error, OSError):
                raise
            self.refused.append(_problem(explain(error, self._uri, self._location)))
            self._look_at_clock(getattr(error, "response", None))
            return None
        self._look_at_clock(answer)
        return answer

    def problems(self) -> list[str]:
        """All of them."""
        if abs(self._skew) <= SKEW:
            return self.refused
        way = "ahead of" if self._skew > 0 else "behind"
        return [
            f"{self._uri}: this machine's clock is {abs(self._skew):.0f} s {way} the server's, and "
            "S3 refuses more than 900 s: set it (NTP)",
            *(text for text in self.refused if "clock" not in text),
        ]

    def _look_at_clock(self, answer: Any) -> None:
        with contextlib.suppress(KeyError, TypeError, ValueError):
            then = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
            self._skew = (datetime.now(UTC) - then).total_seconds()


def _problems(uri: str, location: Location, actions: Collection[str]) -> list[str]:
    attempt, folder = _Attempts(uri, location), {"Bucket": location.bucket, "Prefix": location.key}
    listed = None
    if "list" in actions:
        listed = attempt(lambda: attempt.s3.list_objects_v2(**folder, MaxKeys=20))
    if attempt.refused:  # the rest would most often fail alike
        return attempt.problems()
    if "write" in actions:
        _check_writing(attempt, location, actions)
    elif "read" in actions:
        _check_reading(attempt, location, listed)
    return attempt.problems()


def _check_writing(attempt: _Attempts, location: Location, actions: Collection[str]) -> None:
    key = "/".join(filter(None, [location.key, f".bcl-ray-probe-{secrets.token_hex(8)}"]))
    probe = {"Bucket": location.bucket, "Key": key}
    if attempt(lambda: attempt.s3.put_object(**probe, Body=PROBE)) is None:
        return
    if "read" in actions:
        attempt(lambda: attempt.s3.get_object(**probe))
    # Ray writes with pyarrow, whose checksums some stores do not take.
    attempt(lambda: _write_with_pyarrow(location, key))
    if "delete" in actions:
        attempt(lambda: attempt.s3.delete_object(**probe))
    else:
        with contextlib.suppress(Exception):
            attempt.s3.delete_object(**probe)


def _write_with_pyarrow(location: Location, key: str) -> None:
    arrow = filesystem(location, attempts=0, connect_seconds=CONNECT, silence_seconds=SILENCE)
    with arrow.open_output_stream(f"{location.bucket}/{key}") as sink:
        sink.write(PROBE)


def _check_reading(attempt: _Attempts, location: Location, listed: Any) -> None:
    """Read a byte of the object, or of any in the folder; nothing can be read of an empty one."""
    bucket = {"Bucket": location.bucket}
    if listed is not None:
        keys = [item["Key"] for item in listed.get("Contents", ()) if item["Size"]]
    elif location.key:
        keys = [location.key]
    else:
        attempt(lambda: attempt.s3.head_bucket(**bucket))
        return
    if keys:
        attempt(lambda: attempt.s3.get_object(**bucket, Key=keys[0], Range="bytes=0-0"))
