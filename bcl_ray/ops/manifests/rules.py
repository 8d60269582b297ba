"""Rules of KubeRay and Kueue that their schemas do not express.

They restate KubeRay v1.7 (ray-operator/controllers/ray/utils/validation.go) and Kueue 0.18
(pkg/controller/jobs/raycluster/common.go, rayjob_webhook.go), so that a file that the cluster would
refuse is not written. Each rule is a generator of the violations that it finds.
"""

import re
from collections.abc import Iterable, Iterator

import yaml

from bcl_ray.machine.errors import UserError
from bcl_ray.ops.manifests.pod_rules import Fields, secret_violations, security_violations

DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")  # RFC 1035
LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?")
MAX_NAME_LENGTHS = {"RayCluster": 53, "RayJob": 47}
MAX_GROUPS = 17  # Kueue admits 18 pod sets, one of them the head's
SUBMISSION_MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
DELETION_ORDER = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")
# Entry points that can be repeated.
REPEATABLE = re.compile(r" --restartable\b| --resume\b|\bbcl-ray (shard|evaluate) ")
V2_VARIABLE = "RAY_enable_autoscaler_v2"


def check(manifests: Iterable[Fields]) -> None:
    """Refuse objects that the cluster would refuse, or that would leave it open.

    Raises:
        ValueError: An object breaks rules; the message has a line for each violation, with the
            object's kind and name.
    """
    broken = [violation for manifest in manifests for violation in violations(manifest)]
    if broken:
        raise UserError("the rendered files break rules:\n  " + "\n  ".join(broken))


def violations(manifest: Fields) -> list[str]:
    """The rules that one object breaks, each with the object's kind and name."""
    kind, metadata, spec = manifest["kind"], manifest["metadata"], manifest.get("spec", {})
    rules: list[Iterator[str]] = [secret_violations(manifest), security_violations(manifest)]
    if kind in MAX_NAME_LENGTHS:
        rules.append(_name(kind, metadata["name"]))
    if kind == "RayCluster":
        rules.append(_cluster(spec, metadata, job=False))
    if kind == "RayJob":
        rules += [_job(spec), _deletion(spec)]
        if spec.get("rayClusterSpec"):
            rules.append(_cluster(spec["rayClusterSpec"], metadata, job=True))
    if kind in MAX_NAME_LENGTHS and "kueue.x-k8s.io/queue-name" in metadata.get("labels", {}):
        rules.append(_kueue(kind, metadata, spec))
    if kind == "PodDisruptionBudget":
        rules.append(_budget(spec))
    return [f"{kind} {metadata['name']}: {text}" for rule in rules for text in rule]


def _name(kind: str, name: str) -> Iterator[str]:
    if len(name) > MAX_NAME_LENGTHS[kind]:
        yield f"a name has at most {MAX_NAME_LENGTHS[kind]} characters, this one has {len(name)}"
    if not DNS_LABEL.fullmatch(name):
        yield "a name has only lower-case letters, digits and hyphens, and begins with a letter"


def _cluster(spec: Fields, metadata: Fields, *, job: bool) -> Iterator[str]:
    yield from _authentication(spec, job=job)
    head = spec["headGroupSpec"]
    for name, group in _groups(spec):
        yield from _group(name, group)
    names = [group["groupName"] for group in spec.get("workerGroupSpecs", [])]
    if len(set(names)) < len(names):
        yield f"workerGroupSpecs have the same groupName twice ({', '.join(names)})"
    if head["rayStartParams"].get("num-cpus") != "0":
        yield "headGroupSpec.rayStartParams.num-cpus must be '0': the head runs no tasks"
    yield from _autoscaling(spec)
    yield from _redis(spec, metadata.get("annotations", {}))


