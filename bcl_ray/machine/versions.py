"""What a run was made with, and where: versions, the commit of this project, job, cluster."""

import json
import os
import platform
import socket
import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit

import bcl_ray
from bcl_ray import __version__
from bcl_ray.machine.errors import UserError

CLIENT = "BCL_RAY_CLIENT"  # in a job's environment: `client_versions` of who submitted it
PACKAGES = ("torch", "torchvision", "ray", "mlflow", "numpy", "pyarrow")


def versions() -> dict[str, str]:
    """Tags of a run: `version.NAME` of each package, and `git.commit` where there is one."""
    found = {"version.bcl-ray": __version__, "version.python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[f"version.{name}"] = version(name)
        except PackageNotFoundError:
            continue
    commit = git_commit(_package().parent) or _built_from()
    return {**found, "git.commit": commit} if commit else found


def _package() -> Path:
    return Path(bcl_ray.__file__).parent


def _built_from() -> str | None:
    """The commit that an image's package was built from (cluster/Dockerfile writes the file)."""
    file = _package() / "commit.txt"
    return (file.read_text().strip() or None) if file.exists() else None


def cluster_tags() -> dict[str, str]:
    """Tags of a run: `cluster`, and `job` where a scheduler started this process."""
    environment = os.environ
    name = environment.get("RAY_CLUSTER_NAME") or environment.get("SLURM_CLUSTER_NAME")
    address = environment.get("RAY_ADDRESS", "")
    host = urlsplit(address if "://" in address else f"//{address}").hostname
    here = host in (None, "local", "auto", "localhost", "127.0.0.1")
    found = {"cluster": name or (socket.gethostname() if here else str(host))}
    # Ray's supervisor of a job tells the job's driver so.
    settings = json.loads(environment.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    job = settings.get("metadata", {}).get("job_submission_id") or environment.get("SLURM_JOB_ID")
    return {**found, "job": job} if job else found


def client_versions() -> dict[str, str]:
    """What a job and who submits it must have alike: bcl_ray, Ray, and Python to the minor."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"bcl_ray": __version__, "Python": python, "Ray": version("ray")}


def check_client(text: str) -> None:
    """Refuse to run a job for a client with other versions.

    Args:
        text: its `client_versions`, as JSON.

    Raises:
        ValueError: naming both.
    """
    differing(json.loads(text), client_versions())


def differing(client: dict[str, str], cluster: dict[str, str]) -> None:
    """Refuse two sides of different versions, as far as the cluster's are known.

    Raises:
        ValueError: naming both.
    """
    pairs = [(name, own, cluster.get(name, own)) for name, own in client.items()]
    found = [
        f"{name} {own} submitted it, and the cluster has {other}"
        for name, own, other in pairs
        if own != other
    ]
    if found:
        raise UserError(
            f"job refused: {'; '.join(found)}: install the cluster's versions where you submit "
            "(`--with-code` sends your bcl_ray along)"
        )


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


def command() -> str:
    """How a person goes on who reads what this process prints: a job's reader has no driver."""
    return "bcl-ray submit" if os.environ.get(CLIENT) else "bcl-ray"
