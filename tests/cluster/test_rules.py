"""Each rule that no schema expresses is broken once, and seen to be caught; schemas too."""

import ast
import copy
import inspect
import re
from functools import reduce

import pytest
import yaml

from tests.cluster import pod_rules, rendered, rules, schemas
from tests.cluster.rules import violations


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


SPEC = "spec.rayClusterSpec"
HEAD = "spec.headGroupSpec"
GROUP = "spec.workerGroupSpecs.0"
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
    # groups
    ("cluster", f"{HEAD}.rayStartParams.num-cpus", "4", "the head runs no tasks"),
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
    ("cluster", f"{HEAD}.template.spec.restartPolicy", "Always", "group head has restartPolicy"),
    ("cluster", f"{GROUP}.template.spec.restartPolicy", "OnFailure", "autoscaler v2 needs Never"),
    # jobs
    ("job", "spec.backoffLimit", -1, "backoffLimit (-1) must be at least 0"),
    ("job", "spec.submissionMode", "K8sMode", "submissionMode 'K8sMode' is not one of K8sJobMode"),
    ("job", "spec.submissionMode", "InteractiveMode", "backoffLimit must be 0 in InteractiveMode"),
    ("job", "spec.submissionMode", "SidecarMode", "SidecarMode has no submitterPodTemplate"),
    ("job", "spec.activeDeadlineSeconds", 0, "activeDeadlineSeconds (0) must be positive"),
    ("job", "spec.preRunningDeadlineSeconds", 0, "preRunningDeadlineSeconds (0) must be positive"),
    ("job", "spec.entrypoint", "bcl-ray train cifar10_lt", "which needs --restartable"),
    # deletion
    ("job", "spec.shutdownAfterJobFinishes", False, "ttlSecondsAfterFinished needs shutdownAfter"),
    # Kueue
    ("queued", "spec.shutdownAfterJobFinishes", False, "a queue needs shutdownAfterJobFinishes"),
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
    assert never == []


@pytest.mark.parametrize(
    ("name", "path", "value", "message"),
    [
        ("cluster", "spec.enableInTreeAutoscalling", True, "'enableInTreeAutoscalling' was unexp"),
        ("cluster", f"{HEAD}.template.spec.containers.0.imge", "x", "'imge' was unexpected"),
        ("cluster", f"{GROUP}.maxReplicas", "2", "'2' is not of type 'integer'"),
        ("cluster", "spec.authOptions.mode", "tokn", "'tokn' is not one of"),
        ("job", "spec.backoffLimit", "3", "'3' is not of type 'integer'"),
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
