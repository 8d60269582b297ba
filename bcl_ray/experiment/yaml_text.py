"""Reading YAML that a person wrote; an error is one line that names the file and the remedy."""

from pathlib import Path
from typing import Any

import yaml

from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files


def read_text(file: str | Path, *, option: str = "", remedy: str = "name a YAML file") -> str:
    """The text of a file that a person named.

    Args:
        file: Path or URI of the file.
        option: The option that names it, for error messages.
        remedy: What to do if it cannot be read, for error messages.

    Raises:
        UserError: A local file cannot be read, or the file is not UTF-8.
        OSError: A file in an object store cannot be read.
    """
    name = f"{option} {file}".strip()
    is_uri = "://" in str(file)
    try:
        if is_uri:
            return files.read_bytes(str(file)).decode()
        return Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{name} is not UTF-8 text: {remedy}") from None
    except OSError as error:
        if is_uri:  # its text says what to do
            raise
        raise UserError(f"{name}: {str(error.strerror).lower()}; {remedy}") from None


def parse(text: str, origin: str) -> Any:
    """The content of a YAML text.

    Args:
        text: The text.
        origin: Name of the text in error messages, such as its file.

    Raises:
        UserError: The text is not YAML.
    """
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{origin} is not valid YAML: {' '.join(str(error).split())}") from None


def parse_mapping(text: str, origin: str, *, of: str = "") -> dict[str, Any]:
    """The content of a YAML text that must be a mapping; arguments and errors as of `parse`.

    Args:
        of: What it maps, for error messages, such as " of sections".
    """
    content = parse(text, origin)
    if not isinstance(content, dict):
        raise UserError(f"{origin} must be a YAML mapping{of}, got {type(content).__name__}")
    return content
