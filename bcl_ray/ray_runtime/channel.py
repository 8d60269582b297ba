"""Messages between a run's driver and its workers: events to the driver, requests to workers."""

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

Event = dict[str, Any]


class Channel:
    """An actor that holds messages in memory; it runs on the driver's node, see `open_channel`."""

    def __init__(self) -> None:
        import asyncio  # noqa: PLC0415  these belong to the actor's loop

        self._events: Any = asyncio.Queue()
        self._stop, self._restart = asyncio.Event(), asyncio.Event()

    async def put(self, event: Event) -> None:
        """Add an event for the driver."""
        await self._events.put(event)

    async def take(self) -> list[Event]:
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


def notify(channel: Any, text: str) -> None:
    """Send the driver a message for the user, from any process."""
    channel.put.remote({"kind": "note", "text": text})


def request_restart(channel: Any) -> None:
    """Ask workers to save their state and to end, so that more of them can start."""
    channel.request_restart.remote()
