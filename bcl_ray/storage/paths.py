"""Paths and URIs as text: nothing here looks at a file."""

from pathlib import Path


def absolute(uri: str) -> str:
    """A URI as it is, a path from the root."""
    return uri if "://" in uri else str(Path(uri).expanduser().absolute())


def for_display(uri: str) -> str:
    """A path as seen from the working directory, where it lies below it."""
    here = str(Path.cwd())
    return uri.removeprefix(here + "/") if uri != here else "."


def is_local(uri: str) -> bool:
    """Whether a URI is a path on this machine."""
    return "://" not in uri or uri.startswith("file://")


def parent(uri: str) -> str:
    """The folder above a folder, with the URI's options."""
    _, question, options = uri.partition("?") if "://" in uri else (uri, "", "")
    return split(uri)[0] + question + options


def split(uri: str) -> tuple[str, str]:
    """The folder above a folder, and its own name; a URI's options belong to neither."""
    path = uri.partition("?")[0] if "://" in uri else uri
    above, _, name = path.rstrip("/").rpartition("/")
    return above, name
