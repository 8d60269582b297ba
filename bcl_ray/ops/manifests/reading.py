"""A description from a file; what is wrong with it is said in one line."""

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from bcl_ray.machine.errors import UserError
from bcl_ray.ops.manifests.description import ClusterDescription


def read(path: Path) -> ClusterDescription:
    """A description from a YAML file.

    Raises:
        ValueError: the file cannot be read or is no YAML, or naming the first wrong field, its
            value and the rule.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: {str(error.strerror).lower()}; name a description with --description"
        ) from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must be a YAML mapping, got {type(content).__name__}")
    try:
        return ClusterDescription.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path}: {_first(error)}") from None


def _first(error: ValidationError) -> str:
    """Pydantic's first complaint in one line."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    name = ".".join(path)
    if first["type"] == "extra_forbidden":
        known = _fields(path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
        return f"no field '{name}'; {hint}"
    if first["type"] == "missing":
        return f"field '{name}' is missing"
    message = first["msg"].removeprefix("Value error, ")
    shown = "" if "@" in str(first["input"]) else f"={first['input']}"  # it may hold a password
    if first["type"] == "value_error":  # ours; those that compare fields name them
        compares = message.startswith(tuple(ClusterDescription.model_fields))
        return message if compares else f"{name}{shown} {message}"
    return f"{name}{shown}: {message[0].lower()}{message[1:]}"


def _fields(path: list[str]) -> list[str]:
    section: Any = ClusterDescription
    for part in path:
        annotation = section.model_fields[part].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        section = next(option for option in options if hasattr(option, "model_fields"))
    return list(section.model_fields)
