"""Checks, before a start, that a location in S3 can be used as a run will use it."""

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
from bcl_ray.storage.s3.clients import Timeouts, client, filesystem
from bcl_ray.storage.s3.diagnosis import WRONG_CLOCK, explain
from bcl_ray.storage.s3.faults import fault_of
from bcl_ray.storage.s3.location import Location, parse_uri

CHECK_SECONDS = 15.0  # time limit for a whole check
TIMEOUTS = Timeouts(connect=3.0, silence=5.0)  # of each of its requests
MAX_CLOCK_SKEW = 300.0  # seconds; S3 refuses 900
ACTIONS = ("list", "read", "write", "delete")
PROBE = b"bcl_ray looks whether it may write here; may be deleted"


class TransientProblem(str):
    """A problem that may be over later."""

    __slots__ = ()


def check_access(uri: str, actions: Collection[str], seconds: float = CHECK_SECONDS) -> list[str]:
    """Check that a URI can be used, and list the problems, each with what to do.

    Writing is tried with an object of a random name in the folder, which is then deleted.

    Args:
        uri: A folder, which need not exist, or an object that will only be read.
        actions: The actions that will be needed, of ACTIONS. "read" alone tries the object that the
            URI names.
        seconds: Time limit for an endpoint that does not answer.

    Returns:
        The problems, each a `TransientProblem` if it may be over later.

    Raises:
        ValueError: The URI is malformed, or an action is unknown.
    """
    unknown = sorted(set(actions) - set(ACTIONS))
    if unknown:
        raise UserError(f"action '{unknown[0]}' must be one of {', '.join(ACTIONS)}")
    location = parse_uri(uri)
    results: queue.Queue[list[str]] = queue.Queue()

    def check() -> None:
        try:
            results.put(_Check(uri, location).run(actions))
        except Exception as error:
            results.put([_problem(explain(error, uri, location))])

    # In a thread, because some failures exceed the time limits of the requests.
    threading.Thread(target=check, name="check-s3", daemon=True).start()
    try:
        return results.get(timeout=seconds)
    except queue.Empty:
        return [
            TransientProblem(
                f"{uri}: {location.server} has not answered within {seconds:g} s: check "
                "AWS_ENDPOINT_URL, the network and its firewalls"
            )
        ]


def _problem(error: OSError) -> str:
    return TransientProblem(error) if isinstance(error, TransientError) else str(error)


class _Check:
    """The requests of a check, the problems that they met, and the server's clock."""

    def __init__(self, uri: str, location: Location) -> None:
        self._uri, self._location = uri, location
        self._s3 = client(location, timeouts=TIMEOUTS)
        self._problems: list[str] = []
        self._clock_problems: list[str] = []  # those of them that say that the clock is wrong
        self._clock_skew = 0.0  # seconds that this machine's clock is ahead

    def run(self, actions: Collection[str]) -> list[str]:
        """Try the actions, and return the problems."""
        folder = {"Bucket": self._location.bucket, "Prefix": self._location.key}
        listing = None
        if "list" in actions:
            listing = self._try(lambda: self._s3.list_objects_v2(**folder, MaxKeys=20))
        if not self._problems:  # other requests would mostly fail for the same reason
            if "write" in actions:
                self._check_writing(actions)
            elif "read" in actions:
                self._check_reading(listing)
        return self._with_clock_problem()

    def _check_writing(self, actions: Collection[str]) -> None:
        key = f"{self._location.prefix}.bcl-ray-probe-{secrets.token_hex(8)}"
        probe = {"Bucket": self._location.bucket, "Key": key}
        if self._try(lambda: self._s3.put_object(**probe, Body=PROBE)) is None:
            return
        if "read" in actions:
            self._try(lambda: self._s3.get_object(**probe))
        # Ray writes with pyarrow, whose checksums some stores do not accept.
        self._try(lambda: self._write_with_pyarrow(key))
        if "delete" in actions:
            self._try(lambda: self._s3.delete_object(**probe))
        else:
            with contextlib.suppress(Exception):
                self._s3.delete_object(**probe)

    def _write_with_pyarrow(self, key: str) -> None:
        arrow = filesystem(self._location, attempts=0, timeouts=TIMEOUTS)
        with arrow.open_output_stream(f"{self._location.bucket}/{key}") as sink:
            sink.write(PROBE)

    def _check_reading(self, listing: Any) -> None:
        """Read a byte of the object, or of an object in the folder, if there is one."""
        bucket = {"Bucket": self._location.bucket}
        if listing is not None:
            keys = [item["Key"] for item in listing.get("Contents", ()) if item["Size"]]
        elif self._location.key:
            keys = [self._location.key]
        else:
            self._try(lambda: self._s3.head_bucket(**bucket))
            return
        if keys:
            self._try(lambda: self._s3.get_object(**bucket, Key=keys[0], Range="bytes=0-0"))

    def _try(self, request: Callable[[], Any]) -> Any:
        """The response of a request; None if it failed, which is recorded as a problem."""
        try:
            response = request()
        except Exception as error:
            fault = fault_of(error)
            if fault is None and not isinstance(error, OSError):
                raise
            problem = _problem(explain(error, self._uri, self._location))
            self._problems.append(problem)
            if fault is not None and fault.code in WRONG_CLOCK:
                self._clock_problems.append(problem)
            self._read_clock(getattr(error, "response", None))
            return None
        self._read_clock(response)
        return response

    def _read_clock(self, response: Any) -> None:
        with contextlib.suppress(KeyError, TypeError, ValueError):
            server = parsedate_to_datetime(response["ResponseMetadata"]["HTTPHeaders"]["date"])
            self._clock_skew = (datetime.now(UTC) - server).total_seconds()

    def _with_clock_problem(self) -> list[str]:
        """The problems, with that of a wrong clock before them."""
        if abs(self._clock_skew) <= MAX_CLOCK_SKEW:
            return self._problems
        direction = "ahead of" if self._clock_skew > 0 else "behind"
        return [
            f"{self._uri}: this machine's clock is {abs(self._clock_skew):.0f} s {direction} the "
            "server's, and S3 refuses more than 900 s: set it (NTP)",
            *(text for text in self._problems if text not in self._clock_problems),
        ]
