"""Versions of a small file: a writer replaces the one that it has read, and no other."""

from dataclasses import dataclass


class ChangedError(Exception):
    """The file or object has changed since the version that was to be replaced."""


@dataclass(frozen=True)
class FileVersion:
    """The content of a file or object when it was read or written."""

    data: bytes
    tag: str = ""  # ETag, in S3
