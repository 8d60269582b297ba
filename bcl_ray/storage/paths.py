"""Paths and URIs as text. Nothing here accesses a file."""

import os
from pathlib import Path
from urllib.parse import quote


def absolute(uri: str) -> str:
    """Make a path absolute; a URI is returned unchanged."""
    return uri if "://" in uri else str(Path(uri).expanduser().absolute())


def for_display(uri: str) -> str:
    """Make a path below the working directory relative to it; others are returned unchanged."""
    here = str(Path.cwd())
    return uri.removeprefix(here + "/") if uri != here else "."


def is_local(uri: str) -> bool:
    """Whether a URI is a path on this machine."""
    return "://" not in uri or uri.startswith("file://")


def join(uri: str, *parts: str) -> str:
    """The URI of a file below a folder; the URI's options, after '?', stay at the end."""
    base, options = _without_options(uri)
    return "/".join([base.rstrip("/") or base, *parts]) + options


def file_in(folder: str, path: str) -> str:
    """The URI of a file that `files.walk` has listed in a folder; special characters are quoted."""
    return join(folder, quote(path) if "://" in folder else path)


def parent(uri: str) -> str:
    """The folder above a path or URI, with the URI's options."""
    return split(uri)[0] + _without_options(uri)[1]


def name(uri: str) -> str:
    """The last part of a path or URI, without the URI's options."""
    return split(uri)[1]


def split(uri: str) -> tuple[str, str]:
    """The folder above a path or URI and the last part, both without the URI's options."""
    folder, _, last = _without_options(uri)[0].rstrip("/").rpartition("/")
    return folder, last


def user_cache() -> Path:
    """The user's cache folder: XDG_CACHE_HOME, or ~/.cache.

    Raises:
        OSError: The user has no home directory, as in some containers.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:
        raise OSError(
            f"user {os.getuid()} has no home: set HOME, or XDG_CACHE_HOME, to a folder that it may "
            "write to"
        ) from None


def _without_options(uri: str) -> tuple[str, str]:
    base, question, options = uri.partition("?") if "://" in uri else (uri, "", "")
    return base, question + options
