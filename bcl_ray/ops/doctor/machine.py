"""Checks of one machine: the client's, or a node in a Ray task.

Each check returns the state, or raises ValueError or OSError with what is wrong and what to do.
"""

import json
import os
import platform
import shutil
import tempfile
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit

from bcl_ray import __version__
from bcl_ray.machine import user
from bcl_ray.machine.errors import UserError
from bcl_ray.ops.doctor import gpus
from bcl_ray.ops.doctor.finding import CHECK_SECONDS, Finding, run_check
from bcl_ray.storage import s3

PACKAGES = ("ray", "torch", "torchvision", "mlflow", "pyarrow", "boto3")
TIME_LIMITS = {"GPUs": gpus.MOST_SECONDS}  # of checks that take longer than the others
GIB = 2**30
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (where Ray's object store lies)


def examine(
    where: str,
    store: str | None,
    mlflow: str | None,
    resources: Mapping[str, float],
    disk_folder: str | None = None,
) -> Iterator[Finding]:
    """Run all checks of this machine.

    Args:
        store: s3:// URI to read from and write to, or None.
        mlflow: Tracking URI, or None.
        resources: Resources that Ray lists for this node; empty if it is no Ray node.
        disk_folder: Folder where Ray spills objects; by default the temporary folder.
    """
    folder = Path(disk_folder or tempfile.gettempdir())
    checks: dict[str, Callable[[], str]] = {
        "versions": check_versions,
        "disk": lambda: check_disk(folder),
        "memory": lambda: check_shared_memory(resources.get("object_store_memory", 0)),
        "GPUs": lambda: gpus.check_gpus(resources.get("GPU", 0) if resources else None),
    }
    if not resources:  # Ray starts here
        checks["HOME"] = user.check_home
        checks["TMPDIR"] = user.check_temporary_folder
    if store:
        checks["S3"] = lambda: check_object_store(store)
    if mlflow:
        checks["MLflow"] = lambda: check_tracking_server(mlflow)
    with ThreadPoolExecutor(len(checks)) as pool:
        yield from pool.map(
            lambda name: run_check(name, where, checks[name], TIME_LIMITS.get(name, CHECK_SECONDS)),
            checks,
        )


def check_versions() -> str:
    """Check that the packages that a run needs are installed."""
    versions = {"bcl-ray": __version__, "Python": platform.python_version()}
    missing = []
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        raise UserError(f"{', '.join(missing)} not installed: pip install 'bcl-ray[train]'")
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def check_disk(folder: Path) -> str:
    """Check the free space for spilled objects and for checkpoints before their upload."""
    usage = shutil.disk_usage(folder)
    text = f"{usage.free / GIB:.0f} of {usage.total / GIB:.0f} GiB free in {folder}"
    if usage.free < 0.05 * usage.total:  # Ray's own limit: local_fs_capacity_threshold
        raise OSError(f"{text}: Ray stores nothing below 5% of free space: make room")
    if usage.free < 5 * GIB:
        raise OSError(f"{text}: a run needs 5 GiB: make room")
    return text


def check_shared_memory(object_store_bytes: float) -> str:
    """Check that Ray's object store fits into shared memory; else Ray uses the slow disk.

    Args:
        object_store_bytes: Size of the object store; 0 if unknown.
    """
    if not SHARED_MEMORY.exists():
        return f"{SHARED_MEMORY} is not on this system"
    usage = shutil.disk_usage(SHARED_MEMORY)
    text = f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free in {SHARED_MEMORY}"
    if usage.total < max(object_store_bytes, 0.25 * GIB):
        raise OSError(
            f"{text}, and Ray's object store takes {object_store_bytes / GIB:.1f} GiB: start the "
            "container with --shm-size (Kubernetes: an emptyDir with medium Memory)"
        )
    return text


def check_object_store(uri: str) -> str:
    """Check that a location in S3 allows all that a run does there."""
    if not s3.is_s3(uri):
        raise UserError(f"'{uri}' is not s3://BUCKET/FOLDER")
    actions = ("list", "read", "write", "delete")
    problems = s3.check_access(uri, actions, CHECK_SECONDS - 1)
    if problems:
        raise OSError("; ".join(problems))
    return f"{uri} on {s3.parse_uri(uri).server}: {', '.join(actions)}"


def check_tracking_server(uri: str) -> str:
    """Check that an MLflow server answers this machine, under the host name in the URI."""
    address = urlsplit(uri)
    if address.scheme == "sqlite":
        return f"{uri}: a file, for one machine alone"
    if address.scheme not in ("http", "https") or "@" in address.netloc:
        raise UserError(
            "MLFLOW_TRACKING_URI must be a server's http(s):// address, without user or password"
        )
    # A route that runs use: /health and /version would answer under any host name.
    request = urllib.request.Request(  # noqa: S310 (http or https, as checked)
        f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search?max_results=1",
        headers=_credentials(),
    )
    try:
        with urllib.request.urlopen(request, timeout=CHECK_SECONDS - 3) as answer:  # noqa: S310
            json.load(answer)
    except urllib.error.HTTPError as error:
        raise OSError(f"{uri} {_explain(error, address.netloc)}") from None
    except ValueError:
        raise UserError(f"{uri} answers, but is no MLflow server") from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise OSError(f"{uri} does not answer ({reason}): is it up, and the name right?") from None
    return f"{uri} answers as {address.netloc}"


def _explain(error: urllib.error.HTTPError, host: str) -> str:
    body = error.read(1000).decode(errors="replace")
    if error.code == 403 and "host" in body.lower():
        return f"refuses the name {host} (403): start `mlflow server` with --allowed-hosts {host}"
    if error.code in (401, 403):
        return (
            f"asks for a login ({error.code}): set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    return f"answers {error.code} to a request of MLflow's API: is it an MLflow server?"


def _credentials() -> dict[str, str]:
    """HTTP headers with the credentials that MLflow's client would send."""
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return {"Authorization": f"Bearer {token}"}
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    if not user:
        return {}
    pair = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}".encode()
    return {"Authorization": f"Basic {b64encode(pair).decode()}"}
