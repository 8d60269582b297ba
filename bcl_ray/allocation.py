"""What Slurm starts on every node of an allocation: Ray, and on the first node the driver.

    srun ... python -m bcl_ray.allocation FOLDER [OPTION]... -- COMMAND...

The first node starts Ray's head, waits until all nodes have joined, and runs COMMAND there. Nodes,
and the batch script, which lives on the first of them, tell each other by files in FOLDER, which
all of them mount:

    head    address of Ray's head
    joined  is there once Ray has started on all nodes
    stop    why the driver is asked to stop: `end`, or `requeue` (to go on later)
    failed  what failed on one of the nodes
    result  the job's exit status, or `requeue`; none: a node or its Ray was lost

(`ray symmetric-run` gives the driver no address, exits with 0 where Ray does not start, and ends
with `ray stop`, which ends the Ray of every job of the user on the node.)
"""

import argparse
import contextlib
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

LOST = 1  # exit status of a node that ended before the driver did
USER_MISTAKE = 2
STOPPED = 128 + signal.SIGTERM  # of a driver that was asked to stop, and did
LOOK = 1.0  # seconds between two looks at processes and files
SILENCE = 5  # looks, for which the head does not answer before it is gone
PATIENCE = 30.0  # seconds for what should not take any: an answer of Ray's, a driver's last words
MIB = 2**20


class StartError(RuntimeError):
    """Ray did not start on this node, or not on all of them."""


class LostError(RuntimeError):
    """Ray has ended on this node or another, before the driver did."""


@dataclass(frozen=True)
class Allocation:
    """This node's part in the allocation.

    Args:
        folder: through which nodes tell each other things.
        first: whether it is the first of them.
        nodes: how many there are.
        peer: name of the last one.
        gpus: of each.
        wait_seconds: longest wait for all nodes to join.
        interface: of the network between nodes; none: the one that leads to the others.
        command: the driver.
    """

    folder: Path
    first: bool
    nodes: int
    peer: str
    gpus: int
    wait_seconds: float
    interface: str | None
    command: tuple[str, ...]


class StopRequest:
    """Why the driver should stop, if it should; the user's word outranks Slurm's."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._signalled = folder, False
        signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, *_: object) -> None:
        self._signalled = True

    def reason(self) -> str | None:
        """`end`, `requeue` or None.

        Raises:
            LostError: srun ends the step, because another node failed.
        """
        with contextlib.suppress(OSError):
            return (self._folder / "stop").read_text().strip() or None
        if not self._signalled:
            return None
        with contextlib.suppress(OSError):
            raise LostError((self._folder / "failed").read_text())
        return "requeue"  # Slurm takes the nodes away with notice: that goes to the step alone


def main() -> int:
    """Do this node's part; returns its exit status."""
    allocation = _of_command_line()
    try:
        if allocation.first:
            run_first(allocation)
        else:
            run_other(allocation)
    except (StartError, LostError) as error:
        text = f"{socket.gethostname()}: {error}"
        sys.stderr.write(f"bcl-ray: {text}\n")
        _write(allocation.folder / "failed", text)
        return LOST
    return 0


def run_first(allocation: Allocation) -> None:
    """Ray's head and the driver, and what the batch script does next.

    Raises:
        StartError, LostError: there is no result.
    """
    stop = StopRequest(allocation.folder)
    own = own_address(allocation.interface, allocation.peer)
    port, client_port = free_ports(own)
    head = f"{own}:{port}"
    options = [
        "--head",
        f"--port={port}",
        f"--ray-client-server-port={client_port}",  # else 10001 for every job on a node
        "--include-dashboard=false",
    ]
    with _ray(allocation, own, options) as ray:
        while not _answers(head):
            _check(ray)
            time.sleep(LOOK)
        _write(allocation.folder / "head", head)
        status = STOPPED
        if _joined(allocation, head, ray, stop):
            (allocation.folder / "joined").touch()
            status = _drive(allocation.command, head, ray, stop)
            if status not in (0, STOPPED) and not _all_alive(head, allocation.nodes):
                raise LostError(f"the driver ended with {status}, and a node or its Ray is lost")
        _write(allocation.folder / "result", result_of(status, stop.reason()))


def run_other(allocation: Allocation) -> None:
    """Ray, until the head is gone.

    Raises:
        StartError: Ray did not start.
        LostError: it ended before the head.
    """
    # The driver's last checkpoint needs this node. (SIG_IGN would be Ray's, too.)
    signal.signal(signal.SIGTERM, lambda *_: None)
    file, deadline = allocation.folder / "head", time.monotonic() + allocation.wait_seconds
    while not file.exists():
        if time.monotonic() > deadline:
            raise StartError(f"no head within slurm.wait_seconds ({allocation.wait_seconds:g})")
        time.sleep(LOOK)
    head = file.read_text()
    own = own_address(allocation.interface, head.rpartition(":")[0])
    with _ray(allocation, own, [f"--address={head}"]) as ray:
        silent = 0
        while silent < SILENCE:
            _check(ray, started=(allocation.folder / "joined").exists())
            silent = 0 if _answers(head) else silent + 1
            time.sleep(LOOK)


def result_of(status: int, reason: str | None) -> str:
    """What the batch script does after a driver that ended with a status: exit with it, mostly.

    Args:
        status: the driver's.
        reason: why it was asked to stop, if it was.
    """
    if reason == "requeue" and status not in (0, USER_MISTAKE):
        return "requeue"
    if reason == "end" and status == STOPPED:
        return "0"  # what a user asks for is no failure
    return str(status)


