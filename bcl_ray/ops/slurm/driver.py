"""The driver on the first node of an allocation: its start, requests to stop it, its end."""

import contextlib
import logging
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from bcl_ray.machine.errors import USER_MISTAKE
from bcl_ray.ops.slurm.allocation import Allocation, LostNodeError, StartError
from bcl_ray.ops.slurm.ray_node import RayNode

STOPPED = 128 + signal.SIGTERM  # exit status of a driver that has ended on request
POLL_SECONDS = 1.0  # between two looks at processes and files
SHORT_SECONDS = 30.0  # for what is normally immediate, such as an answer of Ray's


class JobStop:
    """Whether the driver should stop, and why; the user's request outranks Slurm's signal.

    Args:
        folder: Folder of the allocation's messages.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._signalled = folder, False
        signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, *_: object) -> None:
        self._signalled = True

    def reason(self) -> str | None:
        """`end` or `requeue`; None if the driver should go on.

        Raises:
            LostNodeError: srun ends the step, for another node has failed.
        """
        with contextlib.suppress(OSError):
            return (self._folder / "stop").read_text().strip() or None
        if not self._signalled:
            return None
        failed = self._folder / "failed"
        if failed.exists():
            raise LostNodeError(f"ended, because of {failed.read_text()}")
        # Slurm takes the nodes back with notice, which reaches only the step, not the script.
        return "requeue"


def wait_for_nodes(allocation: Allocation, head: str, ray: RayNode, stop: JobStop) -> bool:
    """Wait until Ray runs on all nodes.

    Returns:
        False if a request to stop came first.

    Raises:
        StartError: Not all nodes have joined in time.
    """
    deadline = time.monotonic() + allocation.wait_seconds
    while time.monotonic() < deadline:  # again, if the head starts again and the count fails
        with _counting(head, allocation.nodes) as counter:
            while counter.exitcode is None and time.monotonic() < deadline:
                ray.check()
                if stop.reason():
                    return False
                counter.join(POLL_SECONDS)
            if counter.exitcode == 0:
                return True
    raise StartError(
        f"not all of {allocation.nodes} nodes joined within slurm.wait_seconds "
        f"({allocation.wait_seconds:g})"
    )


def run_driver(command: tuple[str, ...], head: str, ray: RayNode, stop: JobStop) -> int:
    """Run the driver to its end.

    Returns:
        Its exit status; 128 + N if signal N has ended it.

    Raises:
        LostNodeError: Ray has ended on this node, or another node has failed.
    """
    driver = subprocess.Popen(  # noqa: S603
        command, env={**os.environ, "RAY_ADDRESS": head}, start_new_session=True
    )
    terminated = False
    try:
        while driver.poll() is None:
            if stop.reason() and not terminated:
                terminated = True
                driver.terminate()
            ray.check()
            time.sleep(POLL_SECONDS)
    except LostNodeError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            driver.wait(SHORT_SECONDS)  # it may print what it has lost
        raise
    finally:
        driver.kill()
    status = int(driver.returncode)
    return status if status >= 0 else 128 - status


def job_result(status: int, reason: str | None) -> str:
    """What the batch script does after the driver: an exit status, or `requeue`.

    Args:
        reason: Why the driver was to stop, or None.
    """
    if reason == "requeue" and status not in (0, USER_MISTAKE):
        return "requeue"
    if reason == "end" and status == STOPPED:
        return "0"  # the user has asked for this end, so it is no failure
    return str(status)


def all_alive(head: str, nodes: int) -> bool:
    """Whether Ray runs on all nodes now."""
    with _counting(head, nodes) as counter:
        counter.join(SHORT_SECONDS)
        return counter.exitcode == 0


@contextlib.contextmanager
def _counting(head: str, nodes: int) -> Iterator[multiprocessing.process.BaseProcess]:
    """A process that exits with 0 once Ray has as many nodes.

    It is a process of its own because Ray's client takes over the handling of signals.
    """
    process = multiprocessing.get_context("spawn").Process(target=_count, args=(head, nodes))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _count(head: str, nodes: int) -> None:
    import ray  # noqa: PLC0415 (its import takes a second)

    try:
        ray.init(address=head, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError:  # the head may be starting again
        os._exit(1)
    while sum(node["Alive"] for node in ray.nodes()) < nodes:
        time.sleep(POLL_SECONDS)
    os._exit(0)
