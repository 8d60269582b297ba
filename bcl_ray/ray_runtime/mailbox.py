"""What passes between a run's driver and its workers, beside training itself."""

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

Event = dict[str, Any]


class Mailbox:
    """Carries events of workers to the driver, and its requests to them; in memory, on its node."""

    def __init__(self) -> None:
        import asyncio  # noqa: PLC0415  these belong to the actor's loop

        self._events: Any = asyncio.Queue()
        self._stop, self._grow = asyncio.Event(), asyncio.Event()

    async def put(self, event: Event) -> None:
        """Leave an event."""
        await self._events.put(event)

    async def take(self) -> list[Event]:
        """All events that wait; at least one."""
        events = [await self._events.get()]
        while not self._events.empty():
            events.append(self._events.get_nowait())
        return events

    async def stop(self) -> None:
        """Ask workers to stop."""
        self._stop.set()

    async def stopping(self) -> None:
        """Return when workers are to stop."""
        await self._stop.wait()

    async def grow(self) -> None:
        """Ask workers to make way for more of them."""
        self._grow.set()

    async def growing(self) -> None:
        """Return when they are to; once for each time that they were asked."""
        await self._grow.wait()
        self._grow.clear()


def open_mailbox() -> Any:
    """A mailbox on this process's node."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # Ray's types know neither this strategy nor a concurrency.
    remote: Any = ray.remote
    actor = remote(num_cpus=0, scheduling_strategy=here, max_concurrency=1000)(Mailbox)
    return actor.remote()


def notify(mailbox: Any, text: str) -> None:
    """Notify the person something, from anywhere."""
    mailbox.put.remote({"kind": "note", "text": text})


def grow(mailbox: Any) -> None:
    """Ask workers to make way for more of them."""
    mailbox.grow.remote()
