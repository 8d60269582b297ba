"""Rules for every rendered pod: no secrets in files, restricted rights, limited resources."""

import re
from collections.abc import Iterator
from typing import Any

Fields = dict[str, Any]  # a Kubernetes object, or part of one
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN$|ACCESS_KEY", re.IGNORECASE)


def secret_violations(manifest: Fields) -> Iterator[str]:
    """Secrets that the file itself contains."""
    if manifest["kind"] == "Secret":
        yield "a secret belongs in the cluster, not in a file"
    for pod in pod_specs(manifest):
        for container in pod["containers"]:
            for variable in container.get("env", []):
                if SECRET.search(variable["name"]) and "value" in variable:
                    yield f"{variable['name']} has its value in the file: take it from a secret"


def security_violations(manifest: Fields) -> Iterator[str]:
    """Pods with more rights than they need, without limits, or with a preStop hook too long."""
    for pod in pod_specs(manifest):
        security = pod.get("securityContext", {})
        if security.get("runAsNonRoot") is not True or not security.get("seccompProfile"):
            yield "every pod must set runAsNonRoot and a seccompProfile"
        grace_seconds = pod.get("terminationGracePeriodSeconds", 30)
        for container in pod["containers"]:
            yield from _container_violations(container, grace_seconds)


def _container_violations(container: Fields, grace_seconds: int) -> Iterator[str]:
    name, security = container["name"], container.get("securityContext", {})
    if security.get("allowPrivilegeEscalation") is not False:
        yield f"container {name} must set allowPrivilegeEscalation: false"
    if "ALL" not in security.get("capabilities", {}).get("drop", []):
        yield f"container {name} must drop ALL capabilities"
    if not container.get("resources", {}).get("limits"):
        yield f"container {name} must have resources.limits"
    hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {})
    if hook and int(hook["command"][-1]) >= grace_seconds:  # our hooks end in their seconds
        yield f"container {name} has a preStop hook as long as its grace period"


def pod_specs(node: Any) -> Iterator[Fields]:
    """The specification of every pod in an object, at any depth."""
    if isinstance(node, list):
        for item in node:
            yield from pod_specs(item)
    elif isinstance(node, dict):
        if isinstance(node.get("containers"), list):
            yield node
        for item in node.values():
            yield from pod_specs(item)
