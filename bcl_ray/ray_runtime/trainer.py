"""Ray's TorchTrainer with our policies, and with a controller that can be ended at any time."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train.v2.torch.torch_trainer import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bcl_ray.experiment.options import Experiment
from bcl_ray.ray_runtime.elastic import ScalingPolicy
from bcl_ray.ray_runtime.failures import FailurePolicy
from bcl_ray.ray_runtime.internals import (
    RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR,
    DatasetsCallback,
    PlacementGroupCleanerCallback,
    TrainController,
    get_env_vars_to_propagate,
)

PAUSE = 1.0  # seconds between two attempts to start workers; Ray's loop would not pause at all
ABORT_SECONDS = 10.0  # that the controller has to end its workers itself


class Trainer(TorchTrainer):
    """Ray's TorchTrainer with `ScalingPolicy` and `FailurePolicy`.

    Args:
        experiment: Its `scale` options govern the policies.
        notify: Shows a message to the user; called in the controller's process.
        request_restart: Asks workers to save their state and to end; likewise.
        args, options: TorchTrainer's.
    """

    def __init__(
        self,
        *args: Any,
        experiment: Experiment,
        notify: Callable[[str], None],
        request_restart: Callable[[], None],
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self._experiment, self._notify = experiment, notify
        self._request_restart = request_restart
        self._lock = threading.Lock()
        self._controller: Any = None  # an actor, while training lasts
        self._terminated = False

    def terminate(self) -> None:
        """End training at once, while another thread is in `fit`.

        Ends the workers, and the controller, which would start them again.
        """
        with self._lock:
            self._terminated, controller = True, self._controller
        if controller is None:
            return
        with contextlib.suppress(RayError):  # the actor exits, and so does not answer
            ray.get(controller.abort.remote(), timeout=ABORT_SECONDS)
        with contextlib.suppress(RayError):
            ray.kill(controller)

    def _create_default_callbacks(self) -> list[Any]:
        """Ray Train's callbacks without those that start processes we do not need."""
        unused: tuple[type, ...] = (DatasetsCallback,)  # workers open their own streams
        own_callbacks = self.run_config.callbacks or ()
        if any(getattr(each, "REMOVES_PLACEMENT_GROUPS", False) for each in own_callbacks):
            unused += (PlacementGroupCleanerCallback,)
        callbacks = super()._create_default_callbacks()
        return [each for each in callbacks if not isinstance(each, unused)]

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        """Run a controller in a process of its own, which `terminate` may end.

        Raises:
            RayError: The process was ended, or it died.
        """
        options["scaling_policy"] = ScalingPolicy(
            self.scaling_config,  # type: ignore[arg-type]  # Ray's stub has version 1's
            self._experiment,
            self._notify,
            self._request_restart,
        )
        options["failure_policy"] = FailurePolicy(self.run_config.failure_config, self._notify)
        with self._lock:
            if self._terminated:
                raise RayError("training was ended before it began")
            controller = self._controller = _controller_class().remote(**options)
        try:
            ray.get(controller.run.remote())
            return ray.get(controller.get_result.remote())
        finally:
            self._controller = None  # the process ends when nothing refers to it


class Controller(TrainController):
    """Ray Train's controller, which pauses when its scaling policy decides to wait."""

    async def _step(self) -> Any:
        result = await super()._step()
        if result.next_state is result.previous_state:
            # The policy cannot sleep itself: it is called inside the loop, and `abort` would wait.
            await asyncio.sleep(PAUSE)
            if self.get_state().is_terminal():  # aborted meanwhile
                ray.actor.exit_actor()
        return result


def _controller_class() -> Any:
    """The class of the actor that controls a run, on this process's node."""
    this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote: Any = ray.remote  # its types do not know this strategy
    return remote(
        num_cpus=0,
        scheduling_strategy=this_node,
        # Ray Train's controller blocks its loop on purpose: Ray need not warn of it.
        runtime_env={
            "env_vars": {
                RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR: "0",
                **get_env_vars_to_propagate(),
            }
        },
    )(Controller)
