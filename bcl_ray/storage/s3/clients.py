"""Clients of S3: pyarrow's filesystem and boto3's client.

All settings come from the environment: AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, AWS_REGION or
AWS_DEFAULT_REGION, AWS_CA_BUNDLE, and the standard chain of credentials (environment, profile, web
identity, instance role). They are those of the machine that uses a client: a pickled client holds
neither settings nor credentials.
"""

import functools
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode, urlsplit

from pyarrow import fs

from bcl_ray.storage.retry import retry
from bcl_ray.storage.s3.faults import retry_seconds, summary
from bcl_ray.storage.s3.location import Location, parse_uri

CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 20.0  # between two bytes; a busy store's first byte may take long
# pyarrow waits 25 ms before the second attempt, then twice as long each time: 12 attempts outlast
# an outage of 100 s, 2 hide a short one.
PATIENT_ATTEMPTS, QUICK_ATTEMPTS = 12, 2

Guard = Callable[[], None]  # raises to forbid a change


def filesystem(
    location: Location,
    attempts: int = PATIENT_ATTEMPTS,
    connect_seconds: float = CONNECT_SECONDS,
    silence_seconds: float = SILENCE_SECONDS,
    guard: Guard | None = None,
) -> Any:
    """The pyarrow filesystem for a location, cached while process and environment stay the same.

    Args:
        location: Anything on the server.
        attempts: Attempts by pyarrow for each request; with the default, most requests are retried
            longer than that, and after denials, too.
        connect_seconds: Time limit for connecting.
        silence_seconds: Time limit for an answer.
        guard: Called before each attempt to change something, and raises to forbid it. It needs
            the default number of attempts.
    """
    timeouts, server = (connect_seconds, silence_seconds), _server_only(location)
    return _filesystem(_environment_hash(), location.bucket, server, attempts, timeouts, guard)


def client(
    location: Location,
    attempts: int = 1,
    connect_seconds: float = CONNECT_SECONDS,
    silence_seconds: float = SILENCE_SECONDS,
) -> Any:
    """The boto3 client for a location, cached like `filesystem`; its callers retry themselves."""
    timeouts = (connect_seconds, silence_seconds)
    return _client(_environment_hash(), _server_only(location), attempts, timeouts)


def forget_clients() -> None:
    """Build new clients from now on: the credentials may have been renewed."""
    _filesystem.cache_clear()
    _client.cache_clear()


def _server_only(location: Location) -> Location:
    return Location("", "", location.endpoint, location.region, location.options)


def _environment_hash() -> str:
    """A value that changes with the settings, and in a forked child: it lacks the SDK's threads."""
    settings = sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))
    return hashlib.sha256(repr((os.getpid(), settings)).encode()).hexdigest()


@functools.lru_cache(maxsize=32)
def _filesystem(
    _: str,
    bucket: str,
    server: Location,
    attempts: int,
    timeouts: tuple[float, float],
    guard: Guard | None,
) -> Any:
    url = urlsplit(server.endpoint or "")
    permissions = {
        name: value.lower() in ("true", "1")
        for name, value in server.options
        if name.startswith("allow_")
    }
    kind = _PatientFileSystem if attempts == PATIENT_ATTEMPTS else _PortableFileSystem
    built = kind(
        endpoint_override=url.netloc + url.path.rstrip("/") or None,
        scheme=url.scheme or None,
        region=server.region or _region_of(bucket),
        tls_ca_file_path=os.environ.get("AWS_CA_BUNDLE") or None,
        connect_timeout=timeouts[0],
        request_timeout=timeouts[1],
        retry_strategy=fs.AwsDefaultS3RetryStrategy(max_attempts=attempts),
        allow_delayed_open=True,  # a small object takes one request instead of three
        **permissions,
    )
    built.arguments = (bucket, server.options, attempts, *timeouts, guard)
    return built


class _PortableFileSystem(fs.S3FileSystem):
    """A filesystem that is unpickled with the settings of the machine that it comes to.

    pyarrow's own would bring the endpoint of the machine that pickled it, and would lose the number
    of attempts.
    """

    arguments: tuple[Any, ...]  # of `_rebuild`

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, self.arguments


class _PatientFileSystem(_PortableFileSystem):
    """A filesystem that retries denials and long outages, for callers that do not: Ray Train.

    Each of its attempts is a quick one of pyarrow: after a minute of outage pyarrow itself would
    wait 51 s before it tries again.
    """

    def get_file_info(self, paths_or_selector: Any) -> Any:
        return self._retry("get_file_info", paths_or_selector)

    def create_dir(self, path: str, *, recursive: bool = True) -> None:
        self._retry("create_dir", path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        self._retry("delete_dir", path, guard=self._check_guard)

    def delete_file(self, path: str) -> None:
        self._retry("delete_file", path, guard=self._check_guard)

    @contextmanager
    def open_output_stream(self, path: str, *_: Any, **__: Any) -> Iterator[io.BytesIO]:
        """A sink in memory, whose bytes are uploaded as one object when the block ends."""
        sink = io.BytesIO()
        yield sink
        bucket, key = path.split("/", 1)

        def upload() -> None:
            self._check_guard()
            client(self._server()).put_object(Bucket=bucket, Key=key, Body=sink.getvalue())

        retry(upload, f"s3://{path}", retry_seconds, summary)

    def _server(self) -> Location:
        return _server_location(self.arguments[0], self.arguments[1])

    def _check_guard(self) -> None:
        if (guard := self.arguments[-1]) is not None:
            guard()

    def _retry(self, method: str, what: Any, *, guard: Guard = lambda: None, **options: Any) -> Any:
        server = self._server()

        def attempt() -> Any:
            guard()
            return getattr(filesystem(server, attempts=QUICK_ATTEMPTS), method)(what, **options)

        path = what.base_dir if isinstance(what, fs.FileSelector) else what
        return retry(attempt, f"s3://{path}", retry_seconds, summary)


def _rebuild(bucket: str, options: tuple[tuple[str, str], ...], *settings: Any) -> Any:
    return filesystem(_server_location(bucket, options), *settings)


def _server_location(bucket: str, options: tuple[tuple[str, str], ...]) -> Location:
    return parse_uri(f"s3://{bucket}" + ("?" + urlencode(options) if options else ""))


def _region_of(bucket: str) -> str | None:
    """The region of a bucket in AWS; None if it is unknown, and the SDK looks it up itself."""
    try:
        return str(fs.resolve_s3_region(bucket))
    except OSError:
        return None


@functools.lru_cache(maxsize=32)
def _client(_: str, server: Location, attempts: int, timeouts: tuple[float, float]) -> Any:
    from boto3.session import Session  # noqa: PLC0415 (half a second, and only S3 needs it)
    from botocore.config import Config  # noqa: PLC0415

    config = Config(
        s3={"addressing_style": "path" if server.endpoint else "auto"},
        connect_timeout=timeouts[0],
        read_timeout=timeouts[1],
        retries={"mode": "standard", "total_max_attempts": attempts},
    )
    return Session().client(
        "s3", endpoint_url=server.endpoint, region_name=server.region, config=config
    )
