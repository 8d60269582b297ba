"""Paths and URIs as text. Nothing here accesses a file."""

from pathlib import Path


def absolute(uri: str) -> str:
    """A path made absolute; a URI is returned as it is."""
    return uri if "://" in uri else str(Path(uri).expanduser().absolute())


def for_display(uri: str) -> str:
    """A path relative to the working directory where it lies below it; others as they are."""
    here = str(Path.cwd())
    return uri.removeprefix(here + "/") if uri != here else "."


def is_local(uri: str) -> bool:
    """Whether a URI is a path on this machine."""
    return "://" not in uri or uri.startswith("file://")


def parent(uri: str) -> str:
    """The folder above a path or URI, with the URI's options."""
    _, question, options = uri.partition("?") if "://" in uri else (uri, "", "")
    return split(uri)[0] + question + options


def name(uri: str) -> str:
    """The last part of a path or URI, without the URI's options."""
    return split(uri)[1]


def split(uri: str) -> tuple[str, str]:
    """The folder above a path or URI and the last part, both without the URI's options."""
    path = uri.partition("?")[0] if "://" in uri else uri
    folder, _, last = path.rstrip("/").rpartition("/")
    return folder, last
