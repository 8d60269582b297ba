"""Ray's processes on one node of an allocation."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping

from bcl_ray.ops.slurm.network import interface_of
from bcl_ray.ops.slurm.part import Allocation, LostNodeError, StartError

TRIES = 3  # to start Ray on a node, which gives its own parts 30 s to find each other
MIB = 2**20


class RayNode:
    """Ray's processes on this node, for as long as the block lasts.

    They have a session of their own: what Slurm signals is for us to judge. What they print is
    shown only where something is wrong.

    Args:
        allocation: this node's part in it.
        own: this node's address.
        options: of `ray start`, beside those of every node.
    """

    def __init__(self, allocation: Allocation, own: str, options: list[str]) -> None:
        _name_interface(own, named=allocation.interface is not None)
        self._command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *options),
            f"--node-ip-address={own}",
            f"--num-cpus={os.environ['SLURM_CPUS_ON_NODE']}",
            f"--num-gpus={allocation.gpus}",
            "--log-color=false",
            *("--min-worker-port=0", "--max-worker-port=0"),  # any: nodes may be shared
            *memory_options(os.environ),
        ]
        self._joined = allocation.folder / "joined"
        self._tries = 0

    def __enter__(self) -> "RayNode":
        self._log = tempfile.TemporaryFile()
        self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._end()
        if kind is None:
            shutil.rmtree(os.environ["RAY_TMPDIR"], ignore_errors=True)  # else Ray's logs stay
        else:
            self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 4000))
            sys.stderr.write(self._log.read().decode(errors="replace"))
        self._log.close()

    def check(self) -> None:
        """See that Ray runs; start it again where it has not come up, as on a slow disk.

        Raises:
            StartError: it does not come up.
            LostNodeError: it has ended after all nodes had joined.
        """
        status = self._process.poll()
        if status is None:
            return
        if self._joined.exists():
            raise LostNodeError(f"Ray has ended here (status {status})")
        if self._tries == TRIES:
            raise StartError(f"Ray did not start here (status {status}, {TRIES} times)")
        self._end()
        self._start()

    def _start(self) -> None:
        self._tries += 1
        self._process = subprocess.Popen(  # noqa: S603  nothing in it comes from elsewhere
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )

    def _end(self) -> None:
        """End all of them: `ray start` that gets SIGTERM asks the head first, which may be gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def memory_options(environment: Mapping[str, str]) -> list[str]:
    """Ray's memory, where the job has a part of the node's; Ray looks at the node's alone.

    Slurm names what was asked for: per node or per CPU, in MiB; nothing for all of it.
    """
    mib = int(environment.get("SLURM_MEM_PER_NODE", 0))
    per_cpu = int(environment.get("SLURM_MEM_PER_CPU", 0))
    mib = mib or per_cpu * int(environment["SLURM_CPUS_ON_NODE"])
    if not mib:
        return []
    shared = shutil.disk_usage("/dev/shm").total  # noqa: S108
    store = min(int(0.3 * mib * MIB), int(0.95 * shared))
    return [f"--memory={int(0.6 * mib * MIB)}", f"--object-store-memory={store}"]


def _name_interface(own: str, *, named: bool) -> None:
    """Gloo takes the address of the node's name, which may be a loopback address."""
    name = interface_of(own)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    if named:  # else NCCL's own choice is better: it knows InfiniBand
        os.environ.setdefault("NCCL_SOCKET_IFNAME", name)
