"""All private parts of Ray that bcl_ray uses, each with the reason why no public part would do.

    from bcl_ray.ray_runtime.internals import TrainController

No other module of bcl_ray imports a private part of Ray. PRIVATE lists the imported names. A test
compares names and signatures with the installed Ray, also those of private methods, so that an
upgrade of Ray fails in the test, not in a run. A name is imported only when it is first used, since
a process rarely needs more than a few.
"""

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray._common.constants import (
        RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR as RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR,
    )
    from ray._private import ray_constants as ray_constants
    from ray._private import services as services
    from ray._private import worker as worker
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS as DEBUG_AUTOSCALING_STATUS
    from ray._private.state import state as state
    from ray.autoscaler.v2.utils import is_autoscaler_v2 as is_autoscaler_v2
    from ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator import (
        ResourceRequestPriority as ResourceRequestPriority,
    )
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
        _AutoscalingCoordinatorActor as _AutoscalingCoordinatorActor,
    )
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
        get_or_create_autoscaling_coordinator as get_or_create_autoscaling_coordinator,
    )
    from ray.data._internal.execution.execution_callback import (
        ExecutionCallback as ExecutionCallback,
    )
    from ray.data._internal.execution.resource_manager import ResourceManager as ResourceManager
    from ray.data._internal.stats import get_or_create_stats_actor as get_or_create_stats_actor
    from ray.data._internal.usage.actor import (
        get_or_create_usage_collection_actor as get_or_create_usage_collection_actor,
    )
    from ray.data._internal.usage.collector import (
        usage_collection_disabled as usage_collection_disabled,
    )
    from ray.experimental.internal_kv import _internal_kv_del as _internal_kv_del
    from ray.experimental.internal_kv import _internal_kv_get as _internal_kv_get
    from ray.experimental.internal_kv import _internal_kv_list as _internal_kv_list
    from ray.experimental.internal_kv import _internal_kv_put as _internal_kv_put
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback as DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import (
        PlacementGroupCleanerCallback as PlacementGroupCleanerCallback,
    )
    from ray.train.v2._internal.constants import (
        get_env_vars_to_propagate as get_env_vars_to_propagate,
    )
    from ray.train.v2._internal.execution.callback import WorkerGroupCallback as WorkerGroupCallback
    from ray.train.v2._internal.execution.context import get_train_context as get_train_context
    from ray.train.v2._internal.execution.controller import TrainController as TrainController
    from ray.train.v2._internal.execution.failure_handling import FailureDecision as FailureDecision
    from ray.train.v2._internal.execution.failure_handling.default import (
        DefaultFailurePolicy as DefaultFailurePolicy,
    )
    from ray.train.v2._internal.execution.scaling_policy import (
        ElasticScalingPolicy as ElasticScalingPolicy,
    )
    from ray.train.v2._internal.execution.scaling_policy import NoopDecision as NoopDecision
    from ray.train.v2._internal.util import time_monotonic as time_monotonic


@dataclass(frozen=True)
class Private:
    """An imported name."""

    module: str
    why: str
    """Its purpose, and why no public part of Ray serves it."""


