"""All of Ray that is not public: what is used, why, and which public way was looked for.

    from bcl_ray.ray_runtime.internals import TrainController

A name is imported when it is first asked for, since a process rarely needs more than a few.
PRIVATE says what is imported, METHODS which methods that are private, or of private classes, are
called or overridden. A test holds both against the installed Ray, name by name and signature by
signature, so that an upgrade fails there and not in a run. No other module of bcl_ray imports a
private part of Ray.
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
        get_or_create_autoscaling_coordinator as get_or_create_autoscaling_coordinator,
    )
    from ray.data._internal.execution.execution_callback import (
        ExecutionCallback as ExecutionCallback,
    )
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
    """Something that is imported.

    Args:
        module: that has it.
        parameters: of a function, in order; None where that does not matter.
        why: what it is for, and why no public part of Ray does.
    """

    module: str
    parameters: tuple[str, ...] | None
    why: str


_KV = "Notes of a search in the cluster's own store; Ray has no public one, and an actor would die."
_CALLBACK = "The controller's default callbacks are made by a private method; public ones only add."
_DATA_ACTORS = "Ray Data starts its actors on the node that needs them first; nothing public does."
PRIVATE = {
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR": Private(
        "ray._common.constants",
        None,
        "Ray Train's controller blocks its own loop, and warns of it; no public switch.",
    ),
    "ray_constants": Private(
        "ray._private",
        None,
        "ENABLE_RAY_CLUSTER: lets a node of loopback join a cluster; no option of `ray start`.",
    ),
    "services": Private(
        "ray._private",
        None,
        "resolve_ip_for_localhost: Ray takes 127.0.0.1 for the outer address, and listens there.",
    ),
    "worker": Private(
        "ray._private",
        None,
        "print_to_stdstream: Ray prints the autoscaler's messages over the progress display; "
        "log_to_driver=False does not stop them.",
    ),
    "DEBUG_AUTOSCALING_STATUS": Private(
        "ray._private.ray_constants",
        None,
        "Whether an autoscaler runs: `ray status` reads the same; its public client has no field.",
    ),
    "state": Private(
        "ray._private.state",
        None,
        "Nodes that have notice to go, and what is free on each: ray.nodes() says neither.",
    ),
    "is_autoscaler_v2": Private(
        "ray.autoscaler.v2.utils",
        ("fetch_from_server", "gcs_client"),
        "Whether an autoscaler of version 2 runs; the public state API does not say.",
    ),
    "ResourceRequestPriority": Private(
        "ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator",
        None,
        "Goes with get_or_create_autoscaling_coordinator.",
    ),
    "get_or_create_autoscaling_coordinator": Private(
        "ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator",
        (),
        "Several programs' requests add up in it. The public request_resources is one for the "
        "whole cluster: the last caller's replaces all others.",
    ),
    "ExecutionCallback": Private(
        "ray.data._internal.execution.execution_callback",
        (),
        "Lets Ray Data's control loop rest, which takes the interpreter from training; no option.",
    ),
    "get_or_create_stats_actor": Private("ray.data._internal.stats", (), _DATA_ACTORS),
    "get_or_create_usage_collection_actor": Private(
        "ray.data._internal.usage.actor", (), _DATA_ACTORS
    ),
    "usage_collection_disabled": Private("ray.data._internal.usage.collector", (), _DATA_ACTORS),
    "_internal_kv_get": Private("ray.experimental.internal_kv", ("key", "namespace"), _KV),
    "_internal_kv_put": Private(
        "ray.experimental.internal_kv", ("key", "value", "overwrite", "namespace"), _KV
    ),
    "_internal_kv_list": Private("ray.experimental.internal_kv", ("prefix", "namespace"), _KV),
    "_internal_kv_del": Private(
        "ray.experimental.internal_kv", ("key", "del_by_prefix", "namespace"), _KV
    ),
    "DatasetsCallback": Private(
        "ray.train.v2._internal.callbacks.datasets",
        ("train_run_context", "datasets"),
        _CALLBACK,
    ),
    "PlacementGroupCleanerCallback": Private(
        "ray.train.v2._internal.callbacks.placement_group_callback", None, _CALLBACK
    ),
    "get_env_vars_to_propagate": Private(
        "ray.train.v2._internal.constants",
        (),
        "What Ray Train gives its controller's environment, which is started here.",
    ),
    "WorkerGroupCallback": Private(
        "ray.train.v2._internal.execution.callback",
        (),
        "Learns of a run's placement groups; ray.train.UserCallback hears of reports alone.",
    ),
    "get_train_context": Private(
        "ray.train.v2._internal.execution.context",
        (),
        "Whether a node is about to go. The public ray.train.get_preemption_info is a barrier of "
        "all workers, 2.6 ms at every step.",
    ),
    "TrainController": Private(
        "ray.train.v2._internal.execution.controller",
        (
            "train_fn_ref",
            "train_run_context",
            "scaling_policy",
            "failure_policy",
            "callbacks",
            "validation_config",
        ),
        "Its loop is held up by a policy that waits, and nothing public ends it.",
    ),
    "FailureDecision": Private(
        "ray.train.v2._internal.execution.failure_handling",
        None,
        "Goes with DefaultFailurePolicy.",
    ),
    "DefaultFailurePolicy": Private(
        "ray.train.v2._internal.execution.failure_handling.default",
        ("failure_config",),
        "A restart that was asked for is no failure; the public FailureConfig only counts.",
    ),
    "ElasticScalingPolicy": Private(
        "ray.train.v2._internal.execution.scaling_policy",
        ("scaling_config",),
        "Ray's own takes numbers of workers that do not divide the batch, counts nodes that are "
        "about to go, and waits for ever; the public ScalingConfig has no rule for it.",
    ),
    "NoopDecision": Private(
        "ray.train.v2._internal.execution.scaling_policy", (), "Goes with ElasticScalingPolicy."
    ),
    "time_monotonic": Private(
        "ray.train.v2._internal.util", (), "The clock of a worker group's start_time."
    ),
}

METHODS: dict[tuple[str, str], tuple[str, ...]] = {
    ("TrainController", "_step"): (),
    ("TrainController", "abort"): (),
    ("TrainController", "get_result"): (),
    ("TrainController", "get_state"): (),
    ("TrainController", "run"): (),
    ("ElasticScalingPolicy", "_get_resize_decision"): ("num_workers",),
    ("ElasticScalingPolicy", "_send_resource_request"): (),
    ("ElasticScalingPolicy", "make_decision_for_non_running_worker_group"): (),
    ("ElasticScalingPolicy", "make_decision_for_running_worker_group"): (
        "worker_group_state",
        "worker_group_status",
    ),
    ("DefaultFailurePolicy", "make_decision"): ("training_failed_error",),
    ("WorkerGroupCallback", "after_worker_group_start"): ("worker_group",),
    ("ExecutionCallback", "on_execution_step"): ("executor",),
    ("ray.train.torch.TorchTrainer", "_create_default_callbacks"): (),
    ("ray.train.torch.TorchTrainer", "_initialize_and_run_controller"): ("controller_init_kwargs",),
    ("ray.job_submission.JobSubmissionClient", "_do_request"): (
        "method",
        "endpoint",
        "data",
        "json_data",
        "kwargs",
    ),
    ("services", "resolve_ip_for_localhost"): ("host",),
    ("worker", "print_to_stdstream"): ("data", "ignore_prefix"),
    ("state", "available_resources_per_node"): (),
    ("state", "get_draining_nodes"): (),
}
"""Parameters, without self, by owner (a name in PRIVATE, or a public class) and method."""


def __getattr__(name: str) -> Any:
    if name not in PRIVATE:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    module = PRIVATE[name].module
    holder = importlib.import_module(module)
    return (
        getattr(holder, name)
        if hasattr(holder, name)
        else importlib.import_module(f"{module}.{name}")
    )
