"""MLflow's web pages for the runs of this machine: a server that runs until the command ends."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from typing import IO

from bcl_ray.machine.errors import UserError
from bcl_ray.machine.messages import last_line
from bcl_ray.tracking import mlflow_server
from bcl_ray.tracking.connection import sqlite_file, sqlite_uri

LOOPBACK = "127.0.0.1"
PORT = 5000  # MLflow's default
START_SECONDS = 300  # 5 were measured on a quiet machine, 100 on a busy one


@contextlib.contextmanager
def served(uri: str, port: int | None = None) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """Run an MLflow server that only this machine can reach.

    Args:
        uri: URI of the runs' database, sqlite:///FILE.
        port: Port of the server; None for MLflow's default, or any free one if that is in use.

    Yields:
        The server's address, and its process.

    Raises:
        ValueError: There is no such file, or the port is in use.
        OSError: The server does not start; the message has the last line that it printed.
    """
    file = sqlite_file(uri)
    if file is None or not file.exists():
        raise UserError(
            f"there is no {file or uri}: train first, or say where runs are with --runs"
        )
    port = _free_port(port)
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
    command += ["--host", LOOPBACK, "--port", str(port)]
    file = file.absolute()
    command += ["--backend-store-uri", sqlite_uri(file)]
    command += ["--artifacts-destination", (file.parent / "mlartifacts").as_uri()]
    command += ["--allowed-hosts", f"{LOOPBACK}:{port},localhost:{port}"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(  # noqa: S603  (no user input but the path and the port)
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=file.parent,
            env={**os.environ, **mlflow_server.SETTINGS},
            start_new_session=True,  # Ctrl-C reaches only this process, which ends the server
        )
        try:
            address = f"http://{LOOPBACK}:{port}"
            if not _answers(f"{address}/health", process):
                raise OSError(f"MLflow's server {_failure(process, log)}")
            yield address, process
        finally:
            _end(process)


def _free_port(port: int | None) -> int:
    for candidate in (PORT, 0) if port is None else (port,):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind((LOOPBACK, candidate))
                return int(probe.getsockname()[1])
    raise UserError(f"--port {port} is in use: choose another one, or leave --port out")


def _answers(address: str, process: "subprocess.Popen[bytes]") -> bool:
    end = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(address, timeout=10).close()  # noqa: S310  (loopback)
            return True
        time.sleep(0.1)
    return False


def _failure(process: "subprocess.Popen[bytes]", log: IO[bytes]) -> str:
    status = process.poll()
    event = (
        f"did not answer within {START_SECONDS} s"
        if status is None
        else f"ended with exit status {status}"
    )
    log.seek(0)
    line = last_line(log.read().decode(errors="replace"), "(nothing)")
    return f"{event}; the last line of its log: {line[:300]}"


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the server and the processes that it has started."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signum)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
