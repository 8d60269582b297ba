"""Which failures of a run's workers lead to a restart, and what the user is told about them."""

from collections.abc import Callable
from typing import Any, TypeVar

from ray.exceptions import RayActorError
from ray.train.v2.api.exceptions import PreemptionError, TrainingFailedError, WorkerGroupError

from bcl_ray.machine.messages import last_line
from bcl_ray.ray_runtime.connection import one_line, root_cause
from bcl_ray.ray_runtime.internals import DefaultFailurePolicy, FailureDecision
from bcl_ray.runs.checkpoint import UnusableCheckpointError
from bcl_ray.storage.fence import LeaseLostError

ErrorType = TypeVar("ErrorType", bound=BaseException)


class RestartError(RuntimeError):
    """Raised by workers that have saved their state, so that they are started on other nodes."""


class FailurePolicy(DefaultFailurePolicy):
    """Allows scale.max_failures failures, and any number of nodes taken away with notice.

    Args:
        config: Ray Train's FailureConfig.
        notify: Shows a message to the user.
    """

    def __init__(self, config: Any, notify: Callable[[str], None]) -> None:
        super().__init__(config)
        self._notify = notify
        self._last_startup_message = ""

    def make_decision(self, training_failed_error: TrainingFailedError) -> Any:
        """Decide whether the workers start again, and tell the user if they do."""
        error = training_failed_error
        # A restart would fail in the same way, or another driver already runs the workers.
        if find_cause(error, UnusableCheckpointError) or find_cause(error, LeaseLostError):
            return FailureDecision.RAISE
        if restart := find_cause(error, RestartError):
            self._notify(f"{restart}; starting again on the available nodes")
            return FailureDecision.RETRY
        decision = super().make_decision(training_failed_error=error)
        if decision == FailureDecision.RETRY:
            self._notify_restart(error)
        return decision

    def _notify_restart(self, error: TrainingFailedError) -> None:
        if isinstance(error, WorkerGroupError):
            left = self.failure_config.max_failures - self._worker_group_failures
            self._notify(
                f"{_first_failure(error)}: starting again from the last checkpoint "
                f"({left} more failures allowed)"
            )
        elif isinstance(error, PreemptionError):
            self._notify("a node was taken away: starting again from the last checkpoint")
        else:
            # It begins with a worker's traceback.
            failure = getattr(error, "controller_failure", error)
            reason = last_line(str(failure), type(failure).__name__).strip()
            message = f"workers did not start ({reason}): trying again"
            if message != self._last_startup_message:  # it may come every few seconds
                self._last_startup_message = message
                self._notify(message)


def find_cause(error: Exception, kind: type[ErrorType]) -> ErrorType | None:
    """The first error of a kind that a worker or the controller raised, without Ray's wrappers."""
    failures = [*getattr(error, "worker_failures", {}).values(), error]
    causes = (_cause(getattr(failure, "controller_failure", failure)) for failure in failures)
    return next((cause for cause in causes if isinstance(cause, kind)), None)


def _cause(failure: BaseException) -> BaseException:
    return root_cause(getattr(failure, "_base_exc", failure))


def _first_failure(error: WorkerGroupError) -> str:
    """The failure that caused the others: when a worker dies, the others lose their connection."""
    causes = {rank: _cause(failure) for rank, failure in error.worker_failures.items()}
    dead = [rank for rank, cause in causes.items() if isinstance(cause, RayActorError)]
    if dead:
        return f"worker {dead[0]} died"
    rank, cause = next(iter(causes.items()))
    return f"worker {rank} failed ({one_line(cause)})"