_KV = "A search's records in the cluster's key-value store; no public API, and an actor could die."
_CALLBACK = "Removes a default callback of the controller; the public option only adds callbacks."
_DATA_ACTORS = (
    "Starts Ray Data's shared actors on the head; by default the first node in need has them."
)
PRIVATE = {
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR": Private(
        "ray._common.constants",
        "Silences a warning that Ray Train's controller blocks its own loop; no public option.",
    ),
    "ray_constants": Private(
        "ray._private",
        "ENABLE_RAY_CLUSTER: lets nodes on the loopback interface form a cluster; `ray start` has "
        "no option.",
    ),
    "services": Private(
        "ray._private",
        "resolve_ip_for_localhost: Ray replaces 127.0.0.1 by an external address.",
    ),
    "worker": Private(
        "ray._private",
        "print_to_stdstream: Ray prints messages of the autoscaler into the progress display, even "
        "with log_to_driver=False.",
    ),
    "DEBUG_AUTOSCALING_STATUS": Private(
        "ray._private.ray_constants",
        "Whether an autoscaler runs; `ray status` reads the same key, no public API returns it.",
    ),
    "state": Private(
        "ray._private.state",
        "Nodes that will be taken away, and free resources of each node; ray.nodes() has neither.",
    ),
    "is_autoscaler_v2": Private(
        "ray.autoscaler.v2.utils",
        "Whether an autoscaler of version 2 runs; the public state API does not tell.",
    ),
    "_AutoscalingCoordinatorActor": Private(
        "ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator",
        "Computes which CPUs executions of Ray Data get, in tests and in benchmarks/supply.py, for "
        "clusters that are not there; no public API does.",
    ),
    "ResourceRequestPriority": Private(
        "ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator",
        "Needed with get_or_create_autoscaling_coordinator.",
    ),
    "get_or_create_autoscaling_coordinator": Private(
        "ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator",
        "Adds up the requests of several programs. The public request_resources holds one request "
        "for the whole cluster: each call replaces those of other programs.",
    ),
    "ExecutionCallback": Private(
        "ray.data._internal.execution.execution_callback",
        "Pauses Ray Data's control loop, which otherwise keeps the interpreter busy; no option.",
    ),
    "ResourceManager": Private(
        "ray.data._internal.execution.resource_manager",
        "Its limits are unknown when an execution begins, and Ray Data asks again a second later; "
        "no option.",
    ),
    "get_or_create_stats_actor": Private("ray.data._internal.stats", _DATA_ACTORS),
    "get_or_create_usage_collection_actor": Private("ray.data._internal.usage.actor", _DATA_ACTORS),
    "usage_collection_disabled": Private("ray.data._internal.usage.collector", _DATA_ACTORS),
    "_internal_kv_get": Private("ray.experimental.internal_kv", _KV),
    "_internal_kv_put": Private("ray.experimental.internal_kv", _KV),
    "_internal_kv_list": Private("ray.experimental.internal_kv", _KV),
    "_internal_kv_del": Private("ray.experimental.internal_kv", _KV),
    "DatasetsCallback": Private(
        "ray.train.v2._internal.callbacks.datasets",
        _CALLBACK,
    ),
    "PlacementGroupCleanerCallback": Private(
        "ray.train.v2._internal.callbacks.placement_group_callback", _CALLBACK
    ),
    "get_env_vars_to_propagate": Private(
        "ray.train.v2._internal.constants",
        "The environment that Ray Train gives its controller, which we start ourselves.",
    ),
    "WorkerGroupCallback": Private(
        "ray.train.v2._internal.execution.callback",
        "Learns of a run's placement groups; ray.train.UserCallback is only called for reports.",
    ),
    "get_train_context": Private(
        "ray.train.v2._internal.execution.context",
        "Whether a node will be taken away. The public ray.train.get_preemption_info is a barrier "
        "for all workers, which takes 2.6 ms at every step.",
    ),
    "TrainController": Private(
        "ray.train.v2._internal.execution.controller",
        "A policy that waits blocks its loop, and no public method ends it.",
    ),
    "FailureDecision": Private(
        "ray.train.v2._internal.execution.failure_handling",
        "Needed with DefaultFailurePolicy.",
    ),
    "DefaultFailurePolicy": Private(
        "ray.train.v2._internal.execution.failure_handling.default",
        "A requested restart does not count as a failure; FailureConfig has no such rule.",
    ),
    "ElasticScalingPolicy": Private(
        "ray.train.v2._internal.execution.scaling_policy",
        "Ray's policy starts numbers of workers that do not divide the batch, counts nodes that "
        "will be taken away, and waits without end; the public ScalingConfig has no options.",
    ),
    "NoopDecision": Private(
        "ray.train.v2._internal.execution.scaling_policy", "Needed with ElasticScalingPolicy."
    ),
    "time_monotonic": Private(
        "ray.train.v2._internal.util", "The clock of a worker group's start_time."
    ),
}


def generator_limit(objects: int) -> dict[str, Any]:
    """Option of a task that yields blocks: how far it may be ahead of Ray Data's control loop.

    By default a task pauses after two blocks until the loop has fetched them; the public
    DataContext has no option.

    Args:
        objects: Objects that wait, at most, two for each block; -1 for no limit.
    """
    return {"_generator_backpressure_num_objects": objects}


def __getattr__(name: str) -> Any:
    if name not in PRIVATE:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    path = PRIVATE[name].module
    module = importlib.import_module(path)
    if hasattr(module, name):
        return getattr(module, name)
    return importlib.import_module(f"{path}.{name}")  # a submodule
