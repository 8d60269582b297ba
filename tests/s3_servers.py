"""Real S3 servers for tests, one of a kind per session, and a proxy with faults before them."""

import contextlib
import random
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from bcl_ray.storage import s3
from tests.faulty_proxy import FaultyProxy


@dataclass(frozen=True)
class Bucket:
    """An empty bucket; the environment is set for its server."""

    uri: str
    kind: str  # swift or ceph
    server: object

    @property
    def client(self):
        return s3.client(s3.parse_uri(self.uri))

    def keys(self) -> list[str]:
        name = s3.parse_uri(self.uri).bucket
        return [
            item["Key"] for item in self.client.list_objects_v2(Bucket=name).get("Contents", ())
        ]


def free_block(count: int) -> int:
    """The first of some consecutive ports, below those that the system hands out."""
    while True:
        first = random.randrange(20000, 32000)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                one = stack.enter_context(socket.socket())
                one.bind(("127.0.0.1", port))
            return first


@pytest.fixture(scope="session", params=["swift", "ceph"])
def s3_server(request, tmp_path_factory) -> Iterator:
    """OpenStack Swift, then Ceph where it is installed."""
    from bcl_ray.ops.local.swift import Swift
    from tests.ceph import Ceph

    if request.param == "ceph" and not Ceph.installed():
        pytest.skip("Ceph is not installed: apt-get install radosgw ceph-mon ceph-osd")
    kind = {"swift": Swift, "ceph": Ceph}[request.param]
    server = kind(tmp_path_factory.mktemp(request.param), free_block(kind.num_ports))
    try:
        server.start()
        yield server
    finally:
        server.processes.kill(*server.processes.names())


@pytest.fixture
def bucket(s3_server, monkeypatch) -> Bucket:
    """A bucket of a server of each kind."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REQUEST_CHECKSUM_CALCULATION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    name = f"test-{secrets.token_hex(6)}"
    made = Bucket(f"s3://{name}", type(s3_server).__name__.lower(), s3_server)
    made.client.create_bucket(Bucket=name)
    return made


@pytest.fixture
def proxy(bucket, monkeypatch) -> Iterator[FaultyProxy]:
    """A proxy before the bucket's server, which the environment leads to."""
    running = FaultyProxy(bucket.server.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
    yield running
    running.stop()
