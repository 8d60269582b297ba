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

QUIET = 30.0  # seconds without a line, after which the job's state is asked for
PATIENCE = 900.0  # seconds for which a cluster may be out of reach
PAUSES = (1.0, 2.0, 5.0, 10.0)  # seconds before the next connection

Show = Callable[[str], None]


class DriverDiedError(OSError):
    """A job that ended without a word, with the node that its driver ran on."""


class Lines:
    """The lines of a text that every connection sends from its beginning; each line once."""

    def __init__(self) -> None:
        self._read = 0  # characters, over all connections
        self._position = 0  # likewise, in this one
        self._rest = ""

    def reconnected(self) -> None:
        """What comes next is the beginning again."""
        self._position = 0

    def feed(self, chunk: str) -> list[str]:
        """The lines that a chunk completes."""
        fresh = chunk[max(self._read - self._position, 0) :]
        self._position += len(chunk)
        self._read = max(self._read, self._position)
        *lines, self._rest = (self._rest + fresh).split("\n")
        return lines

    def end(self) -> list[str]:
        """The last line, where nothing ends it."""
        rest, self._rest = self._rest, ""
        return [rest] if rest else []


def follow(cluster: JobClient, name: str, show: Show, notify: Show) -> JobDetails:
    """Show a job's log until the job has ended; returns what became of it.

    Args:
        cluster: which has the job.
        name: of the job.
        show: called with each line of the log, once.
        notify: called with messages of the connection, and of a job that waits.

    Raises:
        ValueError: there is no such job.
        OSError: the cluster was out of reach for PATIENCE seconds, or the job's driver died with
            its node.
    """
    return asyncio.run(_follow(cluster, name, show, notify))


async def _follow(cluster: JobClient, name: str, show: Show, notify: Show) -> JobDetails:
    lines, failures, since = Lines(), 0, 0.0
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
            raise ConnectionError("the log ended before the job")
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(error, PermissionError | BrokenPipeError):  # nobody reads what is shown
                raise
            since = since if failures else time.monotonic()
            if failures and (ended := await _ended(cluster, name)):
                notify("the end of its log cannot be read: its node is gone")
                job = ended
                break
            if time.monotonic() - since > PATIENCE:
                raise
            if failures == 1:
                notify(f"connection to {cluster.address} lost, trying again; the job goes on")
            await asyncio.sleep(PAUSES[min(failures, len(PAUSES) - 1)])
            failures += 1
    for line in lines.end():
        show(line)
    return job


async def _ended(cluster: JobClient, name: str) -> JobDetails | None:
    """The job, where the cluster answers and says that it has ended.

    Raises:
        DriverDiedError: it says that the job runs, and it does not.
    """
    try:
        job = await asyncio.to_thread(cluster.job, name)
        running = job.status == JobStatus.RUNNING
        if running and await asyncio.to_thread(cluster.is_supervised, name):
            return None
    except PermissionError:
        raise
    except (OSError, KeyError, TypeError):  # a head that is starting says odd things
        return None
    if running:
        raise DriverDiedError(
            f"job {name} ended when its node did, though the cluster lists it as running: send it "
            "again, and with --restartable it goes on from its last checkpoint"
        )
    return job if job.status.is_terminal() else None


async def _chunks(cluster: JobClient, name: str, notify: Show) -> AsyncGenerator[str, None]:
    """The log as one connection sends it.

    Raises:
        aiohttp.ClientError, OSError: the connection broke.
    """
    url = f"{cluster.address}/api/jobs/{name}/logs/tail"
    # The dashboard answers no pings on this route, so it is TCP that notices a dead connection.
    connector = aiohttp.TCPConnector(ssl=cluster.tls(), socket_factory=_alive)
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
                await _say_why_quiet(cluster, name, notify)
                continue
            if message.type == aiohttp.WSMsgType.TEXT:
                yield message.data
            elif stream.close_code in (aiohttp.WSCloseCode.OK, None):
                return
            else:
                raise ConnectionError(f"closed with code {stream.close_code}")


async def _say_why_quiet(cluster: JobClient, name: str, notify: Show) -> None:
    job = await asyncio.to_thread(cluster.job, name)
    if job.status == JobStatus.PENDING:
        notify(f"the job is waiting: {job.message or 'it has not been started yet'}")


def _alive(info: Any) -> socket.socket:
    """A socket that notices within a minute that the other side is gone."""
    family, kind, protocol, _, _ = info
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):  # elsewhere the system's own, longer times hold
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return made
