"""Each rule that no schema expresses is broken once, and seen to be caught; schemas too."""

import ast
import copy
import inspect
import re
from functools import reduce

import pytest
import yaml

from bcl_ray.ops.manifests import pod_rules, rules
from bcl_ray.ops.manifests.rules import check, violations
from tests.cluster import rendered, schemas

LEGACY = {"onSuccess": {"policy": "DeleteSelf"}, "onFailure": {"policy": "DeleteSelf"}}


@pytest.fixture(scope="module")
def objects(description):
    free = description.model_copy(update={"queue": None})
    redis = free.model_copy(update={"head": free.head.model_copy(update={"redis": True})})
    elastic = description.model_copy(
        update={"queue": description.queue.model_copy(update={"elastic": True})}
    )
    cluster, budget, _ = rendered.objects(free, "overlays/gpu/raycluster.yaml")
    return {
        "cluster": cluster,
        "redis": rendered.ray_cluster(redis),
        "job": rendered.ray_job(free),
        "queued": rendered.ray_job(description),
        "elastic": rendered.ray_job(elastic),
        "budget": budget,
        "mlflow": rendered.objects(free, "base/mlflow.yaml")[0],
        "database": rendered.objects(free, "base/postgresql.yaml")[0],
        "policy": rendered.objects(redis, "base/networkpolicies.yaml")[1],
    }


def broken(found, path, value):
    """A copy with one field set, or taken out where value is None."""
    found = copy.deepcopy(found)
    keys = [int(key) if key.isdigit() else key for key in re.split(r"(?<!\\)\.", path)]
    keys = [key.replace("\\.", ".") if isinstance(key, str) else key for key in keys]
    inner = reduce(lambda node, key: node[key], keys[:-1], found)
    if value is None:
        del inner[keys[-1]]
    elif keys[-1] == "+":
        inner.append(value)
    else:
        inner[keys[-1]] = value
    return found


def rule(status, policy, seconds):
    return {"condition": {"jobStatus": status, "ttlSeconds": seconds}, "policy": policy}


def deletion(*rules):
    return {"deletionRules": list(rules)}


