"""Rules of KubeRay and Kueue that their schemas do not express, on the fields that templates have.

They restate KubeRay v1.7 (ray-operator/controllers/ray/utils/validation.go) and Kueue 0.18
(pkg/controller/jobs/raycluster/common.go, rayjob_webhook.go). Each rule is a generator of the
violations that it finds. A template with a new field needs that field's rules here.
"""

import re
from collections.abc import Iterator

from tests.cluster.pod_rules import Fields, secret_violations, security_violations

DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")  # RFC 1035
LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?")
MAX_NAME_LENGTHS = {"RayCluster": 53, "RayJob": 47}
MAX_GROUPS = 17  # Kueue admits 18 pod sets, one of them the head's
SUBMISSION_MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
# Entry points that can be repeated.
REPEATABLE = re.compile(r" --restartable\b| --resume\b|\bbcl-ray (shard|evaluate) ")


def violations(manifest: Fields) -> list[str]:
    """The rules that one object breaks, each with the object's kind and name."""
    kind, metadata, spec = manifest["kind"], manifest["metadata"], manifest.get("spec", {})
    rules: list[Iterator[str]] = [secret_violations(manifest), security_violations(manifest)]
    if kind in MAX_NAME_LENGTHS:
        rules.append(_name(kind, metadata["name"]))
    if kind == "RayCluster":
        rules.append(_cluster(spec))
    if kind == "RayJob":
        rules += [_job(spec), _cluster(spec["rayClusterSpec"])]
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


def _cluster(spec: Fields) -> Iterator[str]:
    yield from _authentication(spec)
    head = spec["headGroupSpec"]
    for name, group in _groups(spec):
        yield from _group(name, group)
    names = [group["groupName"] for group in spec.get("workerGroupSpecs", [])]
    if len(set(names)) < len(names):
        yield f"workerGroupSpecs have the same groupName twice ({', '.join(names)})"
    if head["rayStartParams"].get("num-cpus") != "0":
        yield "headGroupSpec.rayStartParams.num-cpus must be '0': the head runs no tasks"
    yield from _autoscaling(spec)


def _authentication(spec: Fields) -> Iterator[str]:
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


def _group(name: str, group: Fields) -> Iterator[str]:
    for key, value in group.get("labels", {}).items():
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
    if not spec.get("enableInTreeAutoscaling", False):
        return
    for name, group in _groups(spec):
        policy = group["template"]["spec"].get("restartPolicy", "Never")
        if spec.get("autoscalerOptions", {}).get("version", "v2") == "v2" and policy != "Never":
            yield f"group {name} has restartPolicy {policy}: autoscaler v2 needs Never"


def _job(spec: Fields) -> Iterator[str]:
    mode, retries = spec.get("submissionMode", "K8sJobMode"), spec.get("backoffLimit", 0)
    if retries < 0:
        yield f"backoffLimit ({retries}) must be at least 0"
    if mode not in SUBMISSION_MODES:  # the schema allows any text
        yield f"submissionMode '{mode}' is not one of {', '.join(SUBMISSION_MODES)}"
    if mode == "InteractiveMode" and retries:
        yield "backoffLimit must be 0 in InteractiveMode"
    if mode == "SidecarMode" and "submitterPodTemplate" in spec:
        yield "SidecarMode has no submitterPodTemplate"
    for name in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(name, 1) <= 0:
            yield f"{name} ({spec[name]}) must be positive"
    if retries > 0 and not REPEATABLE.search(spec.get("entrypoint", "")):
        yield "backoffLimit repeats the entrypoint, which needs --restartable to continue a run"
    if spec.get("ttlSecondsAfterFinished", 0) > 0 and not spec.get("shutdownAfterJobFinishes"):
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"


def _kueue(kind: str, metadata: Fields, spec: Fields) -> Iterator[str]:
    cluster = spec if kind == "RayCluster" else spec.get("rayClusterSpec") or {}
    elastic = metadata.get("annotations", {}).get("kueue.x-k8s.io/elastic-job") == "true"
    if kind == "RayJob" and not spec.get("shutdownAfterJobFinishes"):
        yield "a queue needs shutdownAfterJobFinishes: otherwise the job keeps its quota for ever"
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
