"""A PostgreSQL server for MLflow, on 127.0.0.1 alone and with a password."""

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

from bcl_ray.machine.messages import last_line
from bcl_ray.ops.local.ports import LOOPBACK
from bcl_ray.ops.local.processes import Processes, program
from bcl_ray.ops.local.secret import ensure_secret, write_private

INSTALL = "apt-get install postgresql, or --database sqlite"
USER = "mlflow"


class Postgres:
    """A database server whose data stay in a folder.

    PostgreSQL refuses to run as root. For root, it runs as another user, with its data in a
    temporary folder that this user may enter; `data` in the folder is then a link to it.

    Args:
        folder: Data and password.
        processes: Processes among which it runs, under the name `postgres`.
    """

    def __init__(self, folder: Path, port: int, processes: Processes) -> None:
        self.folder, self.port, self.processes = folder, port, processes
        self._password_file = folder / "pgpass"
        self._user = _unprivileged_user() if os.geteuid() == 0 else None

    @property
    def address(self) -> str:
        """URL for SQLAlchemy, without the password: `environment` names its file."""
        return f"postgresql+psycopg2://{USER}@{LOOPBACK}:{self.port}/postgres"

    def environment(self) -> dict[str, str]:
        """Environment variables of clients."""
        return {"PGPASSFILE": str(self._password_file)}

    def start(self) -> None:
        """Start the server, and wait until it answers queries.

        Raises:
            OSError: It is not installed, or has ended; with its last line of output.
        """
        server = program("postgres", INSTALL)
        data = self.folder / "data"
        if not data.exists():
            self._create(data)
        command = [server, "-D", str(data.resolve()), "-p", str(self.port)]
        command += ["-c", f"listen_addresses={LOOPBACK}", "-c", "unix_socket_directories="]
        password = ensure_secret(self.folder / "password")
        # Written each time, for the port may have changed.
        write_private(self._password_file, f"{LOOPBACK}:{self.port}:*:{USER}:{password}\n")
        self.processes.start("postgres", command, dict(os.environ), user=self._user)
        self.processes.wait("postgres", self._answers_queries, seconds=60)

    def _answers_queries(self) -> bool:
        """Whether the server accepts a login; while starting, it accepts only connections."""
        import psycopg2  # noqa: PLC0415 (installed only where this database is wanted)

        address = self.address.replace("+psycopg2", "")
        try:
            psycopg2.connect(address, passfile=str(self._password_file)).close()
        except psycopg2.OperationalError:
            return False
        return True

    def _create(self, data: Path) -> None:
        """Create the database in a temporary folder, and link to it when it is complete."""
        initdb = program("initdb", INSTALL)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        parent = None if self._user else self.folder
        folder = Path(tempfile.mkdtemp(prefix="bcl-ray-postgres-", dir=parent))
        with tempfile.NamedTemporaryFile("w") as secret:
            secret.write(ensure_secret(self.folder / "password"))
            secret.flush()
            if self._user:
                shutil.chown(secret.name, self._user)
                shutil.chown(folder, self._user)
            done = subprocess.run(  # noqa: S603 (the command is ours)
                [
                    initdb,
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
            raise OSError(f"initdb failed: {last_line(done.stderr, 'it gave no reason')}")
        data.unlink(missing_ok=True)  # a link to a temporary folder that has been deleted
        data.symlink_to(folder)


def _unprivileged_user() -> str:
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"