SPEC = "spec.rayClusterSpec"
HEAD = "spec.headGroupSpec"
HEAD_ENV = f"{HEAD}.template.spec.containers.0.env.+"
GROUP = "spec.workerGroupSpecs.0"
AS_SUCCESS = rule("SUCCEEDED", "DeleteCluster", 0)
BROKEN = [
    # names
    ("cluster", "metadata.name", "x" * 54, "a name has at most 53 characters, this one has 54"),
    ("cluster", "metadata.name", "1st", "begins with a letter"),
    ("job", "metadata.name", "x" * 48, "a name has at most 47 characters, this one has 48"),
    ("job", "metadata.name", "Train", "a name has only lower-case letters"),
    # authentication
    ("cluster", "spec.authOptions", {"secretName": "x"}, "authOptions.mode must be 'token'"),
    ("job", f"{SPEC}.authOptions.mode", "disabled", "authOptions.mode must be 'token'"),
    ("cluster", "spec.rayVersion", None, "rayVersion must be set"),
    ("cluster", "spec.rayVersion", "nightly", "rayVersion 'nightly' is not a version"),
    ("cluster", "spec.rayVersion", "2.51.1", "rayVersion (2.51.1) must be at least 2.52.0"),
    ("job", f"{SPEC}.authOptions.enableK8sTokenAuth", True, "enableK8sTokenAuth is refused in a"),
    # groups
    ("cluster", f"{HEAD}.rayStartParams.num-cpus", "4", "the head runs no tasks"),
    ("cluster", f"{HEAD}.resources", {"CPU": "0"}, "group head has resources in rayStartParams"),
    (
        "cluster",
        GROUP,
        {
            **{
                "groupName": "w",
                "template": {"spec": {"containers": []}},
                "resources": {"CPU": "1"},
            },
            "rayStartParams": {"num-cpus": "1"},
            "maxReplicas": 1,
        },
        "group w has resources in rayStartParams and in resources",
    ),
    ("cluster", f"{GROUP}.rayStartParams.labels", "a=b", "must not have rayStartParams.labels"),
    (
        "cluster",
        f"{GROUP}.labels",
        {"a b": "c"},
        "label a b=c, which is not a Kubernetes label",
    ),
    (
        "cluster",
        f"{GROUP}.labels",
        {"a": "c/d"},
        "label a=c/d, which is not a Kubernetes label",
    ),
    ("cluster", f"{GROUP}.labels", {"ray.io/market-type": "spot"}, "under ray.io/ are Ray's own"),
    ("cluster", f"{GROUP}.minReplicas", 9, "has minReplicas (9) above maxReplicas (2)"),
    ("cluster", f"{GROUP}.replicas", 9, "has replicas (9) outside 0 to 2"),
    ("cluster", f"{GROUP}.groupName", "spot", "the same groupName twice"),
    # autoscaling
    (
        "queued",
        "spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.env.+",
        {"name": "RAY_enable_autoscaler_v2", "value": "1"},
        "RAY_enable_autoscaler_v2 is set, but enableInTreeAutoscaling is false",
    ),
    (
        "cluster",
        HEAD_ENV,
        {"name": "RAY_enable_autoscaler_v2", "value": "1"},
        "RAY_enable_autoscaler_v2 and autoscalerOptions.version are both set",
    ),
    ("cluster", f"{HEAD}.template.spec.restartPolicy", "Always", "group head has restartPolicy"),
    ("cluster", f"{GROUP}.template.spec.restartPolicy", "OnFailure", "autoscaler v2 needs Never"),
    ("cluster", f"{GROUP}.suspend", True, "must not be suspended while autoscaling is on"),
    # Redis
    (
        "cluster",
        HEAD_ENV,
        {"name": "RAY_REDIS_ADDRESS", "value": "redis:6379"},
        "RAY_REDIS_ADDRESS is set, but gcsFaultToleranceOptions are not",
    ),
    (
        "redis",
        HEAD_ENV,
        {"name": "RAY_REDIS_ADDRESS", "value": "redis:6379"},
        "RAY_REDIS_ADDRESS of the head must be set in gcsFaultToleranceOptions",
    ),
    (
        "redis",
        HEAD_ENV,
        {"name": "REDIS_PASSWORD", "valueFrom": {"secretKeyRef": {"name": "r", "key": "p"}}},
        "REDIS_PASSWORD of the head must be set in gcsFaultToleranceOptions",
    ),
    ("redis", f"{HEAD}.rayStartParams.redis-password", "x", "redis-password must be set in"),
    ("cluster", f"{HEAD}.rayStartParams.redis-username", "x", "redis-username must be set in"),
    ("redis", "metadata.annotations", {"ray.io/ft-enabled": "true"}, "ray.io/ft-enabled and gcs"),
    (
        "redis",
        "metadata.annotations",
        {"ray.io/external-storage-namespace": "x"},
        "ray.io/external-storage-namespace and gcs",
    ),
    # jobs
    ("job", SPEC, None, "one of rayClusterSpec and clusterSelector must be set"),
    ("job", "spec.backoffLimit", -1, "backoffLimit (-1) must be at least 0"),
    ("job", "spec.submissionMode", "K8sMode", "submissionMode 'K8sMode' is not one of K8sJobMode"),
    ("job", "spec.submissionMode", "InteractiveMode", "backoffLimit must be 0 in InteractiveMode"),
    ("job", "spec.submissionMode", "SidecarMode", "SidecarMode has no submitterPodTemplate"),
    ("job", "spec.activeDeadlineSeconds", 0, "activeDeadlineSeconds (0) must be positive"),
    ("job", "spec.preRunningDeadlineSeconds", 0, "preRunningDeadlineSeconds (0) must be positive"),
    ("job", "spec.runtimeEnvYAML", "[1", "runtimeEnvYAML must be a YAML mapping"),
    ("job", "spec.entrypoint", "bcl-ray train cifar10_lt", "which needs --restartable"),
    # deletion
    ("job", "spec.shutdownAfterJobFinishes", False, "ttlSecondsAfterFinished needs shutdownAfter"),
    ("job", "spec.deletionStrategy", deletion(AS_SUCCESS), "exclude each other"),
    ("job", "spec.deletionStrategy", {**deletion(AS_SUCCESS), **LEGACY}, "use the rules"),
    ("job", "spec.deletionStrategy", {"onSuccess": {"policy": "DeleteSelf"}}, "both onSuccess and"),
    (
        "job",
        "spec.deletionStrategy",
        deletion(rule("FAILED", "DeleteWorkers", 0)),
        "DeleteWorkers is refused with autoscaling",
    ),
    ("job", "spec.deletionStrategy", deletion(AS_SUCCESS, AS_SUCCESS), "after SUCCEEDED twice"),
    (
        "job",
        "spec.deletionStrategy",
        deletion(rule("FAILED", "DeleteCluster", 60), rule("FAILED", "DeleteSelf", 5)),
        "ttlSeconds must not fall in the order DeleteWorkers, DeleteCluster, DeleteSelf",
    ),
    # Kueue
    ("queued", "spec.shutdownAfterJobFinishes", False, "a queue needs shutdownAfterJobFinishes"),
    ("queued", "spec.clusterSelector", {"ray.io/cluster": "x"}, "admits no clusterSelector"),
    ("queued", f"{SPEC}.enableInTreeAutoscaling", True, "a queue forbids enableInTreeAutoscaling"),
    ("elastic", "metadata.annotations", None, "a queue forbids enableInTreeAutoscaling"),
    (
        "queued",
        f"{SPEC}.workerGroupSpecs",
        [{"groupName": f"w{i}", "template": {"spec": {"containers": []}}} for i in range(18)],
        "a queue admits at most 17 worker groups, not 18",
    ),
    ("queued", f"{SPEC}.workerGroupSpecs.0.groupName", "head", "reserves the group name 'head'"),
    # disruption
    (
        "budget",
        "spec.minAvailable",
        "50%",
        "minAvailable must be a whole number, without maxUnavailable",
    ),
    (
        "budget",
        "spec.maxUnavailable",
        0,
        "minAvailable must be a whole number, without maxUnavailable",
    ),
    # pods and secrets
    (
        "cluster",
        f"{HEAD}.template.spec.securityContext.runAsNonRoot",
        False,
        "every pod must set runAsNonRoot and a seccompProfile",
    ),
    (
        "database",
        "spec.template.spec.securityContext.seccompProfile",
        None,
        "every pod must set runAsNonRoot and a seccompProfile",
    ),
    (
        "mlflow",
        "spec.template.spec.containers.0.securityContext.allowPrivilegeEscalation",
        True,
        "container mlflow must set allowPrivilegeEscalation: false",
    ),
    (
        "job",
        "spec.submitterPodTemplate.spec.containers.0.securityContext.capabilities",
        {},
        "container ray-job-submitter must drop ALL capabilities",
    ),
    (
        "cluster",
        f"{GROUP}.template.spec.containers.0.resources",
        {},
        "container ray-worker must have resources.limits",
    ),
    (
        "cluster",
        f"{GROUP}.template.spec.terminationGracePeriodSeconds",
        90,
        "container ray-worker has a preStop hook as long as its grace period",
    ),
    (
        "mlflow",
        "spec.template.spec.containers.0.env.+",
        {"name": "AWS_SECRET_ACCESS_KEY", "value": "x"},
        "AWS_SECRET_ACCESS_KEY has its value in the file: take it from a secret",
    ),
    ("mlflow", "kind", "Secret", "a secret belongs in the cluster, not in a file"),
]


