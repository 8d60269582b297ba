"""KubeRay's schemas as JSON Schema; Kubernetes' own, as kubernetes-validate brings them."""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

RAY_KINDS = {"RayCluster": "ray.io_rayclusters.yaml", "RayJob": "ray.io_rayjobs.yaml"}
KUBERNETES = "1.33"
WITHOUT_SCHEMA = ("kustomize.config.k8s.io", "kueue.x-k8s.io", "monitoring.coreos.com")


def schema_folder() -> Path:
    """BCL_RAY_TEST_SCHEMAS, or ../shared/schemas/kuberay beside the project."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "schemas" / "kuberay"
    folder = Path(os.environ.get("BCL_RAY_TEST_SCHEMAS", beside))
    if not folder.is_dir():
        pytest.skip(f"NOT VALIDATED: set BCL_RAY_TEST_SCHEMAS, KubeRay's schemas are not {folder}")
    return folder


@cache
def _validator(folder: Path, kind: str) -> jsonschema.Draft202012Validator:
    definition = yaml.load((folder / RAY_KINDS[kind]).read_text(), Loader=yaml.CSafeLoader)
    version = next(each for each in definition["spec"]["versions"] if each["name"] == "v1")
    schema = _json_schema(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own
    return jsonschema.Draft202012Validator(schema)


def _json_schema(node: Any) -> Any:
    """A structural schema of Kubernetes as JSON Schema in which unknown fields are errors."""
    if isinstance(node, list):
        return [_json_schema(item) for item in node]
    if not isinstance(node, dict):
        return node
    found = {
        key: {name: _json_schema(field) for name, field in value.items()}
        if key == "properties"
        else _json_schema(value)
        for key, value in node.items()
    }
    if found.get("x-kubernetes-int-or-string") is True:
        found.pop("type", None)
        found["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if found.get("nullable") is True and isinstance(found.get("type"), str):
        found["type"] = [found["type"], "null"]
    if isinstance(found.get("properties"), dict) and not found.get(
        "x-kubernetes-preserve-unknown-fields"
    ):
        found.setdefault("additionalProperties", False)
    return found


def errors(found: dict[str, Any]) -> list[str]:
    """What the API server would say of an object's structure; nothing of kinds not known here."""
    return _errors(json.dumps(found))


@cache
def _errors(text: str) -> list[str]:
    found = json.loads(text)
    kind = found["kind"]
    if kind in RAY_KINDS:
        validator = _validator(schema_folder(), kind)
        return [
            f"{'.'.join(map(str, error.absolute_path))}: {error.message}"
            for error in validator.iter_errors(found)
        ]
    if found["apiVersion"].partition("/")[0] in WITHOUT_SCHEMA:
        return []
    try:
        kubernetes_validate.validate(found, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message}"]
    return []
