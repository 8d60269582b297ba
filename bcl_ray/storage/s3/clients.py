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
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

from pyarrow import fs

from bcl_ray.storage.retry import retry
from bcl_ray.storage.s3.faults import retry_seconds, summary
from bcl_ray.storage.s3.location import Location, parse_uri

# pyarrow waits 25 ms before the second attempt, then twice as long each time: 12 attempts outlast
# an outage of 100 s, 2 hide a short one.
PATIENT_ATTEMPTS, QUICK_ATTEMPTS = 12, 2

Guard = Callable[[], None]  # raises to forbid a change


class Timeouts(NamedTuple):
    """Time limits of a request, in seconds."""

    connect: float = 5.0
    silence: float = 20.0
    """Between two bytes; a busy store's first byte may take long."""


TIMEOUTS = Timeouts()


def filesystem(location: Location, attempts: int, timeouts: Timeouts = TIMEOUTS) -> Any:
    """The pyarrow filesystem for a location, cached while process and environment stay the same.

    Args:
        location: Anything on the server.
        attempts: Attempts by pyarrow for each request.
        timeouts: Of each attempt.
    """
    settings = _Settings(location.bucket, location.options, attempts, timeouts)
    return _filesystem(_environment_hash(), _PortableFileSystem, _server_only(location), settings)


def patient_filesystem(location: Location, guard: Guard | None = None) -> Any:
    """Like `filesystem`, but it retries most requests for minutes, and after denials, too.

    Args:
        location: Anything on the server.
        guard: Called before each attempt to change something, and raises to forbid it.
    """
    settings = _Settings(location.bucket, location.options, PATIENT_ATTEMPTS, TIMEOUTS, guard)
    return _filesystem(_environment_hash(), _PatientFileSystem, _server_only(location), settings)


def client(location: Location, attempts: int = 1, timeouts: Timeouts = TIMEOUTS) -> Any:
    """The boto3 client for a location, cached like `filesystem`; its callers retry themselves."""
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


class _Settings(NamedTuple):
    """What a filesystem is made of on every machine that it comes to."""

    bucket: str
    options: tuple[tuple[str, str], ...]
    attempts: int
    timeouts: Timeouts
    guard: Guard | None = None

    @property
    def location(self) -> Location:
        """The bucket, on the server that this machine's environment names."""
        options = "?" + urlencode(self.options) if self.options else ""
        return parse_uri(f"s3://{self.bucket}{options}")


class _PortableFileSystem(fs.S3FileSystem):
    """A filesystem that is unpickled with the settings of the machine that it comes to.

    pyarrow's own would bring the endpoint of the machine that pickled it, and would lose the number
    of attempts.
    """

    settings: _Settings

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.settings)


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
            client(self.settings.location).put_object(Bucket=bucket, Key=key, Body=sink.getvalue())

        retry(upload, f"s3://{path}", retry_seconds, summary)

    def _check_guard(self) -> None:
        if self.settings.guard is not None:
            self.settings.guard()

    def _retry(
        self,
        method: str,
        path_or_selector: Any,
        *,
        guard: Guard = lambda: None,
        **options: Any,
    ) -> Any:
        location = self.settings.location

        def attempt() -> Any:
            guard()
            quick = filesystem(location, QUICK_ATTEMPTS)
            return getattr(quick, method)(path_or_selector, **options)

        is_selector = isinstance(path_or_selector, fs.FileSelector)
        path = path_or_selector.base_dir if is_selector else path_or_selector
        return retry(attempt, f"s3://{path}", retry_seconds, summary)


Kind = Callable[..., Any]  # _PortableFileSystem or _PatientFileSystem


def _rebuild(kind: Kind, settings: _Settings) -> Any:
    return _filesystem(_environment_hash(), kind, _server_only(settings.location), settings)


@functools.lru_cache(maxsize=32)
def _filesystem(_: str, kind: Kind, server: Location, settings: _Settings) -> Any:
    url = urlsplit(server.endpoint or "")
    permissions = {
        name: value.lower() in ("true", "1")
        for name, value in settings.options
        if name.startswith("allow_")
    }
    built = kind(
        endpoint_override=url.netloc + url.path.rstrip("/") or None,
        scheme=url.scheme or None,
        region=server.region or _region_of(settings.bucket),
        tls_ca_file_path=os.environ.get("AWS_CA_BUNDLE") or None,
        connect_timeout=settings.timeouts.connect,
        request_timeout=settings.timeouts.silence,
        retry_strategy=fs.AwsDefaultS3RetryStrategy(max_attempts=settings.attempts),
        allow_delayed_open=True,  # a small object takes one request instead of three
        **permissions,
    )
    built.settings = settings
    return built


def _region_of(bucket: str) -> str | None:
    """The region of a bucket in AWS; None if it is unknown, and the SDK looks it up itself."""
    try:
        return str(fs.resolve_s3_region(bucket))
    except OSError:
        return None


@functools.lru_cache(maxsize=32)
def _client(_: str, server: Location, attempts: int, timeouts: Timeouts) -> Any:
    from boto3.session import Session  # noqa: PLC0415 (half a second, and only S3 needs it)
    from botocore.config import Config  # noqa: PLC0415

    config = Config(
        s3={"addressing_style": "path" if server.endpoint else "auto"},
        connect_timeout=timeouts.connect,
        read_timeout=timeouts.silence,
        retries={"mode": "standard", "total_max_attempts": attempts},
    )
    return Session().client(
        "s3", endpoint_url=server.endpoint, region_name=server.region, config=config
    )
