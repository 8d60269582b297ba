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

from bcl_ray.ops.slurm.part import Allocation, LostNodeError, StartError
from bcl_ray.ops.slurm.ray_node import RayNode

USER_MISTAKE = 2
STOPPED = 128 + signal.SIGTERM  # of a driver that was asked to stop, and did
LOOK = 1.0  # seconds between two looks at processes and files
PATIENCE = 30.0  # seconds for what should not take any: an answer of Ray's, a driver's last words


class JobStop:
    """Why the driver should stop, if it should; the user's word outranks Slurm's."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._signalled = folder, False
        signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, *_: object) -> None:
        self._signalled = True

    def reason(self) -> str | None:
        """`end`, `requeue` or None.

        Raises:
            LostNodeError: srun ends the step, because another node failed.
        """
        with contextlib.suppress(OSError):
            return (self._folder / "stop").read_text().strip() or None
        if not self._signalled:
            return None
        with contextlib.suppress(OSError):
            raise LostNodeError(f"ended, because of {(self._folder / 'failed').read_text()}")
        return "requeue"  # Slurm takes the nodes away with notice: that goes to the step alone


def joined(allocation: Allocation, head: str, ray: RayNode, stop: JobStop) -> bool:
    """Wait until Ray is there on all nodes; False where a request to stop comes first."""
    deadline = time.monotonic() + allocation.wait_seconds
    while time.monotonic() < deadline:  # a census fails where the head is starting again
        with _census(head, allocation.nodes) as census:
            while census.exitcode is None and time.monotonic() < deadline:
                ray.check()
                if stop.reason():
                    return False
                census.join(LOOK)
            if census.exitcode == 0:
                return True
    raise StartError(
        f"not all of {allocation.nodes} nodes joined within slurm.wait_seconds "
        f"({allocation.wait_seconds:g})"
    )


def drive(command: tuple[str, ...], head: str, ray: RayNode, stop: JobStop) -> int:
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
            ray.check()
            time.sleep(LOOK)
    except LostNodeError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            driver.wait(PATIENCE)  # it may say what it has lost
        raise
    finally:
        driver.kill()
    status = int(driver.returncode)
    return status if status >= 0 else 128 - status


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


def all_alive(head: str, nodes: int) -> bool:
    """Whether Ray is there on all nodes now."""
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

    try:
        ray.init(address=head, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError:  # the head may be starting again
        os._exit(1)
    while sum(node["Alive"] for node in ray.nodes()) < nodes:
        time.sleep(LOOK)
    os._exit(0)
