"""Base class of the S3 servers that run on one machine."""

from abc import ABC, abstractmethod
from pathlib import Path

from bcl_ray.machine.waiting import answers
from bcl_ray.ops.local.ports import LOOPBACK, check_free
from bcl_ray.ops.local.processes import Processes
from bcl_ray.ops.local.secret import ensure_secret

REGION = "us-east-1"


class S3Server(ABC):
    """An S3 server that listens on 127.0.0.1 alone and keeps its data in one folder.

    Args:
        folder: Data, settings and logs; any later process can name it and control the server.
    """

    access_key: str
    """Access key of the only user."""
    num_ports: int
    """Number of consecutive ports; the first is that of S3."""

    def __init__(self, folder: str | Path, port: int) -> None:
        self.processes = Processes(Path(folder))
        self.folder, self.port = self.processes.folder, port
        self.secret_key = ensure_secret(self.folder / "secret_key")

    @property
    def endpoint(self) -> str:
        """URL of the S3 interface."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def ports(self) -> list[int]:
        """All ports of the server."""
        return list(range(self.port, self.port + self.num_ports))

    def environment(self) -> dict[str, str]:
        """Environment variables of clients."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",  # else a wrong key waits for EC2's key server
        }

    def start(self) -> None:
        """Start the server on the data that the folder has, and wait until it answers.

        Raises:
            OSError: It is not installed, a port is in use, or it has ended; with its last line.
        """
        check_free({f"{type(self).__name__} {n}": port for n, port in enumerate(self.ports, 1)})
        self._start()

    @abstractmethod
    def _start(self) -> None: ...

    def _wait_for(self, name: str, port: int) -> None:
        """Wait until a process of the server accepts connections."""
        self.processes.wait(name, lambda: answers(LOOPBACK, port), seconds=60)

    def make_bucket(self, name: str) -> None:
        """Make a bucket, if it does not exist."""
        import boto3  # noqa: PLC0415 (its import takes half a second)
        from botocore.config import Config  # noqa: PLC0415

        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=REGION,
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 10}),
        )
        if name not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
            client.create_bucket(Bucket=name)

    def stop(self) -> None:
        """End the server; its data stay."""
        self.processes.end(*self.processes.names())