def _authentication(spec: Fields, *, job: bool) -> Iterator[str]:
    options, version = spec.get("authOptions", {}), str(spec.get("rayVersion", ""))
    if options.get("mode") != "token":
        yield "authOptions.mode must be 'token': without it anybody may run code"
    parts = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)\S*", version)
    if not version:
        yield "rayVersion must be set: authOptions.mode 'token' needs it"
    elif not parts:
        yield f"rayVersion '{version}' is not a version"
    elif tuple(map(int, parts.groups())) < (2, 52, 0):
        yield f"rayVersion ({version}) must be at least 2.52.0 for authOptions.mode 'token'"
    if options.get("enableK8sTokenAuth") and job:
        yield "authOptions.enableK8sTokenAuth is refused in a RayJob: use a token"


def _group(name: str, group: Fields) -> Iterator[str]:
    parameters, labels = group.get("rayStartParams", {}), group.get("labels", {})
    resources = {"num-cpus", "num-gpus", "memory", "resources"}
    if group.get("resources") and parameters.keys() & resources:
        yield f"group {name} has resources in rayStartParams and in resources: use one of them"
    if "labels" in parameters:
        yield f"group {name} must not have rayStartParams.labels: use the group's labels"
    for key, value in labels.items():
        if not LABEL_KEY.fullmatch(key) or not LABEL_VALUE.fullmatch(value):
            yield f"group {name} has the label {key}={value}, which is not a Kubernetes label"
        elif key.startswith("ray.io/"):
            yield f"group {name} has the label {key}: names under ray.io/ are Ray's own"
    low, high = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
    if low > high:
        yield f"group {name} has minReplicas ({low}) above maxReplicas ({high})"
    elif not low <= group.get("replicas", low) <= high:
        yield f"group {name} has replicas ({group['replicas']}) outside {low} to {high}"


def _autoscaling(spec: Fields) -> Iterator[str]:
    options, variable = spec.get("autoscalerOptions", {}), _environment(spec).get(V2_VARIABLE)
    if not spec.get("enableInTreeAutoscaling", False):
        if variable in ("1", "true"):
            yield f"{V2_VARIABLE} is set, but enableInTreeAutoscaling is false"
        return
    if variable and "version" in options:
        yield f"{V2_VARIABLE} and autoscalerOptions.version are both set: use the latter"
    for name, group in _groups(spec):
        policy = group["template"]["spec"].get("restartPolicy", "Never")
        if options.get("version", "v2") == "v2" and policy != "Never":
            yield f"group {name} has restartPolicy {policy}: autoscaler v2 needs Never"
        if group.get("suspend"):
            yield f"group {name} must not be suspended while autoscaling is on"


def _redis(spec: Fields, annotations: Fields) -> Iterator[str]:
    options, variables = spec.get("gcsFaultToleranceOptions"), _environment(spec)
    parameters = spec["headGroupSpec"]["rayStartParams"]
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


def _job(spec: Fields) -> Iterator[str]:
    mode, retries = spec.get("submissionMode", "K8sJobMode"), spec.get("backoffLimit", 0)
    if not spec.get("rayClusterSpec") and not spec.get("clusterSelector"):
        yield "one of rayClusterSpec and clusterSelector must be set"
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        yield "suspend needs shutdownAfterJobFinishes"
    if retries < 0:
        yield f"backoffLimit ({retries}) must be at least 0"
    if mode not in SUBMISSION_MODES:  # the schema allows any text
        yield f"submissionMode '{mode}' is not one of {', '.join(SUBMISSION_MODES)}"
    if mode == "InteractiveMode" and retries:
        yield "backoffLimit must be 0 in InteractiveMode"
    if mode == "SidecarMode" and spec.keys() & {"submitterPodTemplate", "submitterConfig"}:
        yield "SidecarMode has no submitterPodTemplate and no submitterConfig"
    for name in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(name, 1) <= 0:
            yield f"{name} ({spec[name]}) must be positive"
    try:
        runtime_env = yaml.safe_load(spec.get("runtimeEnvYAML", "{}"))
    except yaml.YAMLError:
        runtime_env = None
    if not isinstance(runtime_env, dict):
        yield "runtimeEnvYAML must be a YAML mapping"
    if retries > 0 and not REPEATABLE.search(spec.get("entrypoint", "")):
        yield "backoffLimit repeats the entrypoint, which needs --restartable to continue a run"


