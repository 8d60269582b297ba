"""The private parts of Ray that are used exist, and have these parameters."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import bcl_ray
from bcl_ray.ray_runtime import internals
from bcl_ray.ray_runtime.internals import PRIVATE

PACKAGE = Path(bcl_ray.__file__).parent
PARAMETERS: dict[str, tuple[str, ...]] = {
    "is_autoscaler_v2": ("fetch_from_server", "gcs_client"),
    "_AutoscalingCoordinatorActor": (
        "get_current_time",
        "send_resources_request",
        "get_cluster_nodes",
    ),
    "get_or_create_autoscaling_coordinator": (),
    "ExecutionCallback": (),
    "get_or_create_stats_actor": (),
    "get_or_create_usage_collection_actor": (),
    "usage_collection_disabled": (),
    "_internal_kv_get": ("key", "namespace"),
    "_internal_kv_put": ("key", "value", "overwrite", "namespace"),
    "_internal_kv_list": ("prefix", "namespace"),
    "_internal_kv_del": ("key", "del_by_prefix", "namespace"),
    "DatasetsCallback": ("train_run_context", "datasets"),
    "get_env_vars_to_propagate": (),
    "WorkerGroupCallback": (),
    "get_train_context": (),
    "TrainController": (
        "train_fn_ref",
        "train_run_context",
        "scaling_policy",
        "failure_policy",
        "callbacks",
        "validation_config",
    ),
    "DefaultFailurePolicy": ("failure_config",),
    "ElasticScalingPolicy": ("scaling_config",),
    "NoopDecision": (),
    "time_monotonic": (),
}
"""Of functions and classes in PRIVATE, in order, as far as they matter."""
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
    ("_AutoscalingCoordinatorActor", "request_resources"): (
        "requester_id",
        "resources",
        "expire_after_s",
        "request_remaining",
        "priority",
        "label_selectors",
        "subcluster_selector",
        "strategy",
    ),
    ("_AutoscalingCoordinatorActor", "get_reserved_resources"): ("requester_id", "recompute"),
    ("ray.data.Dataset", "iter_internal_ref_bundles"): (),
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
"""Parameters without self of the methods that are called or overridden and are private, or belong
to a private class; by owner (a name in PRIVATE, or a public class) and method."""


# In a process of its own: here Ray may have made actors of these classes, which changes them.
SCRIPT = """
import importlib, inspect, json, sys
from bcl_ray.ray_runtime import internals
def parameters(of):
    try:
        return [name for name in inspect.signature(of).parameters if name != "self"]
    except TypeError:  # a constant
        return None
parts = {name: parameters(getattr(internals, name)) for name in internals.PRIVATE}
methods = []
for owner, method in json.loads(sys.argv[1]):
    module, _, public = owner.rpartition(".")
    holder = getattr(importlib.import_module(module) if module else internals, public)
    methods.append(parameters(getattr(holder, method)))
print(json.dumps([parts, methods]))
"""


@pytest.fixture(scope="module")
def installed():
    """Parameters of the private parts, by name, and of the methods, in their order."""
    command = [sys.executable, "-c", SCRIPT, json.dumps(list(METHODS))]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize("name", PRIVATE)
def test_each_private_part_is_there(installed, name):
    assert PRIVATE[name].why
    if name in PARAMETERS:
        assert installed[0][name] == list(PARAMETERS[name])


def test_each_method_has_its_parameters(installed):
    found = dict(zip(METHODS, map(tuple, installed[1]), strict=True))
    assert found == METHODS


def test_ray_knows_the_option_of_a_task():
    import ray

    assert ray.remote(**internals.generator_limit(-1))(lambda: None)
    with pytest.raises(ValueError, match="_unknown"):
        ray.remote(_unknown=-1)(lambda: None)


def test_ray_data_asks_for_its_limits_at_an_interval():
    assert internals.ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S == 1


def test_what_a_type_checker_sees_is_what_is_imported():
    tree = ast.parse(Path(internals.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: part.module for part in block.body for alias in part.names}
    assert seen == {name: private.module for name, private in PRIVATE.items()}


def test_an_unknown_name_is_none_of_them():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        internals.nothing  # noqa: B018


def is_private(module: str) -> bool:
    parts = module.split(".")
    return parts[0] == "ray" and any(
        part.startswith("_") or part.startswith("internal") for part in parts[1:]
    )


@pytest.mark.parametrize(
    "file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE))
)
def test_no_other_module_imports_a_private_part_of_ray(file):
    if file == Path(internals.__file__):
        return
    for node in ast.walk(ast.parse(file.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names.append(f"{node.value.id}.{node.attr}")
        assert not any(map(is_private, names)), f"line {node.lineno}"
