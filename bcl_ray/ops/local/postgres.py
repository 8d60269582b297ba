"""PostgreSQL on one machine, for MLflow: loopback only, with a password of its own."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bcl_ray.ops.local.ports import LOOPBACK
from bcl_ray.ops.local.processes import Processes, program
from bcl_ray.ops.local.secret import kept, write_private

INSTALL = "apt-get install postgresql, or --database sqlite"
USER = "mlflow"


class Postgres:
    """A database that stays in a folder.

    It refuses to run as root, so root's runs as another user, with its data where that user may go.

    Args:
        folder: of its data and password.
        port: on this machine alone.
        processes: among which it runs, as `postgres`.
    """

    def __init__(self, folder: Path, port: int, processes: Processes) -> None:
        self.folder, self.port, self.processes = folder, port, processes
        self._password_file = folder / "pgpass"
        self._user = _other_user() if os.geteuid() == 0 else None

    @property
    def address(self) -> str:
        """For SQLAlchemy; the password is in a file that the environment names."""
        return f"postgresql+psycopg2://{USER}@{LOOPBACK}:{self.port}/postgres"

    def environment(self) -> dict[str, str]:
        """What a client needs beside the address."""
        return {"PGPASSFILE": str(self._password_file)}

    def start(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            OSError: it is not installed, or ended; with its last words.
        """
        server = program("postgres", INSTALL)
        data = self.folder / "data"
        if not data.exists():
            self._make(data)
        command = [server, "-D", str(data.resolve()), "-p", str(self.port)]
        command += ["-c", f"listen_addresses={LOOPBACK}", "-c", "unix_socket_directories="]
        password = kept(self.folder / "password")
        # The port may have changed since the last time.
        write_private(self._password_file, f"{LOOPBACK}:{self.port}:*:{USER}:{password}\n")
        self.processes.start("postgres", command, dict(os.environ), user=self._user)
        self.processes.wait("postgres", self._takes_queries(), seconds=60)

    def _takes_queries(self) -> Iterator[bool]:
        """Whether it has started; it accepts connections before that, and refuses what they say."""
        import psycopg2  # noqa: PLC0415 (only where this database is asked for)

        address = self.address.replace("+psycopg2", "")
        while True:
            try:
                psycopg2.connect(address, passfile=str(self._password_file)).close()
                yield True
            except psycopg2.OperationalError:
                yield False

    def _make(self, data: Path) -> None:
        """Make the database; a folder that is not complete never gets its name."""
        program("initdb", INSTALL)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        where = None if self._user else self.folder
        folder = Path(tempfile.mkdtemp(prefix="bcl-ray-postgres-", dir=where))
        with tempfile.NamedTemporaryFile("w") as secret:
            secret.write(kept(self.folder / "password"))
            secret.flush()
            if self._user:
                shutil.chown(secret.name, self._user)
                shutil.chown(folder, self._user)
            done = subprocess.run(  # noqa: S603 (the command is ours)
                [
                    program("initdb", INSTALL),
                    *("-D", str(folder), "-U", USER, "-A", "scram-sha-256"),
                    f"--pwfile={secret.name}",
                ],
                capture_output=True,
                text=True,
                user=self._user,
                cwd=folder,
                check=False,
                timeout=120,
            )
        if done.returncode:
            shutil.rmtree(folder)
            raise OSError(f"initdb failed: {done.stderr.strip().splitlines()[-1:]}")
        data.unlink(missing_ok=True)  # of a temporary folder that is gone
        data.symlink_to(folder)


def _other_user() -> str:
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"
