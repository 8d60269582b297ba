"""Paths and URIs as text. Nothing here accesses a file."""

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote

from bcl_ray.machine.errors import UserError


def absolute(uri: str) -> str:
    """Make a path absolute; a URI is returned unchanged.

    Raises:
        ValueError: A URI lacks a '/', or there is no home for '~'.
    """
    if "://" in uri:
        return uri
    if scheme := re.match("(s3|gs|hdfs|file):(/|$)", uri):
        raise UserError(f"'{uri}' is no URI and no usual path: write {scheme[1]}://, or ./{uri}")
    try:
        return str(Path(uri).expanduser().absolute())
    except (RuntimeError, ValueError):
        raise UserError(f"'{uri}': there is no such home: write the whole path") from None


def for_display(uri: str) -> str:
    """Make a path below the working directory relative to it; others are returned unchanged."""
    here = str(Path.cwd())
    return uri.removeprefix(here + "/") if uri != here else "."


def local(uri: str) -> str:
    """The absolute path of a path or a file:// URI, in which special characters may be quoted.

    Raises:
        ValueError: As of `absolute`; or the URI has a host, or options.
    """
    if not uri.startswith("file://"):
        return absolute(uri)
    path = uri.removeprefix("file://").removeprefix("localhost")
    if not path.startswith("/") or "?" in path or "#" in path:
        raise UserError(
            f"'{uri}' must be file:///PATH, with a '?' in it as %3F, and '#' as %23: or name the "
            "path alone"
        )
    return unquote(path)


def is_local(uri: str) -> bool:
    """Whether a URI is a path on this machine."""
    return "://" not in uri or uri.startswith("file://")


def join(uri: str, *parts: str) -> str:
    """The URI of a file below a folder; the URI's options, after '?', stay at the end."""
    base, options = split_options(uri)
    slash = "/" if base and not base.endswith("/") else ""
    return base + slash + "/".join(parts) + options


def file_in(folder: str, path: str) -> str:
    """The URI of a file that `files.walk` has listed in a folder; special characters are quoted."""
    if "://" not in folder:
        return join(folder, path)
    # Slashes of a key that stand for nothing, before or after an empty part, are quoted too.
    return join(folder, re.sub("(?<![^/])/|/$", "%2F", quote(path)))


def parent(uri: str) -> str:
    """The folder above a path or URI, with the URI's options."""
    return split(uri)[0] + split_options(uri)[1]


def name(uri: str) -> str:
    """The last part of a path or URI, without the URI's options."""
    return split(uri)[1]


def ends_with(uri: str, ending: str) -> bool:
    """Whether a path or URI, without the URI's options, has an ending, such as '.parquet'."""
    return split_options(uri)[0].endswith(ending)


def split(uri: str) -> tuple[str, str]:
    """The folder above a path or URI and the last part, both without the URI's options."""
    folder, _, last = split_options(uri)[0].rstrip("/").rpartition("/")
    return folder, last


def split_options(uri: str) -> tuple[str, str]:
    """A path or URI without its options, and the options with the '?' before them."""
    base, question, options = uri.partition("?") if "://" in uri else (uri, "", "")
    return base, question + options


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
