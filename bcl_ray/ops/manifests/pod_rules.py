"""What we ask of every pod that is rendered, whatever it belongs to."""

import re
from collections.abc import Iterator
from typing import Any

Plain = dict[str, Any]  # a Kubernetes object, or part of one
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN$|ACCESS_KEY", re.IGNORECASE)


def secrets(found: Plain) -> Iterator[str]:
    """Complaints of secrets in files."""
    if found["kind"] == "Secret":
        yield "a secret belongs in the cluster, not in a file"
    for container in containers(found):
        for variable in container.get("env", []):
            if SECRET.search(variable["name"]) and "value" in variable:
                yield f"{variable['name']} has its value in the file: take it from a secret"


def security(found: Plain) -> Iterator[str]:
    """Complaints of pods that may do, or take, more than they should."""
    for pod in pod_specs(found):
        security = pod.get("securityContext", {})
        if security.get("runAsNonRoot") is not True or not security.get("seccompProfile"):
            yield "every pod must set runAsNonRoot and a seccompProfile"
        for container in pod["containers"]:
            name, own = container["name"], container.get("securityContext", {})
            if own.get("allowPrivilegeEscalation") is not False:
                yield f"container {name} must set allowPrivilegeEscalation: false"
            if "ALL" not in own.get("capabilities", {}).get("drop", []):
                yield f"container {name} must drop ALL capabilities"
            if not container.get("resources", {}).get("limits"):
                yield f"container {name} must have resources.limits"
            hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {})
            if hook and int(hook["command"][-1]) >= pod.get("terminationGracePeriodSeconds", 30):
                yield f"container {name} has a preStop hook as long as its grace period"


def pod_specs(found: Any) -> Iterator[Plain]:
    """Every pod template in an object, at any depth."""
    if isinstance(found, list):
        for item in found:
            yield from pod_specs(item)
    elif isinstance(found, dict):
        if isinstance(found.get("containers"), list):
            yield found
        for item in found.values():
            yield from pod_specs(item)


def containers(found: Plain) -> Iterator[Plain]:
    """Every container in an object."""
    for pod in pod_specs(found):
        yield from pod["containers"]
