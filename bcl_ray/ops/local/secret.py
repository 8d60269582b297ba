"""Secrets in files that only their owner can read (mode 0600)."""

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


def ensure_secret(file: Path) -> str:
    """The secret that a file holds; without a file, a random one is made and stored."""
    if not file.exists():
        write_private(file, secrets.token_hex(20))
    return file.read_text()
