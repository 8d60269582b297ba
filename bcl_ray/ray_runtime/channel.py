"""Messages between a run's driver and its workers: events to the driver, requests to workers."""

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

if TYPE_CHECKING:  # the channel's process starts sooner without it
    from bcl_ray.runs.events import Event


class Channel:
    """An actor that holds messages in memory; it runs on the driver's node, see `open_channel`."""

    def __init__(self) -> None:
        self._events: Any = asyncio.Queue()
        self._stop, self._restart = asyncio.Event(), asyncio.Event()

    async def put(self, event: "Event") -> None:
        """Add an event for the driver."""
        await self._events.put(event)

    async def take(self) -> "list[Event]":
        """Wait for an event, and return all events that have come."""
        events = [await self._events.get()]
        while not self._events.empty():
            events.append(self._events.get_nowait())
        return events

    async def request_stop(self) -> None:
        """Ask workers to save their state and to end."""
        self._stop.set()

    async def wait_for_stop(self) -> None:
        """Return when a stop is requested."""
        await self._stop.wait()

    async def request_restart(self) -> None:
        """Ask workers to save their state and to end, so that more of them can start."""
        self._restart.set()

    async def wait_for_restart(self) -> None:
        """Return when a restart is requested; each request ends one call."""
        await self._restart.wait()
        self._restart.clear()


def open_channel() -> Any:
    """The handle of a new channel on this process's node."""
    this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # Ray's types know neither this strategy nor a concurrency.
    remote: Any = ray.remote
    actor = remote(num_cpus=0, scheduling_strategy=this_node, max_concurrency=1000)(Channel)
    return actor.remote()


def send_note(channel: Any, text: str) -> Any:
    """Send the driver a message for the user, from any process; returns the call's reference."""
    return channel.put.remote({"kind": "note", "text": text})


def request_restart(channel: Any) -> None:
    """Ask workers, from Ray Train's controller, to save their state and to end."""
    channel.request_restart.remote()


@contextlib.contextmanager
def warnings_sent(channel: Any, sender: str) -> Iterator[None]:
    """Send warnings of bcl_ray's modules to the user, with their sender, while the block lasts."""

    class Forward(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            send_note(channel, f"{sender}: {record.getMessage()}")

    handler, package_logger = Forward(logging.WARNING), logging.getLogger("bcl_ray")
    package_logger.addHandler(handler)
    try:
        yield
    finally:
        package_logger.removeHandler(handler)
