"""A virtual environment for the peers, beside the packages of the present one."""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

INSTALL_SECONDS = 300


def environment(folder: Path) -> Path:
    """Make the environment, unless it is there already.

    It finds the present environment's packages too, torch above all, after its own.

    Returns:
        Its Python.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        packages = next((folder / "lib").glob("python*/site-packages"))
        (packages / "present.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def install(python: Path, requirements: list[str]) -> str | None:
    """Install packages from PyPI; returns why they could not be installed."""
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    return failure([*pip, *requirements], INSTALL_SECONDS)


def failure(command: list[str], seconds: float) -> str | None:
    """Run a command; if it fails or takes too long, return the last line of its errors."""
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:g} s"
    lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
    return lines[-1] if result.returncode else None


PRESENT = Path(sys.executable)
