"""Text from the Jinja2 templates in the folder templates/, whose paths are those of the files.

A template has the fields of the cluster's description by their names in `cluster.yaml`, such as
`{{ job.retries }}`, and a few values that the module of its target computes. A value that may be
any text goes through a filter that quotes it: `yaml`, `tojson` in JSON, or `shell` in a shell line.
"""

import shlex
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import yaml

FOLDER = Path(__file__).parent / "templates"


def render_template(template: str, /, **values: object) -> str:
    """The text of a template.

    Args:
        template: Path below templates/, without the ending `.j2`.
        **values: Values by the names that the template uses.

    Raises:
        jinja2.UndefinedError: The template uses a name that has no value.
    """
    return _environment().get_template(f"{template}.j2").render(values)


def to_yaml(value: Any) -> str:
    """A value as YAML in one line, quoted where YAML needs it, also within [...] and {...}."""
    if isinstance(value, jinja2.Undefined):
        str(value)  # raises the error that names the value
    text = yaml.dump([value], Dumper=_OneLine, default_flow_style=True, width=sys.maxsize)
    return text[1:-2]  # without the list's brackets, within which PyYAML quotes commas too


class _OneLine(yaml.SafeDumper):
    """Escapes line breaks."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_OneLine.add_representer(str, _represent_text)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701  (no HTML)
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"yaml": to_yaml, "shell": shlex.quote}
    return environment
