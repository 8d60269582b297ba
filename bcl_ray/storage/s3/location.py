"""Where an S3 URI points, and clients for it; all settings come from the environment.

AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, AWS_REGION or AWS_DEFAULT_REGION, AWS_CA_BUNDLE, and
the standard chain of credentials: environment, profile, web identity, instance role. The
machine that uses a client resolves them; neither a URI nor a pickled client holds any.
"""

import functools
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from pyarrow import fs

from bcl_ray.machine.errors import UserError
from bcl_ray.storage.retry import persist

CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 20.0  # without a byte; a busy store's first byte may take long
# Retries wait 25 ms, then twice as long each time: 12 outlast an outage of 100 s, 2 hide a blip.
PATIENT, QUICK = 12, 2
Guard = Callable[[], None]
OPTIONS = (
    "endpoint_override",
    "scheme",
    "region",
    "allow_bucket_creation",
    "allow_bucket_deletion",
)


@dataclass(frozen=True)
class Location:
    """A bucket and a key in it, and the server that has them.

    Args:
        bucket: its name.
        key: of an object, or the prefix of a folder; without '/' at either end.
        endpoint: URL of a server other than AWS.
        region: None: whatever the profile or the instance says.
        options: of the URI.
    """

    bucket: str
    key: str
    endpoint: str | None
    region: str | None
    options: tuple[tuple[str, str], ...] = ()

    @property
    def path(self) -> str:
        """As pyarrow wants it."""
        return f"{self.bucket}/{self.key}".rstrip("/")

    @property
    def server(self) -> str:
        """The endpoint, in words."""
        return self.endpoint or "AWS"


def is_s3(uri: str) -> bool:
    """Whether a URI is one of S3."""
    return uri.startswith("s3://")


def parse_uri(uri: str) -> Location:
    """A URI's bucket, key and server; options after '?' win over the environment.

    Raises:
        ValueError: no bucket, credentials in the URI, or an unknown option.
    """
    address, _, query = uri.partition("?")
    bucket, _, key = address.removeprefix("s3://").partition("/")
    options = dict(parse_qsl(query))
    if "@" in bucket or any("key" in name or "token" in name for name in options):
        raise UserError(
            "an s3:// URI must not hold credentials, it is shown and stored in many places: give "
            "them by the environment, a profile or an instance role"
        )
    if not bucket:
        raise UserError(f"'{uri}' names no bucket: write s3://BUCKET/FOLDER")
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise UserError(f"'{uri}' has no option {unknown[0]}: there are {', '.join(OPTIONS)}")
    endpoint = options.get("endpoint_override") or (
        os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    )
    if endpoint and "://" not in endpoint:
        endpoint = f"{options.get('scheme', 'https')}://{endpoint}"
    region = (
        options.get("region")
        or os.environ.get("AWS_REGION")
        or os.environ.get("AWS_DEFAULT_REGION")
        or ("us-east-1" if endpoint else None)
    )
    return Location(bucket, unquote(key).strip("/"), endpoint, region, tuple(options.items()))


def filesystem(
    location: Location,
    attempts: int = PATIENT,
    connect_seconds: float = CONNECT_SECONDS,
    silence_seconds: float = SILENCE_SECONDS,
    guard: Guard | None = None,
) -> Any:
    """The pyarrow filesystem of a location, kept while the process and its environment last.

    Args:
        location: on the server that is meant.
        attempts, connect_seconds, silence_seconds: of each request.
        guard: called before each attempt to change something, and raises to forbid it; with the
            default number of attempts.
    """
    timeouts, server = (connect_seconds, silence_seconds), _server_only(location)
    return _filesystem(_environment(), location.bucket, server, attempts, timeouts, guard)


def client(
    location: Location,
    attempts: int = 1,
    connect_seconds: float = CONNECT_SECONDS,
    silence_seconds: float = SILENCE_SECONDS,
) -> Any:
    """The boto3 client of a location, kept likewise; its callers try again themselves."""
    timeouts = (connect_seconds, silence_seconds)
    return _client(_environment(), _server_only(location), attempts, timeouts)


def forget() -> None:
    """Build clients afresh from now on, with credentials that were renewed in the meantime."""
    _filesystem.cache_clear()
    _client.cache_clear()


def _server_only(location: Location) -> Location:
    return Location("", "", location.endpoint, location.region, location.options)


def _environment() -> str:
    """Changes with the settings, and in a forked child, where threads of the SDK are gone."""
    settings = sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))
    return hashlib.sha256(repr((os.getpid(), settings)).encode()).hexdigest()


