"""Secrets of one folder, made at random at first use and kept in files of mode 0600."""

import os
import secrets
from pathlib import Path


def write_private(file: Path, text: str) -> None:
    """Write a file that only its owner can read, from its first byte on."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = file.with_name(f".{file.name}.{secrets.token_hex(4)}.tmp")
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as sink:
        sink.write(text)
    partial.replace(file)


def kept(file: Path, given: str | None = None) -> str:
    """The secret of a file: the one given, else the one that is there, else a new one."""
    if given is None and file.exists():
        return file.read_text()
    secret = given or secrets.token_hex(20)
    write_private(file, secret)
    return secret
