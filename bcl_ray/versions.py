"""What a run was made with: versions of the software, and the commit of this project."""

import platform
import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bcl_ray import __version__

PACKAGES = ("torch", "torchvision", "ray", "mlflow", "numpy", "pyarrow")


def versions() -> dict[str, str]:
    """Tags of a run: `version.NAME` of each package, and `git.commit` where there is one."""
    found = {"version.bcl-ray": __version__, "version.python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[f"version.{name}"] = version(name)
        except PackageNotFoundError:
            continue
    commit = git_commit(Path(__file__).parents[1])
    return {**found, "git.commit": commit} if commit else found


def git_commit(root: Path) -> str | None:
    """The commit of this project's checkout, with '-dirty' where files differ from it.

    None where `root` is none, as when the package is installed or part of another project.
    """
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text())["project"]["name"]
        if project != "bcl-ray" or not (root / ".git").exists():
            return None
        git = ["git", f"--git-dir={root / '.git'}", f"--work-tree={root}"]
        describe = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        done = subprocess.run(  # noqa: S603  nothing in it comes from a user
            [*git, *describe], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, KeyError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
