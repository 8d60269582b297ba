"""The user that a process runs as. A container's may have neither a name nor a home."""

import getpass
import os
import tempfile
from pathlib import Path

from bcl_ray.machine.errors import UserError

SOCKET_BYTES = 107  # of the path of a socket, on Linux
# What Ray adds to its temporary folder, with the longest number of a process.
_SOCKET = "/ray/session_2026-11-29_22-17-10_054125_4194304/sockets/plasma_store"


def name() -> str:
    """The user's name, or "unknown"."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def check_home() -> str:
    """The user's home, in which Ray and other libraries keep files.

    Raises:
        ValueError: There is none, or nothing can be written there.
    """
    remedy = "set HOME to a folder that this user may write to"
    home = Path(os.path.expanduser("~"))  # noqa: PTH111  (Path raises if there is none)
    if not home.is_absolute():
        raise UserError(f"user {os.getuid()} has no home: {remedy}")
    _check_writable("HOME", home, remedy)
    return str(home)


def check_temporary_folder() -> str:
    """The folder in which Ray makes its sockets and logs.

    Raises:
        ValueError: Its path is too long for sockets, or nothing can be written there.
    """
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), None)
    folder = Path(os.environ[variable] if variable else "/tmp")  # noqa: S108  (as Ray does)
    remedy = "set RAY_TMPDIR to another folder, such as /tmp"
    size, most = len(os.fsencode(folder)), SOCKET_BYTES - len(_SOCKET)
    if size > most:
        raise UserError(
            f"{variable} ({folder}) has {size} bytes, and the paths of Ray's sockets below it "
            f"leave room for {most}: set RAY_TMPDIR to a shorter path"
        )
    _check_writable(variable or "the temporary folder", folder, remedy)
    return str(folder)


def _check_writable(what: str, folder: Path, remedy: str) -> None:
    """Try to write where the folder is, or where it would be made."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise UserError(
            f"{what} ({folder}) cannot be written to ({error.strerror}): {remedy}"
        ) from None