def _of_command_line() -> Allocation:
    parser = argparse.ArgumentParser(prog="python -m bcl_ray.allocation")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--peer", required=True)
    parser.add_argument("--gpus", type=int, required=True)
    parser.add_argument("--wait-seconds", type=float, required=True)
    parser.add_argument("--interface")
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    return Allocation(
        first=os.environ["SLURM_NODEID"] == "0",
        nodes=int(os.environ["SLURM_NNODES"]),
        **{**vars(given), "command": tuple(given.command)},
    )


def own_address(interface: str | None, peer: str) -> str:
    """This node's address on an interface; else the one by which it reaches a peer.

    A node's own name may lead to a loopback address, such as 127.0.1.1 on Debian.
    """
    if interface is None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((peer, 9))  # sends nothing
            return str(probe.getsockname()[0])
    found = psutil.net_if_addrs()
    for address in found.get(interface, []):
        if address.family == socket.AF_INET:
            return str(address.address)
    raise StartError(
        f"slurm.interface ({interface}) has no IPv4 address here; there are: {', '.join(found)}"
    )


def _interface_of(address: str) -> str:
    for name, found in psutil.net_if_addrs().items():
        if any(each.address == address for each in found):
            return str(name)
    raise StartError(f"no interface has the address {address}")


def free_ports(address: str) -> list[int]:
    """Two ports of an address that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for one in sockets:
            one.bind((address, 0))
        return [int(one.getsockname()[1]) for one in sockets]


@contextlib.contextmanager
def _ray(allocation: Allocation, own: str, options: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A node of Ray, for as long as the block lasts.

    Its processes have a session of their own: what Slurm signals is for us to judge. What they
    print is shown only where Ray does not start.
    """
    _name_interface(own, named=allocation.interface is not None)
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block"),
        *options,
        f"--node-ip-address={own}",
        f"--num-cpus={os.environ['SLURM_CPUS_ON_NODE']}",
        f"--num-gpus={allocation.gpus}",
        *("--min-worker-port=0", "--max-worker-port=0"),  # any that are free: nodes may be shared
        *memory_options(os.environ),
    ]
    with tempfile.TemporaryFile() as log:
        ray = subprocess.Popen(  # noqa: S603  nothing in it comes from elsewhere
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield ray
        except (StartError, LostError):
            log.seek(max(0, log.seek(0, os.SEEK_END) - 4000))
            sys.stderr.write(log.read().decode(errors="replace"))
            raise
        finally:
            _end(ray)
    shutil.rmtree(os.environ["RAY_TMPDIR"], ignore_errors=True)  # kept, with Ray's logs, on errors


def _name_interface(own: str, *, named: bool) -> None:
    """Gloo takes the address of the node's name, which may be a loopback address."""
    name = _interface_of(own)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    if named:  # else NCCL's own choice is better: it knows InfiniBand
        os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


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


def _end(ray: "subprocess.Popen[bytes]") -> None:
    """End Ray's processes, which are one group.

    `ray start` that gets SIGTERM wants a word with the head first, which may be gone.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(ray.pid, signal.SIGKILL)
    ray.wait()


def _check(ray: "subprocess.Popen[bytes]", *, started: bool = False) -> None:
    status = ray.poll()
    if status is None:
        return
    if started:
        raise LostError(f"Ray has ended here (status {status})")
    raise StartError(f"Ray did not start here (status {status})")


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=LOOK).close()
    except OSError:
        return False
    return True


def _joined(
    allocation: Allocation, head: str, ray: "subprocess.Popen[bytes]", stop: StopRequest
) -> bool:
    """Wait until Ray is there on all nodes; False where a request to stop comes first."""
    deadline = time.monotonic() + allocation.wait_seconds
    with _census(head, allocation.nodes) as census:
        while census.exitcode is None:
            _check(ray)
            if stop.reason():
                return False
            if time.monotonic() > deadline:
                raise StartError(
                    f"not all of {allocation.nodes} nodes joined within slurm.wait_seconds "
                    f"({allocation.wait_seconds:g})"
                )
            census.join(LOOK)
        if census.exitcode != 0:
            raise StartError("Ray's head does not answer")
    return True


def _all_alive(head: str, nodes: int) -> bool:
    with _census(head, nodes) as census:
        census.join(PATIENCE)
        return census.exitcode == 0


@contextlib.contextmanager
def _census(head: str, nodes: int) -> Iterator[multiprocessing.process.BaseProcess]:
    """A process that ends, with 0, once Ray has as many nodes: Ray's client takes our signals."""
    process = multiprocessing.get_context("spawn").Process(target=_count, args=(head, nodes))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _count(head: str, nodes: int) -> None:
    import ray  # noqa: PLC0415  a second, which other nodes need not take

    ray.init(address=head, log_to_driver=False, logging_level="ERROR")
    while sum(node["Alive"] for node in ray.nodes()) < nodes:
        time.sleep(LOOK)
    os._exit(0)


def _drive(
    command: tuple[str, ...], head: str, ray: "subprocess.Popen[bytes]", stop: StopRequest
) -> int:
    """Run the driver to its end; returns its status, 128 + N after signal N."""
    driver = subprocess.Popen(  # noqa: S603
        command, env={**os.environ, "RAY_ADDRESS": head}, start_new_session=True
    )
    asked = False
    try:
        while driver.poll() is None:
            if stop.reason() and not asked:
                asked = True
                driver.terminate()
            if ray.poll() is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    driver.wait(PATIENCE)  # it may say what it lost
                raise LostError("Ray has ended here")
            time.sleep(LOOK)
    finally:
        driver.kill()
    status = int(driver.returncode)
    return status if status >= 0 else 128 - status


def _write(file: Path, text: str) -> None:
    """All of it or nothing, for those who wait for the file."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.rename(file)


if __name__ == "__main__":
    sys.exit(main())
