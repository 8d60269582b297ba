"""What a run was made with, and where: versions, this project's commit, cluster and job."""

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

CLIENT = "BCL_RAY_CLIENT"  # environment variable of jobs: `client_versions` of the submitter, JSON
PACKAGES = ("torch", "torchvision", "timm", "ray", "mlflow", "numpy", "pyarrow")


def versions() -> dict[str, str]:
    """Tags of a run: `version.NAME` of each package, and `git.commit` if there is one."""
    tags = {"version.bcl-ray": __version__, "version.python": platform.python_version()}
    for name in PACKAGES:
        try:
            tags[f"version.{name}"] = version(name)
        except PackageNotFoundError:
            continue
    commit = git_commit(_package().parent) or _image_commit()
    return {**tags, "git.commit": commit} if commit else tags


def _package() -> Path:
    return Path(bcl_ray.__file__).parent


def _image_commit() -> str | None:
    """The commit that a container image was built from, which cluster/Dockerfile writes."""
    file = _package() / "commit.txt"
    return (file.read_text().strip() or None) if file.exists() else None


def git_commit(root: Path) -> str | None:
    """The commit of this project's checkout, with '-dirty' if files differ from it.

    Returns:
        None if `root` is no such checkout: the package is installed, or part of another project.
    """
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text())["project"]["name"]
        if project != "bcl-ray" or not (root / ".git").exists():
            return None
        git = ["git", f"--git-dir={root / '.git'}", f"--work-tree={root}"]
        describe = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        result = subprocess.run(  # noqa: S603  (no user input in it)
            [*git, *describe], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, KeyError, ValueError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def cluster_tags() -> dict[str, str]:
    """Tags of a run: `cluster`, and `job` if a scheduler started this process."""
    environment = os.environ
    name = environment.get("RAY_CLUSTER_NAME") or environment.get("SLURM_CLUSTER_NAME")
    address = environment.get("RAY_ADDRESS", "")
    host = urlsplit(address if "://" in address else f"//{address}").hostname
    is_here = host in (None, "local", "auto", "localhost", "127.0.0.1")
    tags = {"cluster": name or (socket.gethostname() if is_here else str(host))}
    job = job_record().get("job_submission_id") or environment.get("SLURM_JOB_ID")
    return {**tags, "job": job} if job else tags


def job_record() -> dict[str, str]:
    """The metadata of the Ray job whose driver this process is; empty if it is none."""
    # Ray sets this variable in the driver of a submitted job.
    settings = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    return dict(settings.get("metadata", {}))


def client_versions() -> dict[str, str]:
    """The versions that must agree between a job and its submitter; Python's without the patch."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"bcl_ray": __version__, "Python": python, "Ray": version("ray")}


def check_same_versions(client: dict[str, str], cluster: dict[str, str]) -> None:
    """Refuse a job whose submitter and cluster have different versions.

    Args:
        client: Versions of the submitter.
        cluster: Versions of the cluster, as far as they are known.

    Raises:
        ValueError: A version differs; the text names both.
    """
    differences = [
        f"{name} {own} submitted it, and the cluster has {cluster[name]}"
        for name, own in client.items()
        if cluster.get(name, own) != own
    ]
    if differences:
        raise UserError(
            f"job refused: {'; '.join(differences)}: install the cluster's versions where you "
            "submit (`--with-code` sends your bcl_ray along)"
        )


def command() -> str:
    """The command with which the reader of this process's messages goes on.

    In a job this is `bcl-ray submit`, because the reader is at another machine.
    """
    return "bcl-ray submit" if os.environ.get(CLIENT) else "bcl-ray"
