"""What the S3 servers of one machine have in common."""

from abc import ABC, abstractmethod
from pathlib import Path

from bcl_ray.ops.local.ports import LOOPBACK, check_free
from bcl_ray.ops.local.processes import Processes
from bcl_ray.ops.local.secret import kept

REGION = "us-east-1"


class S3Server(ABC):
    """An S3 server that listens on this machine alone, with its data in one folder.

    Args:
        folder: of its data, settings and logs; found again by the next process that names it.
        port: of S3.
        access_key: of its one user; kept from the last time, else made up.
        secret_key: likewise.
    """

    default_access_key: str
    num_ports: int  # consecutive ones, the first is S3's

    def __init__(
        self,
        folder: str | Path,
        port: int,
        *,
        access_key: str | None = None,
        secret_key: str | None = None,
    ) -> None:
        self.processes = Processes(Path(folder))
        self.folder, self.port = self.processes.folder, port
        self.access_key = access_key or self.default_access_key
        self.secret_key = kept(self.folder / "secret_key", secret_key)

    @property
    def endpoint(self) -> str:
        """Its address, with scheme and port."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def ports(self) -> list[int]:
        """All the ports that it listens on."""
        return list(range(self.port, self.port + self.num_ports))

    def environment(self) -> dict[str, str]:
        """What a client needs."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",  # else a wrong key waits for a cloud's server
        }

    def start(self) -> None:
        """Start it, and wait until it answers; a folder with data goes on with them.

        Raises:
            OSError: it is not installed, a port is in use, or it ended; with its last words.
        """
        check_free({f"{type(self).__name__} {n}": port for n, port in enumerate(self.ports, 1)})
        self._start()

    @abstractmethod
    def _start(self) -> None: ...

    def make_bucket(self, name: str) -> None:
        """Make a bucket, where it is not there already."""
        import boto3  # noqa: PLC0415 (half a second, which `status` need not wait)
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

    def alive(self) -> bool:
        """Whether all its processes run."""
        names = self.processes.names()
        return bool(names) and all(map(self.processes.alive, names))

    def stop(self) -> None:
        """End it; the data stay."""
        self.processes.end(*self.processes.names())

    def kill(self) -> None:
        """Kill it at once, as a power cut would; the data stay."""
        self.processes.kill(*self.processes.names())
