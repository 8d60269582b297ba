"""Follow a job's log from its first line to its last, over connections that may break."""

import asyncio
import socket
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import aiohttp
from ray.job_submission import JobDetails, JobStatus

from bcl_ray.ops.jobs.client import JobClient

QUIET = 30.0  # seconds without a line, after which the job's state is looked up
PATIENCE = 900.0  # seconds for which a cluster may be out of reach
PAUSES = (1.0, 2.0, 5.0, 10.0)  # seconds before the next connection

Show = Callable[[str], None]


class DriverDiedError(OSError):
    """A job's driver died with its node, and the cluster does not know it."""


class Lines:
    """Splits a log into lines, each of which comes once.

    Every connection sends the log from its beginning.
    """

    def __init__(self) -> None:
        self._read = 0  # characters read in all connections together
        self._position = 0  # characters read in this connection
        self._rest = ""  # the beginning of a line whose end has not come yet

    def reconnected(self) -> None:
        """Expect the beginning of the log again."""
        self._position = 0

    def feed(self, chunk: str) -> list[str]:
        """The new lines that a chunk completes."""
        fresh = chunk[max(self._read - self._position, 0) :]
        self._position += len(chunk)
        self._read = max(self._read, self._position)
        *lines, self._rest = (self._rest + fresh).split("\n")
        return lines

    def end(self) -> list[str]:
        """The last line, if no line break ends it."""
        rest, self._rest = self._rest, ""
        return [rest] if rest else []


def follow(cluster: JobClient, name: str, show: Show, notify: Show) -> JobDetails:
    """Show a job's log until the job has ended.

    Args:
        show: Called once with each line of the log.
        notify: Called with messages about the connection, and about a job that waits.

    Returns:
        The record of the ended job.

    Raises:
        ValueError: There is no such job.
        OSError: The cluster was out of reach for PATIENCE seconds, or the job's driver died with
            its node.
    """
    return asyncio.run(_follow(cluster, name, show, notify))


async def _follow(cluster: JobClient, name: str, show: Show, notify: Show) -> JobDetails:
    lines, failures, failing_since = Lines(), 0, 0.0
    while True:
        try:
            lines.reconnected()
            async with aclosing(_chunks(cluster, name, notify)) as chunks:
                async for chunk in chunks:
                    failures = 0
                    for line in lines.feed(chunk):
                        show(line)
            job = await asyncio.to_thread(cluster.job, name)
            if job.status.is_terminal():
                break
            raise ConnectionError("the log ended before the job")  # handled like a lost one, below
        except (aiohttp.ClientError, OSError) as error:
            # BrokenPipeError comes from `show`: nobody reads the output any more.
            if isinstance(error, PermissionError | BrokenPipeError):
                raise
            failing_since = failing_since if failures else time.monotonic()
            # A second failure: perhaps the log cannot be read because its node is gone.
            if failures and (ended := await _ended_job(cluster, name)):
                notify("the end of its log cannot be read: its node is gone")
                job = ended
                break
            if time.monotonic() - failing_since > PATIENCE:
                raise
            if failures == 1:
                notify(f"connection to {cluster.address} lost, trying again; the job goes on")
            await asyncio.sleep(PAUSES[min(failures, len(PAUSES) - 1)])
            failures += 1
    for line in lines.end():
        show(line)
    return job


async def _ended_job(cluster: JobClient, name: str) -> JobDetails | None:
    """The job's record if the cluster answers that the job has ended, else None.

    Raises:
        DriverDiedError: The cluster lists the job as running, but its driver is dead.
    """
    try:
        job = await asyncio.to_thread(cluster.job, name)
        running = job.status == JobStatus.RUNNING
        if running and await asyncio.to_thread(cluster.is_supervised, name):
            return None
    except PermissionError:
        raise
    except (OSError, KeyError, TypeError):  # a starting head answers anything
        return None
    if running:
        raise DriverDiedError(
            f"job {name} ended when its node did, though the cluster lists it as running: send it "
            "again, and with --restartable it goes on from its last checkpoint"
        )
    return job if job.status.is_terminal() else None


async def _chunks(cluster: JobClient, name: str, notify: Show) -> AsyncGenerator[str, None]:
    """The log, as one connection sends it.

    Raises:
        aiohttp.ClientError: The connection cannot be made.
        OSError: The connection broke.
    """
    url = f"{cluster.address}/api/jobs/{name}/logs/tail"
    # The dashboard answers no WebSocket pings on this route, so dead connections are left to TCP.
    connector = aiohttp.TCPConnector(ssl=cluster.tls(), socket_factory=_keep_alive_socket)
    limits = aiohttp.ClientTimeout(total=None, sock_connect=10)
    async with (
        aiohttp.ClientSession(
            connector=connector, headers=cluster.headers, timeout=limits, trust_env=True
        ) as session,
        session.ws_connect(url, max_msg_size=0) as stream,
    ):
        while True:
            try:
                message = await stream.receive(timeout=QUIET)
            except TimeoutError:
                await _notify_if_pending(cluster, name, notify)
                continue
            if message.type == aiohttp.WSMsgType.TEXT:
                yield message.data
            elif stream.close_code in (aiohttp.WSCloseCode.OK, None):
                return
            else:
                raise ConnectionError(f"closed with code {stream.close_code}")


async def _notify_if_pending(cluster: JobClient, name: str, notify: Show) -> None:
    job = await asyncio.to_thread(cluster.job, name)
    if job.status == JobStatus.PENDING:
        notify(f"the job is waiting: {job.message or 'it has not been started yet'}")


def _keep_alive_socket(info: Any) -> socket.socket:
    """A socket that notices within a minute that the other side is gone."""
    family, kind, protocol, _, _ = info
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):  # other systems keep their own, longer times
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return made
