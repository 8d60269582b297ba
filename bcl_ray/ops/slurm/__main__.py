"""This node's part in an allocation: `python -m bcl_ray.ops.slurm`."""

import argparse
import os
import signal
import socket
import sys
import time
from pathlib import Path

from bcl_ray.ops.slurm.driver import LOOK, STOPPED, JobStop, all_alive, drive, joined, result_of
from bcl_ray.ops.slurm.network import answers, free_ports, own_address
from bcl_ray.ops.slurm.part import Allocation, LostNodeError, StartError
from bcl_ray.ops.slurm.ray_node import RayNode

FAILED = 1  # exit status of a node that failed, at which srun ends the others
SILENCE = 5  # looks for which the head does not answer before it is gone


def main() -> int:
    """Do this node's part; returns its exit status."""
    allocation = _of_command_line()
    try:
        if allocation.first:
            run_first(allocation)
        else:
            run_other(allocation)
    except (StartError, LostNodeError) as error:
        text = f"{socket.gethostname()}: {error}"
        sys.stderr.write(f"bcl-ray: {text}\n")
        _write(allocation.folder / "failed", text)
        return FAILED
    return 0


def run_first(allocation: Allocation) -> None:
    """Ray's head and the driver, and what the batch script does next.

    Raises:
        StartError, LostNodeError: there is no result.
    """
    stop = JobStop(allocation.folder)
    own = own_address(allocation.interface, allocation.peer)
    port, client_port = free_ports(own)
    head = f"{own}:{port}"
    options = [
        "--head",
        f"--port={port}",
        f"--ray-client-server-port={client_port}",  # else 10001 for every job on a node
        "--include-dashboard=false",
    ]
    with RayNode(allocation, own, options) as ray:
        while not answers(head):
            ray.check()
            time.sleep(LOOK)
        _write(allocation.folder / "head", head)
        status = STOPPED
        if joined(allocation, head, ray, stop):
            (allocation.folder / "joined").touch()
            status = drive(allocation.command, head, ray, stop)
            if status not in (0, STOPPED) and not all_alive(head, allocation.nodes):
                raise LostNodeError(
                    f"the driver ended with {status}, and a node or its Ray is lost"
                )
        _write(allocation.folder / "result", result_of(status, stop.reason()))


def run_other(allocation: Allocation) -> None:
    """Ray, until the head is gone.

    Raises:
        StartError: Ray did not start.
        LostNodeError: it ended before the head.
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
    with RayNode(allocation, own, [f"--address={head}"]) as ray:
        silent, marks = 0, {name: allocation.folder / name for name in ("joined", "result")}
        # Until all have joined, the head may be starting again.
        while silent < SILENCE or not (marks["joined"].exists() or marks["result"].exists()):
            ray.check()
            silent = 0 if answers(head) else silent + 1
            time.sleep(LOOK)


def _of_command_line() -> Allocation:
    parser = argparse.ArgumentParser(prog="python -m bcl_ray.ops.slurm")
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


def _write(file: Path, text: str) -> None:
    """All of it or nothing, for those who wait for the file."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.rename(file)


if __name__ == "__main__":
    sys.exit(main())
