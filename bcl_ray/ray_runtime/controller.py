"""Ray Train's controller, whose loop is never held up by a wait of ours, and which can be ended."""

import asyncio
import contextlib
import threading
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bcl_ray.ray_runtime.internals import (
    RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR,
    TrainController,
    get_env_vars_to_propagate,
)

PAUSE = 1.0  # seconds between two looks at a cluster that has no room yet; Ray's loop would spin
ABORTING = 10.0  # seconds that it has to end its workers itself


class Controller(TrainController):
    """Ray's, which waits where its scaling policy has decided for nothing as yet."""

    async def _step(self) -> Any:
        result = await super()._step()
        if result.next_state is result.previous_state:
            # In a policy, which is called within the loop, a sleep would keep `abort` waiting.
            await asyncio.sleep(PAUSE)
            if self.get_state().is_terminal():  # aborted meanwhile
                ray.actor.exit_actor()
        return result


class Controlled:
    """A controller's process, from its start to its end, which another thread may bring about."""

    def __init__(self) -> None:
        self._order = threading.Lock()
        self._actor: Any = None
        self._ended = False

    def run(self, **options: Any) -> Any:
        """Start it on this node, beside the driver, and return Ray Train's result.

        Raises:
            RayError: it was ended, or died.
        """
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        remote: Any = ray.remote  # its types do not know this strategy
        kind = remote(
            num_cpus=0,
            scheduling_strategy=here,
            # Ray Train's own controller blocks its loop, and so is not told that it does.
            runtime_env={
                "env_vars": {
                    RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR: "0",
                    **get_env_vars_to_propagate(),
                }
            },
        )(Controller)
        with self._order:
            if self._ended:
                raise RayError("training was ended before it began")
            actor = self._actor = kind.remote(**options)
        try:
            ray.get(actor.run.remote())
            return ray.get(actor.get_result.remote())
        finally:
            self._actor = None  # its process ends when nobody refers to it

    def end(self) -> None:
        """End workers, and what would start them again; nothing of it is left afterwards."""
        with self._order:
            self._ended, actor = True, self._actor
        if actor is None:
            return
        with contextlib.suppress(RayError):  # it ends itself, and so does not answer
            ray.get(actor.abort.remote(), timeout=ABORTING)
        with contextlib.suppress(RayError):
            ray.kill(actor)
