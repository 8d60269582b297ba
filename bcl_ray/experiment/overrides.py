"""Reading experiments from YAML, and changing them by overrides `section.field=value`.

The command line, jobs and searches all change an experiment by overrides. An error message is one
line, and uses the full names of options; for an unknown option it suggests the nearest one.
"""

import difflib
import math
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import ValidationError

from bcl_ray.experiment.options import VALUES_BEFORE_ADDED, Experiment
from bcl_ray.experiment.yaml_text import parse_mapping, read_text
from bcl_ray.machine.errors import UserError


def from_yaml(text: str, *, origin: str = "experiment") -> Experiment:
    """Read an experiment from YAML that a person wrote; options that it leaves out get defaults.

    Args:
        origin: Name of the text in error messages, such as its file.

    Raises:
        ValueError: The text is no mapping of sections, or an option is missing, unknown or invalid.
    """
    return _validated(_sections(text, origin), origin)


def from_stored(text: str, *, origin: str = "experiment") -> Experiment:
    """Read an experiment that `Experiment.to_yaml` wrote, in this version or an older one.

    All options of its time are in it. So an option that is missing did not exist, and gets its
    value from VALUES_BEFORE_ADDED, not today's default, so that a run goes on as it began.

    Arguments and errors are those of `from_yaml`.
    """
    content = _sections(text, origin)
    for (section, option), value in VALUES_BEFORE_ADDED.items():
        if isinstance(content.get(section), dict):
            content[section].setdefault(option, value)
    return _validated(content, origin)


def _sections(text: str, origin: str) -> dict[str, Any]:
    return parse_mapping(text, origin, of=" of sections")


def from_file(file: str | Path) -> Experiment:
    """Read an experiment from the path or URI of a YAML file.

    Raises:
        ValueError: The file cannot be read, or its content is invalid: see `from_yaml`.
    """
    return from_yaml(read_text(file), origin=str(file))


def with_overrides(experiment: Experiment, overrides: Iterable[str]) -> Experiment:
    """The experiment after overrides `section.field=value`, applied in order.

    The value of an option that is a text is taken as it is typed, unless it is quoted; `null`
    stands for none. Other values are YAML of one line.

    Raises:
        ValueError: An override that cannot be parsed, an unknown option (the message suggests the
            nearest name), or a value out of range.
    """
    content = experiment.model_dump(mode="json")
    try:
        for override in overrides:
            _override(content, override)
        return _validated(content, "experiment")
    except UserError as error:  # what was typed may have several lines
        raise UserError(" ".join(str(error).splitlines())) from None


def _override(content: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"override '{override}' must have the form section.field=value")
    path = name.strip().split(".")
    read = _text if _is_text(_type_of(path)) else _yaml_value
    _assign(content, path, read(override, text), name.strip())


class _Plain(yaml.SafeLoader):
    """YAML whose scalars are texts, null or decimal integers; the option's type reads the texts.

    By itself, YAML reads 010 as 8, 1:30 as 90, 1e-3 as a text, and 2026-01-01 as a date.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (of PyYAML's class)


_Plain.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("null|~|$"), ["n", "~", ""])
_Plain.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile("(0|-?[1-9][0-9]*)$"), list("-0123456789")
)


def _yaml_value(override: str, text: str) -> Any:
    try:
        loader = _Plain(text)
        node = loader.get_single_node()
        value = loader.construct_document(node) if node is not None else None
    except yaml.YAMLError:
        raise UserError(f"{override}: the value is not YAML; quote it") from None
    rest = text[node.end_mark.index :].strip() if node is not None else text.strip()
    if rest:  # a comment in a file, and a mistake here
        raise UserError(
            f"{override}: the value must not go on with '{rest}'; quote it, or remove it"
        )
    return value


def _text(override: str, text: str) -> str | None:
    if text in ("", "null"):
        return None
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return str(_yaml_value(override, text))
    if text != text.strip():
        name = override.partition("=")[0].strip()
        quoted = yaml.safe_dump(text, default_style='"', width=math.inf).strip()
        raise UserError(
            f"{name}: the value {text!r} begins or ends with white space: remove it, or write "
            + shlex.quote(f"{name}={quoted}")
        )
    return text


def _type_of(path: Sequence[str]) -> Any:
    """The type of an option; None if there is no such option."""
    annotation: Any = Experiment
    for part in path:
        fields = getattr(annotation, "model_fields", {})
        annotation = fields[part].annotation if part in fields else None
    return annotation


def _is_text(annotation: Any) -> bool:
    """Whether an option holds one text, or none."""
    if annotation is str:
        return True
    return get_origin(annotation) is not tuple and any(map(_is_text, get_args(annotation)))


def _assign(content: dict[str, Any], path: Sequence[str], value: Any, full_name: str) -> None:
    section: Any = content
    for depth, key in enumerate(path):
        if not isinstance(section, dict) or key not in section:
            fields = list(section) if isinstance(section, dict) else []
            raise UserError(_unknown_option(full_name, ".".join(path[:depth]), key, fields))
        if depth == len(path) - 1:
            if isinstance(section[key], dict):
                raise UserError(f"'{full_name}' is a section; set {full_name}.<field>=value")
            section[key] = value
        section = section[key]


def _unknown_option(full_name: str, section: str, key: str, fields: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, fields, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(fields) or 'none'}"
    parent = f"section '{section}'" if section else "an experiment"
    return f"no option '{full_name}': {parent} has no field '{key}'; {hint}"


def _validated(content: dict[str, Any], origin: str) -> Experiment:
    try:
        return Experiment.model_validate(content)
    except ValidationError as error:
        raise UserError(_one_line(error, origin)) from None


def _one_line(error: ValidationError, origin: str) -> str:
    """Pydantic's first error as one line with the option's full name."""
    first = error.errors()[0]
    # For a union, pydantic adds the failing type to the path, such as "constrained-int".
    path = [str(part) for part in first["loc"] if re.fullmatch(r"\w+", str(part))]
    name = ".".join(path)
    if first["type"] == "extra_forbidden":
        section: Any = Experiment
        for part in path[:-1]:
            section = section.model_fields[part].annotation
        fields = list(section.model_fields)
        return f"{origin}: {_unknown_option(name, '.'.join(path[:-1]), path[-1], fields)}"
    if first["type"] == "missing" and path[-1].isdigit():
        return f"{'.'.join(path[:-1])} has too few values: there is none at position {path[-1]}"
    if first["type"] == "missing":
        return f"{origin}: option '{name}' is missing; `bcl-ray recipes show` prints complete ones"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        names_option = "." in message.split(" ")[0]
        return message if names_option or not name else f"{name}: {message}"
    value = first["input"]
    needs_quotes = first["type"] == "string_type" and value is not None
    hint = "; put it in quotes" if needs_quotes else ""
    return f"{name}={value}: {message[0].lower()}{message[1:]}{hint}"
