"""Where an S3 URI points: bucket, key and server."""

import os
import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote

from bcl_ray.machine.errors import UserError

OPTIONS = (
    "endpoint_override",
    "scheme",
    "region",
    "allow_bucket_creation",
    "allow_bucket_deletion",
)


@dataclass(frozen=True)
class Location:
    """An object or a folder in S3, and the server that has it."""

    bucket: str
    key: str  # of an object, or the prefix of a folder; without '/' at its end
    endpoint: str | None  # URL of the server, None for AWS
    region: str | None  # None for the region of the profile or the instance
    options: tuple[tuple[str, str], ...] = ()  # of the URI, after '?'

    @property
    def path(self) -> str:
        """Bucket and key, as pyarrow names the object."""
        return f"{self.bucket}/{self.key}".rstrip("/")

    @property
    def object(self) -> dict[str, str]:
        """Bucket and key, as requests name the object."""
        return {"Bucket": self.bucket, "Key": self.key}

    @property
    def prefix(self) -> str:
        """What the keys of all objects in the folder begin with."""
        return f"{self.key}/" if self.key else ""

    @property
    def server(self) -> str:
        """The server's name for messages."""
        return self.endpoint or "AWS"


def is_s3(uri: str) -> bool:
    """Whether a URI is one of S3."""
    return uri.startswith("s3://")


def is_same_server(*uris: str) -> bool:
    """Whether all URIs are of S3 and of one server."""
    servers = {
        (location.endpoint, location.region)
        for location in (parse_uri(uri) for uri in uris if is_s3(uri))
    }
    return len(servers) == 1 and all(map(is_s3, uris))


def parse_uri(uri: str) -> Location:
    """Parse an S3 URI; its options, after '?', take precedence over the environment.

    Special characters of a key may be written as %XX, and must be where they would mean something
    else: '?' as %3F, '%' before two hex digits as %25, '/' in an empty part as %2F.

    Raises:
        ValueError: The URI has no bucket, contains credentials, has an unknown option, or a key
            with an empty part, which pyarrow does not open.
    """
    address, question, query = uri.partition("?")
    bucket, _, key = address.removeprefix("s3://").partition("/")
    pairs = parse_qsl(query, keep_blank_values=True)
    if "@" in bucket or any("key" in name or "token" in name for name, _ in pairs):
        raise UserError(
            "an s3:// URI must not hold credentials, it is shown and stored in many places: give "
            "them by the environment, a profile or an instance role"
        )
    if not bucket:
        raise UserError(f"'{uri}' names no bucket: write s3://BUCKET/FOLDER")
    if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]*", bucket):
        raise UserError(
            f"'{uri}': the bucket's name must consist of letters, digits, '.', '-' and '_'; a "
            "server is named by AWS_ENDPOINT_URL, or by ?endpoint_override="
        )
    if key and not all(key.removesuffix("/").split("/")):
        raise UserError(f"'{uri}' has an empty part: remove one '/' where two follow another")
    if question:
        _check_options(uri, pairs)
    options = dict(pairs)
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
    key = unquote(key.removesuffix("/"))
    return Location(bucket, key, endpoint, region, tuple(options.items()))


def _check_options(uri: str, pairs: list[tuple[str, str]]) -> None:
    names = [name for name, _ in pairs]
    unknown = sorted(set(names) - set(OPTIONS))
    if unknown or not names:
        raise UserError(
            f"'{uri}' has no option {unknown[0] if unknown else ''}: there are "
            f"{', '.join(OPTIONS)}; write a '?' of a name as %3F"
        )
    for name, value in pairs:
        if not value or names.count(name) > 1:
            raise UserError(f"'{uri}' must give the option {name} one value")
