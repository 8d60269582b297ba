"""Parts of the documentation that are generated from the code when the site is built.

A page asks for one with a comment on a line of its own, such as `<!-- generated: options -->`.
MkDocs calls `on_page_markdown`; the other functions return Markdown and can be tested alone.
"""

import inspect
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from bcl_ray.experiment import recipes
from bcl_ray.experiment.choices import BACKBONES, LOSSES, SOURCES
from bcl_ray.experiment.options import Experiment

MARKER = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace markers by what they ask for; an unknown name is an error."""
    return MARKER.sub(lambda found: PARTS[found[1]](), markdown)


def options() -> str:
    """A table of options for each section of the experiment."""
    lines = []
    for name, field in Experiment.model_fields.items():
        section = _section(field)
        if section is None:
            continue
        lines += [f"## {name}", "", _sentence(section), "", *_table(name, section), ""]
        for inner, inner_field in section.model_fields.items():
            if (nested := _section(inner_field)) is not None and inner != "contrastive":
                lines += [
                    f"### {name}.{inner} and {name}.contrastive",
                    "",
                    f"{_sentence(nested)} Both sections have the same options.",
                    "",
                    *_table(f"{name}.{inner}", nested),
                    "",
                ]
    plain = {n: f for n, f in Experiment.model_fields.items() if _section(f) is None}
    lines += ["## The experiment itself", "", *_header()]
    lines += [_row(name, field) for name, field in plain.items()]
    return "\n".join(lines)


def fields() -> Iterator[str]:
    """The full name of every option: section.field."""
    yield from _fields("", Experiment)


def recipe_pages() -> str:
    """Every recipe: what it says of itself, and its options that differ from the defaults."""
    lines = []
    for name, make in recipes.RECIPES.items():
        head, _, rest = inspect.cleandoc(make.__doc__ or "").partition("\n")
        lines += [f"## {name}", "", head, "", rest.strip(), ""]
        lines += ["| option | value |", "|---|---|"]
        lines += [f"| `{option}` | `{value}` |" for option, value in _set_by(make())]
        lines += [""]
    return "\n".join(lines)


def recipe_sources() -> str:
    """Where the recipes' numbers come from: the module's own docstring."""
    text = inspect.cleandoc(recipes.__doc__ or "").partition("Sources:")[2]
    text = re.sub(r"(?<=\w-)\n", "", text)  # a name that is broken at its hyphen
    return re.sub(r"^\[(\w+)\]", r"- **[\1]**", text.strip(), flags=re.MULTILINE)


def choices() -> str:
    """The names that losses, backbones and sources are chosen by."""
    lines = ["| option | name | what it is |", "|---|---|---|"]
    for table in (LOSSES, BACKBONES, SOURCES):
        option = "`bcl-ray shard`" if table is SOURCES else f"`{table.option}`"
        lines += [f"| {option} | `{entry.name}` | {entry.text} |" for entry in table]
    return "\n".join(lines)


def evidence() -> str:
    """RESULTS.md without its title; links from the folder above are links from docs/."""
    text = (Path(__file__).parents[1] / "RESULTS.md").read_text()
    return text.partition("\n")[2].replace("](docs/", "](")


PARTS = {
    "choices": choices,
    "evidence": evidence,
    "options": options,
    "recipes": recipe_pages,
    "sources": recipe_sources,
}


def _section(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _fields(prefix: str, section: type[BaseModel]) -> Iterator[str]:
    for name, field in section.model_fields.items():
        nested = _section(field)
        if nested is None:
            yield f"{prefix}{name}"
        else:
            yield from _fields(f"{prefix}{name}.", nested)


def _sentence(section: type[BaseModel]) -> str:
    return " ".join(inspect.cleandoc(section.__doc__ or "").split())


def _header() -> list[str]:
    return ["| option | type | default | meaning |", "|---|---|---|---|"]


def _table(prefix: str, section: type[BaseModel]) -> list[str]:
    rows = [
        _row(f"{prefix}.{name}", field)
        for name, field in section.model_fields.items()
        if _section(field) is None
    ]
    return [*_header(), *rows]


def _row(name: str, field: FieldInfo) -> str:
    limits = [
        f"{words} {getattr(rule, key):g}"
        for rule in field.metadata
        for key, words in LIMITS.items()
        if isinstance(getattr(rule, key, None), int | float)
    ]
    kind = _cell(", ".join([_kind(field.annotation), *limits]))
    default = field.get_default(call_default_factory=True)
    shown = "*required*" if default is PydanticUndefined else f"`{_value(default)}`"
    return f"| `{name}` | {kind} | {_cell(shown)} | {_cell(field.description or '')} |"


def _kind(annotation: Any) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _kind(inner[0])
    if origin is typing.Literal:
        return " or ".join(f"`{name}`" for name in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_kind(one) for one in inner)
    if origin is tuple:
        if len(inner) == 2 and inner[1] is Ellipsis:
            return f"list of {_kind(inner[0])}"
        return f"[{', '.join(_kind(one) for one in inner)}]"
    return "null" if annotation is type(None) else str(annotation.__name__)


def _value(value: Any) -> str:
    """A value as YAML on the command line has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{', '.join(_value(one) for one in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _set_by(experiment: Experiment) -> Iterator[tuple[str, str]]:
    """Options of a recipe that differ from the defaults, by full name."""

    def walk(prefix: str, section: BaseModel) -> Iterator[tuple[str, str]]:
        for name, field in type(section).model_fields.items():
            value = getattr(section, name)
            if isinstance(value, BaseModel):
                yield from walk(f"{prefix}{name}.", value)
            elif value != field.get_default(call_default_factory=True):
                yield f"{prefix}{name}", _value(value)

    return walk("", experiment)
