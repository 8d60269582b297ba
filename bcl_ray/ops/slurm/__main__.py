"""What one node of an allocation does: `python -m bcl_ray.ops.slurm`."""

import argparse
import os
import signal
import socket
import sys
import time
from pathlib import Path

from bcl_ray.machine.messages import notify
from bcl_ray.machine.waiting import answers
from bcl_ray.ops.slurm.allocation import Allocation, LostNodeError, StartError
from bcl_ray.ops.slurm.driver import (
    POLL_SECONDS,
    STOPPED,
    JobStop,
    all_alive,
    job_result,
    run_driver,
    wait_for_nodes,
)
from bcl_ray.ops.slurm.network import own_address, two_free_ports
from bcl_ray.ops.slurm.ray_node import RayNode

FAILED = 1  # exit status of a node that failed; srun then ends the others
MOST_MISSED_ANSWERS = 5  # after which the head counts as gone


def main() -> int:
    """Run this node to the end of the job; returns the exit status."""
    allocation = _parse_arguments()
    run = run_first_node if allocation.first else run_other_node
    try:
        run(allocation)
    except (StartError, LostNodeError) as error:
        text = f"{socket.gethostname()}: {error}"
        notify(text)
        _write(allocation.folder / "failed", text)
        return FAILED
    return 0


def run_first_node(allocation: Allocation) -> None:
    """Run Ray's head and the driver, and write the result for the batch script.

    Raises:
        StartError: Ray did not start.
        LostNodeError: A node or its Ray is lost.
    """
    stop = JobStop(allocation.folder)
    address = own_address(allocation.interface, allocation.peer)
    port, client_port = two_free_ports(address)
    head = f"{address}:{port}"
    options = [
        "--head",
        f"--port={port}",
        f"--ray-client-server-port={client_port}",  # by default 10001, for every job of a node
        "--include-dashboard=false",
    ]
    with RayNode(allocation, address, options) as ray:
        while not answers(address, port):
            ray.check()
            time.sleep(POLL_SECONDS)
        _write(allocation.folder / "head", head)
        status = STOPPED
        if wait_for_nodes(allocation, head, ray, stop):
            (allocation.folder / "joined").touch()
            status = run_driver(allocation.command, head, ray, stop)
            if status not in (0, STOPPED) and not all_alive(head, allocation.nodes):
                raise LostNodeError(
                    f"the driver ended with {status}, and a node or its Ray is lost"
                )
        _write(allocation.folder / "result", job_result(status, stop.reason()))


def run_other_node(allocation: Allocation) -> None:
    """Run Ray until the head is gone.

    Raises:
        StartError: Ray did not start.
        LostNodeError: Ray ended before the head did.
    """
    # The driver's last checkpoint needs this node. (Ray's processes would inherit SIG_IGN.)
    signal.signal(signal.SIGTERM, lambda *_: None)
    file, deadline = allocation.folder / "head", time.monotonic() + allocation.wait_seconds
    while not file.exists():
        if time.monotonic() > deadline:
            raise StartError(f"no head within slurm.wait_seconds ({allocation.wait_seconds:g})")
        time.sleep(POLL_SECONDS)
    head = file.read_text()
    host, _, port = head.rpartition(":")
    address = own_address(allocation.interface, host)
    joined, result = allocation.folder / "joined", allocation.folder / "result"
    with RayNode(allocation, address, [f"--address={head}"]) as ray:
        missed = 0

        def head_is_gone() -> bool:
            # Before all nodes have joined, a silent head may be starting again.
            return missed >= MOST_MISSED_ANSWERS and (joined.exists() or result.exists())

        while not head_is_gone():
            ray.check()
            missed = 0 if answers(host, int(port)) else missed + 1
            time.sleep(POLL_SECONDS)


def _parse_arguments() -> Allocation:
    parser = argparse.ArgumentParser(prog="python -m bcl_ray.ops.slurm")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--peer", required=True)
    parser.add_argument("--gpus", type=int, required=True)
    parser.add_argument("--wait-seconds", type=float, required=True)
    parser.add_argument("--interface")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    return Allocation(
        first=os.environ["SLURM_NODEID"] == "0",
        nodes=int(os.environ["SLURM_NNODES"]),
        **{**vars(arguments), "command": tuple(arguments.command)},
    )


def _write(file: Path, text: str) -> None:
    """Write a file at once, for others wait for it."""
    partial = file.with_suffix(".new")
    partial.write_text(text)
    partial.rename(file)


if __name__ == "__main__":
    sys.exit(main())
