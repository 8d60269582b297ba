"""Text from the Jinja2 templates in the folder templates/, which lie as the files that they render.

A template reads the fields of the cluster's description by their names in `cluster.yaml`
(`{{ job.retries }}`), and the few values that its target's module computes. What may hold any text
goes through the filter `yaml` (or `tojson` in JSON, `shell` in a shell line), which quotes it.
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
