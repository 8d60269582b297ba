"""MLflow's pages for runs of this machine: a server on their database, for as long as one looks."""

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
from pathlib import Path

from bcl_ray.machine.errors import UserError
from bcl_ray.tracking import mlflow_server

LOOPBACK = "127.0.0.1"
PORT = 5000  # MLflow's own
START_SECONDS = 300  # a quiet machine needs 5, a busy one has needed 100


@contextlib.contextmanager
def served(uri: str, port: int | None = None) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """An MLflow server on a database, which answers this machine alone; its address, and it.

    Args:
        uri: sqlite:///FILE.
        port: none: MLflow's own where it is free, else another.

    Raises:
        ValueError: there is no such file, or the port is in use.
        OSError: it does not start; with its last words.
    """
    file = Path(uri.removeprefix("sqlite:///")).absolute()
    if not file.exists():
        raise UserError(f"there is no {file}: train first, or say where runs are with --runs")
    port = _free_port(port)
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
    command += ["--host", LOOPBACK, "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{file}"]
    command += ["--artifacts-destination", str(file.parent / "mlartifacts")]
    command += ["--allowed-hosts", f"{LOOPBACK}:{port},localhost:{port}"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(  # noqa: S603  (the command is ours)
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=file.parent,
            env={**os.environ, **mlflow_server.SETTINGS},
            start_new_session=True,  # Ctrl-C is for us, who end it
        )
        try:
            address = f"http://{LOOPBACK}:{port}"
            if not _answers(f"{address}/health", process):
                log.seek(0)
                words = log.read().decode(errors="replace").strip().splitlines() or ["nothing"]
                raise OSError(f"MLflow's server {_failure(process)}: {words[-1][:300]}")
            yield address, process
        finally:
            _end(process)


def _free_port(wanted: int | None) -> int:
    for port in (PORT, 0) if wanted is None else (wanted,):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind((LOOPBACK, port))
                return int(probe.getsockname()[1])
    raise UserError(f"--port {wanted} is in use: give another, or none for one that is free")


def _answers(address: str, process: "subprocess.Popen[bytes]") -> bool:
    end = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(address, timeout=10).close()  # noqa: S310  (loopback)
            return True
        time.sleep(0.1)
    return False


def _failure(process: "subprocess.Popen[bytes]") -> str:
    ended = process.poll()
    if ended is None:
        return f"did not answer within {START_SECONDS} s; its last words"
    return f"ended with exit status {ended}; its last words"


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the server and the processes that it has started."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signum)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