@pytest.mark.parametrize(
    ("name", "path", "value", "message"),
    BROKEN,
    ids=[f"{name}-{message[:40]}" for name, _, _, message in BROKEN],
)
def test_a_broken_rule_is_caught(objects, name, path, value, message):
    found = violations(broken(objects[name], path, value))
    assert any(message in violation for violation in found), found


def test_suspending_needs_shutting_down(objects):
    suspended = broken(objects["job"], "spec.suspend", True)
    found = violations(broken(suspended, "spec.shutdownAfterJobFinishes", False))
    assert "RayJob train-imagenet-lt-1: suspend needs shutdownAfterJobFinishes" in found


def test_what_we_render_breaks_none(objects):
    assert [text for found in objects.values() for text in violations(found)] == []


def test_every_violation_that_the_rules_can_make_is_provoked_above(objects):
    """A rule without a case here is a rule that nobody has seen to work."""
    trees = [ast.parse(inspect.getsource(module)) for module in (rules, pod_rules)]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    yields = [node.value for node in nodes if isinstance(node, ast.Yield)]
    provoked = "\n".join(
        text
        for name, path, value, _ in BROKEN
        for text in violations(broken(objects[name], path, value))
    )
    never = []
    for value in yields:
        constants = [node.value for node in ast.walk(value) if isinstance(node, ast.Constant)]
        longest = max((text for text in constants if isinstance(text, str)), key=len, default="")
        if longest not in provoked:
            never.append(longest)
    assert never == ["suspend needs shutdownAfterJobFinishes"], "that one has a test of its own"


def test_a_refusal_names_object_and_rule(objects):
    found = broken(objects["cluster"], "spec.authOptions.mode", "none")
    message = "the rendered files break rules:\n  RayCluster bcl-ray: authOptions.mode must be"
    with pytest.raises(ValueError, match=re.escape(message)):
        check([objects["job"], found])


@pytest.mark.parametrize(
    ("name", "path", "value", "message"),
    [
        ("cluster", "spec.enableInTreeAutoscalling", True, "'enableInTreeAutoscalling' was unexp"),
        ("cluster", f"{HEAD}.template.spec.containers.0.imge", "x", "'imge' was unexpected"),
        ("cluster", f"{GROUP}.maxReplicas", "2", "'2' is not of type 'integer'"),
        ("cluster", "spec.authOptions.mode", "tokn", "'tokn' is not one of"),
        ("job", "spec.backoffLimit", "3", "'3' is not of type 'integer'"),
        ("job", "spec.deletionStrategy", {"deletionRules": []}, "[] should be non-empty"),
        ("mlflow", "spec.template.spec.containers.0.ports.0.containerPort", "http", "integer"),
        ("mlflow", "spec.selector", None, "'selector' is a required property"),
        ("policy", "spec.ingress.0.form", [], "'form' was unexpected"),
        ("budget", "spec.minAvailabel", 1, "'minAvailabel' was unexpected"),
    ],
)
def test_a_broken_schema_is_caught(objects, name, path, value, message):
    assert schemas.errors(objects[name]) == []
    assert message in "\n".join(schemas.errors(broken(objects[name], path, value)))


def test_objects_hold_only_what_yaml_has(objects):
    for found in objects.values():
        assert yaml.safe_load(yaml.safe_dump(found)) == found