@functools.lru_cache(maxsize=32)
def _filesystem(
    _: str,
    bucket: str,
    location: Location,
    attempts: int,
    timeouts: tuple[float, float],
    guard: Guard | None,
) -> Any:
    url = urlsplit(location.endpoint or "")
    allowed = {
        name: value.lower() in ("true", "1")
        for name, value in location.options
        if name.startswith("allow_")
    }
    kind = _Patient if attempts == PATIENT else _Rebuilt
    made = kind(
        endpoint_override=url.netloc + url.path.rstrip("/") or None,
        scheme=url.scheme or None,
        region=location.region or _region_of(bucket),
        tls_ca_file_path=os.environ.get("AWS_CA_BUNDLE") or None,
        connect_timeout=timeouts[0],
        request_timeout=timeouts[1],
        retry_strategy=fs.AwsDefaultS3RetryStrategy(max_attempts=attempts),
        allow_delayed_open=True,  # a small object takes one request instead of three
        **allowed,
    )
    made.parts = (bucket, location.options, attempts, *timeouts, guard)
    return made


class _Rebuilt(fs.S3FileSystem):
    """Built afresh where it is unpickled, from the environment there.

    pyarrow's own would bring this machine's endpoint, and forget how often to try again.
    """

    parts: tuple[Any, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, self.parts


class _Patient(_Rebuilt):
    """For callers that try once, Ray Train above all: denials and longer outages pass, too.

    Each attempt is a quick one: pyarrow's own would wait 51 s for the next after a minute.
    """

    def get_file_info(self, paths_or_selector: Any) -> Any:
        return self._persist("get_file_info", paths_or_selector)

    def create_dir(self, path: str, *, recursive: bool = True) -> None:
        self._persist("create_dir", path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        self._persist("delete_dir", path, guard=self._guard)

    def delete_file(self, path: str) -> None:
        self._persist("delete_file", path, guard=self._guard)

    @contextmanager
    def open_output_stream(self, path: str, *_: Any, **__: Any) -> Iterator[io.BytesIO]:
        """A sink whose bytes are kept in memory until the block ends, then sent as one object."""
        sink = io.BytesIO()
        yield sink
        bucket, key = path.split("/", 1)
        location = _server_location(self.parts[0], self.parts[1])

        def send() -> None:
            self._guard()
            client(location).put_object(Bucket=bucket, Key=key, Body=sink.getvalue())

        _persistently(send, path)

    def _guard(self) -> None:
        if (guard := self.parts[-1]) is not None:
            guard()

    def _persist(self, name: str, what: Any, *, guard: Guard = lambda: None, **options: Any) -> Any:
        location = _server_location(self.parts[0], self.parts[1])

        def attempt() -> Any:
            guard()
            return getattr(filesystem(location, attempts=QUICK), name)(what, **options)

        return _persistently(attempt, what)


def _persistently(function: Callable[[], Any], what: Any) -> Any:
    from bcl_ray.storage.s3.faults import brief, patience  # noqa: PLC0415 (they import this module)

    shown = what.base_dir if isinstance(what, fs.FileSelector) else what
    return persist(function, f"s3://{shown}", patience, brief)


def _rebuild(bucket: str, options: tuple[tuple[str, str], ...], *settings: Any) -> Any:
    return filesystem(_server_location(bucket, options), *settings)


def _server_location(bucket: str, options: tuple[tuple[str, str], ...]) -> Location:
    return parse_uri(f"s3://{bucket}" + ("?" + urlencode(options) if options else ""))


def _region_of(bucket: str) -> str | None:
    """Where AWS has a bucket; None where it cannot be told, and the SDK looks further."""
    try:
        return str(fs.resolve_s3_region(bucket))
    except OSError:
        return None


@functools.lru_cache(maxsize=32)
def _client(_: str, location: Location, attempts: int, timeouts: tuple[float, float]) -> Any:
    from boto3.session import Session  # noqa: PLC0415 (half a second, and only S3 needs it)
    from botocore.config import Config  # noqa: PLC0415

    style = "path" if location.endpoint else "auto"
    config = Config(
        s3={"addressing_style": style},
        connect_timeout=timeouts[0],
        read_timeout=timeouts[1],
        retries={"mode": "standard", "total_max_attempts": attempts},
    )
    return Session().client(
        "s3", endpoint_url=location.endpoint, region_name=location.region, config=config
    )
