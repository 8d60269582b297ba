"""Reading a description from a file; an error is one line that names the field and the rule."""

import difflib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bcl_ray.experiment.yaml_text import parse_mapping, read_text
from bcl_ray.machine.errors import UserError
from bcl_ray.ops.manifests.description import ClusterDescription


def read(path: Path) -> ClusterDescription:
    """A description from a YAML file.

    Raises:
        ValueError: The file cannot be read or is no YAML mapping, or a field is wrong. The message
            names the first wrong field, its value and the rule.
    """
    text = read_text(path, remedy="name a description with --description")
    content = parse_mapping(text, str(path))
    try:
        return ClusterDescription.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path}: {_first_error(error)}") from None


def _first_error(error: ValidationError) -> str:
    """Pydantic's first error in one line."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    name = ".".join(path)
    if first["type"] == "extra_forbidden":
        fields = _fields(path[:-1])
        close = difflib.get_close_matches(path[-1], fields, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(fields)}"
        return f"no field '{name}'; {hint}"
    if first["type"] == "missing":
        return f"field '{name}' is missing"
    message = first["msg"].removeprefix("Value error, ")
    value = "" if "@" in str(first["input"]) else f"={first['input']}"  # it may be a password
    if first["type"] != "value_error":
        return f"{name}{value}: {message[0].lower()}{message[1:]}"
    # A message of our own; one that compares fields begins with the name of a section.
    names_fields = message.startswith(tuple(ClusterDescription.model_fields))
    return message if names_fields else f"{name}{value} {message}"


def _fields(path: list[str]) -> list[str]:
    """The names of a section's fields."""
    section: Any = ClusterDescription
    for part in path:
        annotation = section.model_fields[part].annotation
        types = [annotation, *getattr(annotation, "__args__", ())]  # of `Section | None` too
        section = next(each for each in types if hasattr(each, "model_fields"))
    return list(section.model_fields)