def _deletion(spec: Fields) -> Iterator[str]:
    strategy, shuts_down = spec.get("deletionStrategy"), spec.get("shutdownAfterJobFinishes", False)
    if not shuts_down and spec.get("ttlSecondsAfterFinished", 0) > 0:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if strategy is None:
        return
    rules, legacy = strategy.get("deletionRules", []), strategy.keys() & {"onSuccess", "onFailure"}
    if rules and shuts_down:
        yield "deletionStrategy.deletionRules and shutdownAfterJobFinishes exclude each other"
    if rules and legacy:
        yield "deletionStrategy has deletionRules beside onSuccess or onFailure: use the rules"
    if not rules and len(legacy) < 2:
        yield "deletionStrategy must have deletionRules, or both onSuccess and onFailure"
    cluster = spec.get("rayClusterSpec") or {}
    yield from _deletion_rules(rules, autoscales=cluster.get("enableInTreeAutoscaling", False))


def _deletion_rules(rules: list[Fields], *, autoscales: bool) -> Iterator[str]:
    seconds: dict[str, dict[str, int]] = {}  # by the job's status, by policy
    for rule in rules:
        condition, policy = rule["condition"], rule["policy"]
        status = condition.get("jobStatus") or condition.get("jobDeploymentStatus")
        if policy == "DeleteWorkers" and autoscales:
            yield "deletionRules: DeleteWorkers is refused with autoscaling, which deletes them"
        if policy in seconds.setdefault(status, {}):
            yield f"deletionRules: {policy} after {status} twice"
        seconds[status][policy] = condition.get("ttlSeconds", 0)
    for status, by_policy in seconds.items():
        ordered = [by_policy[policy] for policy in DELETION_ORDER if policy in by_policy]
        if ordered != sorted(ordered):
            order = ", ".join(DELETION_ORDER)
            yield f"deletionRules after {status}: ttlSeconds must not fall in the order {order}"


def _kueue(kind: str, metadata: Fields, spec: Fields) -> Iterator[str]:
    cluster = spec if kind == "RayCluster" else spec.get("rayClusterSpec") or {}
    elastic = metadata.get("annotations", {}).get("kueue.x-k8s.io/elastic-job") == "true"
    if kind == "RayJob" and not spec.get("shutdownAfterJobFinishes"):
        yield "a queue needs shutdownAfterJobFinishes: otherwise the job keeps its quota for ever"
    if kind == "RayJob" and spec.get("clusterSelector") and cluster:
        yield "a queue admits no clusterSelector beside rayClusterSpec"
    if cluster.get("enableInTreeAutoscaling") and not elastic:
        yield (
            "a queue forbids enableInTreeAutoscaling without the annotation "
            "kueue.x-k8s.io/elastic-job: 'true'"
        )
    names = [group["groupName"] for group in cluster.get("workerGroupSpecs", [])]
    if len(names) > MAX_GROUPS:
        yield f"a queue admits at most {MAX_GROUPS} worker groups, not {len(names)}"
    if "head" in names:
        yield "a queue reserves the group name 'head' for the head"


def _budget(spec: Fields) -> Iterator[str]:
    if "maxUnavailable" in spec or not isinstance(spec.get("minAvailable"), int):
        yield (
            "minAvailable must be a whole number, without maxUnavailable: a RayCluster has no "
            "scale subresource"
        )


def _groups(spec: Fields) -> list[tuple[str, Fields]]:
    """The head's group and all worker groups, each with its name."""
    workers = spec.get("workerGroupSpecs", [])
    return [("head", spec["headGroupSpec"]), *((group["groupName"], group) for group in workers)]


def _environment(spec: Fields) -> Fields:
    """The environment variables of the head; None for those from secrets."""
    container = spec["headGroupSpec"]["template"]["spec"]["containers"][0]
    return {item["name"]: item.get("value") for item in container.get("env", [])}
