"""What KubeRay and Kueue refuse, and no schema says.

Restated from KubeRay v1.7 (ray-operator/controllers/ray/utils/validation.go) and Kueue 0.18
(pkg/controller/jobs/raycluster/common.go, rayjob_webhook.go), so that a file that would be
refused in the cluster is refused when it is written.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import yaml

from bcl_ray.machine.errors import UserError
from bcl_ray.ops.manifests import pod_rules
from bcl_ray.ops.manifests.pod_rules import Plain

DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")  # RFC 1035
LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?")
LONGEST_NAME = {"RayCluster": 53, "RayJob": 47}
MOST_GROUPS = 17  # Kueue's 18 pod sets less the head's
MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
ORDER = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")
REPEATABLE = re.compile(r" --restartable\b| --resume\b|\bbcl-ray (shard|evaluate) ")
V2_VARIABLE = "RAY_enable_autoscaler_v2"


def check(objects: Iterable[Plain]) -> None:
    """Refuse objects that the cluster would refuse, or that would leave it open.

    Raises:
        ValueError: every broken rule, one a line, with the object's kind and name.
    """
    broken = [complaint for found in objects for complaint in complaints(found)]
    if broken:
        raise UserError("the rendered files break rules:\n  " + "\n  ".join(broken))


def complaints(found: Plain) -> list[str]:
    """The rules that one object breaks; none is none."""
    kind, metadata, spec = found["kind"], found["metadata"], found.get("spec", {})
    rules: list[Iterator[str]] = [pod_rules.secrets(found), pod_rules.security(found)]
    if kind in LONGEST_NAME:
        rules.append(_name(kind, metadata["name"]))
    if kind == "RayCluster":
        rules.append(_cluster(spec, metadata, job=False))
    if kind == "RayJob":
        rules += [_job(spec), _deletion(spec)]
        if spec.get("rayClusterSpec"):
            rules.append(_cluster(spec["rayClusterSpec"], metadata, job=True))
    if kind in LONGEST_NAME and "kueue.x-k8s.io/queue-name" in metadata.get("labels", {}):
        rules.append(_kueue(kind, metadata, spec))
    if kind == "PodDisruptionBudget":
        rules.append(_budget(spec))
    return [f"{kind} {metadata['name']}: {text}" for rule in rules for text in rule]


def _name(kind: str, name: str) -> Iterator[str]:
    if len(name) > LONGEST_NAME[kind]:
        yield f"a name has at most {LONGEST_NAME[kind]} letters, this one {len(name)}"
    if not DNS_LABEL.fullmatch(name):
        yield "a name has lower-case letters, digits and hyphens, and begins with a letter"


def _cluster(spec: Plain, metadata: Plain, *, job: bool) -> Iterator[str]:
    yield from _authentication(spec, job=job)
    head, groups = spec["headGroupSpec"], spec.get("workerGroupSpecs", [])
    for name, group in (("head", head), *((group["groupName"], group) for group in groups)):
        yield from _group(name, group)
    names = [group["groupName"] for group in groups]
    if len(set(names)) < len(names):
        yield f"workerGroupSpecs have the same groupName twice ({', '.join(names)})"
    if head["rayStartParams"].get("num-cpus") != "0":
        yield "headGroupSpec.rayStartParams.num-cpus must be '0': the head takes no work"
    yield from _autoscaling(spec, groups)
    yield from _redis(spec, head, metadata.get("annotations", {}))


def _authentication(spec: Plain, *, job: bool) -> Iterator[str]:
    options, version = spec.get("authOptions", {}), str(spec.get("rayVersion", ""))
    if options.get("mode") != "token":
        yield "authOptions.mode must be written out as 'token': without it anybody may run code"
    parts = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)\S*", version)
    if not version:
        yield "rayVersion must be set, for authOptions.mode 'token' needs it"
    elif not parts:
        yield f"rayVersion '{version}' is no version"
    elif tuple(map(int, parts.groups())) < (2, 52, 0):
        yield f"rayVersion ({version}) must be at least 2.52.0 for authOptions.mode 'token'"
    if options.get("enableK8sTokenAuth") and job:
        yield "authOptions.enableK8sTokenAuth is refused in a RayJob: use a token"


def _group(name: str, group: Plain) -> Iterator[str]:
    parameters, labels = group.get("rayStartParams", {}), group.get("labels", {})
    if group.get("resources") and parameters.keys() & {
        "num-cpus",
        "num-gpus",
        "memory",
        "resources",
    }:
        yield f"group {name} has resources in rayStartParams and in resources: use one of them"
    if "labels" in parameters:
        yield f"group {name} must not have rayStartParams.labels: use the group's labels"
    for key, value in labels.items():
        if not LABEL_KEY.fullmatch(key) or not LABEL_VALUE.fullmatch(value):
            yield f"group {name} has the label {key}={value}, which is no Kubernetes label"
        elif key.startswith("ray.io/"):
            yield f"group {name} has the label {key}: names under ray.io/ are Ray's own"
    least, most = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
    if least > most:
        yield f"group {name} has minReplicas ({least}) above maxReplicas ({most})"
    elif not least <= group.get("replicas", least) <= most:
        yield f"group {name} has replicas ({group['replicas']}) outside {least} to {most}"


def _autoscaling(spec: Plain, groups: list[Plain]) -> Iterator[str]:
    autoscales = spec.get("enableInTreeAutoscaling", False)
    head = spec["headGroupSpec"]
    variable = _environment(head).get(V2_VARIABLE)
    version = spec.get("autoscalerOptions", {}).get("version", "v2")
    if not autoscales and variable in ("1", "true"):
        yield f"{V2_VARIABLE} is set, but enableInTreeAutoscaling is false"
    if autoscales and variable and "version" in spec.get("autoscalerOptions", {}):
        yield f"{V2_VARIABLE} and autoscalerOptions.version are both set: use the latter"
    for name, group in (("head", head), *((group["groupName"], group) for group in groups)):
        policy = group["template"]["spec"].get("restartPolicy", "Never")
        if autoscales and version == "v2" and policy != "Never":
            yield f"group {name} has restartPolicy {policy}: autoscaler v2 needs Never"
        if autoscales and group.get("suspend"):
            yield f"group {name} must not be suspended while autoscaling is on"


def _redis(spec: Plain, head: Plain, annotations: Plain) -> Iterator[str]:
    options, variables = spec.get("gcsFaultToleranceOptions"), _environment(head)
    parameters = head["rayStartParams"]
    if options is None and "RAY_REDIS_ADDRESS" in variables:
        yield "RAY_REDIS_ADDRESS is set, but gcsFaultToleranceOptions are not"
    if "redis-username" in parameters or "REDIS_USERNAME" in variables:
        yield "redis-username must be set in gcsFaultToleranceOptions.redisUsername"
    if options is None:
        return
    if "redis-password" in parameters:
        yield "rayStartParams.redis-password must be set in gcsFaultToleranceOptions.redisPassword"
    for variable in ("REDIS_PASSWORD", "RAY_REDIS_ADDRESS"):
        if variable in variables:
            yield f"{variable} of the head must be set in gcsFaultToleranceOptions"
    for key in ("ray.io/ft-enabled", "ray.io/external-storage-namespace"):
        if key in annotations:
            yield f"the annotation {key} and gcsFaultToleranceOptions are both set"


def _job(spec: Plain) -> Iterator[str]:
    mode, retries = spec.get("submissionMode", "K8sJobMode"), spec.get("backoffLimit", 0)
    if not spec.get("rayClusterSpec") and not spec.get("clusterSelector"):
        yield "one of rayClusterSpec and clusterSelector must be set"
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        yield "suspend needs shutdownAfterJobFinishes"
    if retries < 0:
        yield f"backoffLimit ({retries}) must be at least 0"
    if mode not in MODES:  # a plain string in the schema
        yield f"submissionMode '{mode}' is none of {', '.join(MODES)}"
    if mode == "InteractiveMode" and retries:
        yield "backoffLimit must be 0 in InteractiveMode"
    if mode == "SidecarMode" and spec.keys() & {"submitterPodTemplate", "submitterConfig"}:
        yield "SidecarMode has no submitterPodTemplate and no submitterConfig"
    for name in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(name, 1) <= 0:
            yield f"{name} ({spec[name]}) must be positive"
    try:
        mapping = isinstance(yaml.safe_load(spec.get("runtimeEnvYAML", "{}")), dict)
    except yaml.YAMLError:
        mapping = False
    if not mapping:
        yield "runtimeEnvYAML must be a YAML mapping"
    if retries > 0 and not REPEATABLE.search(spec.get("entrypoint", "")):
        yield "backoffLimit repeats the entrypoint, which must have --restartable to go on"


def _deletion(spec: Plain) -> Iterator[str]:
    strategy, shuts = spec.get("deletionStrategy"), spec.get("shutdownAfterJobFinishes", False)
    if not shuts and spec.get("ttlSecondsAfterFinished", 0) > 0:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if strategy is None:
        return
    rules, old = strategy.get("deletionRules", []), strategy.keys() & {"onSuccess", "onFailure"}
    if rules and shuts:
        yield "deletionStrategy.deletionRules and shutdownAfterJobFinishes exclude each other"
    if rules and old:
        yield "deletionStrategy has deletionRules beside onSuccess or onFailure: use the rules"
    if not rules and len(old) < 2:
        yield "deletionStrategy must have deletionRules, or both onSuccess and onFailure"
    seen: dict[str, dict[str, int]] = {}
    autoscales = (spec.get("rayClusterSpec") or {}).get("enableInTreeAutoscaling", False)
    for rule in rules:
        condition, policy = rule["condition"], rule["policy"]
        status = condition.get("jobStatus") or condition.get("jobDeploymentStatus")
        if policy == "DeleteWorkers" and autoscales:
            yield "deletionRules: DeleteWorkers is refused with autoscaling, which does it"
        if policy in seen.setdefault(status, {}):
            yield f"deletionRules: {policy} after {status} twice"
        seen[status][policy] = condition.get("ttlSeconds", 0)
    for status, times in seen.items():
        ordered = [times[policy] for policy in ORDER if policy in times]
        if ordered != sorted(ordered):
            order = ", ".join(ORDER)
            yield f"deletionRules after {status}: ttlSeconds must not fall in the order {order}"


def _kueue(kind: str, metadata: Plain, spec: Plain) -> Iterator[str]:
    cluster = spec if kind == "RayCluster" else spec.get("rayClusterSpec") or {}
    elastic = metadata.get("annotations", {}).get("kueue.x-k8s.io/elastic-job") == "true"
    if kind == "RayJob" and not spec.get("shutdownAfterJobFinishes"):
        yield "a queue needs shutdownAfterJobFinishes: its share would never come back"
    if kind == "RayJob" and spec.get("clusterSelector") and cluster:
        yield "a queue admits no clusterSelector beside rayClusterSpec"
    if cluster.get("enableInTreeAutoscaling") and not elastic:
        yield (
            "a queue forbids enableInTreeAutoscaling, but with the annotation "
            "kueue.x-k8s.io/elastic-job: 'true'"
        )
    names = [group["groupName"] for group in cluster.get("workerGroupSpecs", [])]
    if len(names) > MOST_GROUPS:
        yield f"a queue admits at most {MOST_GROUPS} worker groups, here are {len(names)}"
    if "head" in names:
        yield "a queue keeps the group name 'head' to the head"


def _budget(spec: Plain) -> Iterator[str]:
    if "maxUnavailable" in spec or not isinstance(spec.get("minAvailable"), int):
        yield "minAvailable must be a whole number, alone: a RayCluster has no scale subresource"


def _environment(group: Plain) -> dict[str, Any]:
    container = group["template"]["spec"]["containers"][0]
    return {item["name"]: item.get("value") for item in container.get("env", [])}
