"""The Ray processes of one node of an allocation."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping

from bcl_ray.ops.slurm.allocation import Allocation, LostNodeError, StartError
from bcl_ray.ops.slurm.network import interface_of

STARTS = 3  # attempts to start Ray: its own parts wait only 30 s for each other
MIB = 2**20


class RayNode:
    """Ray's processes on this node, which run during the block of a `with` statement.

    They run in a session of their own, so that Slurm's signals reach this process alone. Their
    output is shown only after an error.

    Args:
        options: Options of `ray start`, in addition to those of every node.
    """

    def __init__(self, allocation: Allocation, address: str, options: list[str]) -> None:
        _set_interface(address, chosen=allocation.interface is not None)
        self._command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *options),
            f"--node-ip-address={address}",
            f"--num-cpus={os.environ['SLURM_CPUS_ON_NODE']}",
            f"--num-gpus={allocation.gpus}",
            "--log-color=false",
            # Any free ports, for other jobs may run Ray on the same node.
            *("--min-worker-port=0", "--max-worker-port=0"),
            *memory_options(os.environ),
        ]
        self._joined = allocation.folder / "joined"
        self._starts = 0

    def __enter__(self) -> "RayNode":
        self._log = tempfile.TemporaryFile()
        self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._end()
        if kind is None:
            shutil.rmtree(os.environ["RAY_TMPDIR"], ignore_errors=True)  # Ray's logs
        else:
            self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 4000))
            sys.stderr.write(self._log.read().decode(errors="replace"))
        self._log.close()

    def check(self) -> None:
        """Check that Ray runs; start it again if it did not come up, as on a slow disk.

        Raises:
            StartError: It did not come up in any attempt.
            LostNodeError: It has ended after all nodes had joined.
        """
        status = self._process.poll()
        if status is None:
            return
        if self._joined.exists():
            raise LostNodeError(f"Ray has ended here (status {status})")
        if self._starts == STARTS:
            raise StartError(f"Ray did not start here (status {status}, {STARTS} times)")
        self._end()
        self._start()

    def _start(self) -> None:
        self._starts += 1
        self._process = subprocess.Popen(  # noqa: S603 (the command is ours)
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )

    def _end(self) -> None:
        """Kill the session. On SIGTERM, `ray start` would ask the head, which may be gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def memory_options(environment: Mapping[str, str]) -> list[str]:
    """Options of `ray start` for a job that has only a part of the node's memory.

    Ray itself looks at the node's memory alone. Slurm names the job's memory in MiB, per node or
    per CPU, and names none for a job that has all of it.
    """
    mib = int(environment.get("SLURM_MEM_PER_NODE", 0))
    per_cpu = int(environment.get("SLURM_MEM_PER_CPU", 0))
    mib = mib or per_cpu * int(environment["SLURM_CPUS_ON_NODE"])
    if not mib:
        return []
    shared = shutil.disk_usage("/dev/shm").total  # noqa: S108
    store = min(int(0.3 * mib * MIB), int(0.95 * shared))
    return [f"--memory={int(0.6 * mib * MIB)}", f"--object-store-memory={store}"]


def _set_interface(address: str, *, chosen: bool) -> None:
    """Name the network interface to Gloo, and to NCCL if the user has chosen it.

    Gloo would take the address of the node's name, which may be a loopback address. NCCL finds
    InfiniBand by itself.
    """
    name = interface_of(address)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    if chosen:
        os.environ.setdefault("NCCL_SOCKET_IFNAME", name)
