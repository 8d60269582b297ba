"""Checks of one machine, whichever it is: this one, or a node in a task of Ray's.

Each returns what is in order, or raises ValueError or OSError with what to do.
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
from bcl_ray.machine.errors import UserError
from bcl_ray.ops.doctor import gpus
from bcl_ray.ops.doctor.finding import SECONDS, Finding, look
from bcl_ray.storage import s3

PACKAGES = ("ray", "torch", "torchvision", "mlflow", "pyarrow", "boto3")
LONG = {"GPUs": gpus.SECONDS + 2}  # seconds of a check that may take longer than the others
GIB = 2**30
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (where Ray keeps its objects)


def examine(
    where: str,
    store: str | None,
    mlflow: str | None,
    resources: Mapping[str, float],
    disk_folder: str | None = None,
) -> Iterator[Finding]:
    """All checks of the machine that this runs on.

    Args:
        where: its name.
        store: s3:// address to read from and write to, or None.
        mlflow: tracking URI, or None.
        resources: what Ray says that the node has; empty where it is none.
        disk_folder: where Ray keeps what does not fit into memory; else the temporary folder.
    """
    folder = Path(disk_folder or tempfile.gettempdir())
    checks: dict[str, Callable[[], str]] = {
        "versions": versions,
        "disk": lambda: disk(folder),
        "memory": lambda: shared_memory(resources.get("object_store_memory", 0)),
        "GPUs": lambda: gpus.gpus(resources.get("GPU", 0) if resources else None),
    }
    if store:
        checks["S3"] = lambda: object_store(store)
    if mlflow:
        checks["MLflow"] = lambda: tracking_server(mlflow)
    with ThreadPoolExecutor(len(checks)) as pool:  # those that wait do so together
        yield from pool.map(
            lambda name: look(name, where, checks[name], LONG.get(name, SECONDS)), checks
        )


def versions() -> str:
    """Versions of what a run needs."""
    found = {"bcl-ray": __version__, "Python": platform.python_version()}
    missing = []
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        raise UserError(f"{', '.join(missing)} not installed: pip install 'bcl-ray[train]'")
    return ", ".join(f"{name} {number}" for name, number in found.items())


def disk(folder: Path) -> str:
    """Room for what Ray spills, and for checkpoints on their way."""
    usage = shutil.disk_usage(folder)
    text = f"{usage.free / GIB:.0f} of {usage.total / GIB:.0f} GiB free in {folder}"
    if usage.free < 0.05 * usage.total:  # Ray's own limit: local_fs_capacity_threshold
        raise OSError(f"{text}: Ray stores nothing where less than 5% are: make room")
    if usage.free < 5 * GIB:
        raise OSError(f"{text}: a run needs 5 GiB: make room")
    return text


def shared_memory(store_bytes: float) -> str:
    """Room for Ray's object store, without which it works from the disk, slowly."""
    if not SHARED_MEMORY.exists():
        return f"{SHARED_MEMORY} is not on this system"
    usage = shutil.disk_usage(SHARED_MEMORY)
    text = f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free in {SHARED_MEMORY}"
    if usage.total < max(store_bytes, 0.25 * GIB):
        raise OSError(
            f"{text}, and Ray's object store takes {store_bytes / GIB:.1f} GiB: start the "
            "container with --shm-size (Kubernetes: an emptyDir with medium Memory)"
        )
    return text


def object_store(uri: str) -> str:
    """Whether a place in S3 may be used as a run does."""
    if not s3.is_s3(uri):
        raise UserError(f"'{uri}' is not s3://BUCKET/FOLDER")
    actions = ("list", "read", "write", "delete")
    problems = s3.check_access(uri, actions, SECONDS - 1)
    if problems:
        raise OSError("; ".join(problems))
    return f"{uri} on {s3.parse_uri(uri).server}: {', '.join(actions)}"


def tracking_server(uri: str) -> str:
    """Whether an MLflow server answers this machine, under the name that it has here."""
    address = urlsplit(uri)
    if address.scheme == "sqlite":
        return f"{uri}: a file, for one machine alone"
    if address.scheme not in ("http", "https") or "@" in address.netloc:
        raise UserError(
            "MLFLOW_TRACKING_URI must be a server's http(s):// address, without user or password"
        )
    # The path that runs use; /health and /version answer whatever the name.
    request = urllib.request.Request(  # noqa: S310 (http or https, as checked)
        f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search?max_results=1",
        headers=_credentials(),
    )
    try:
        with urllib.request.urlopen(request, timeout=SECONDS - 3) as answer:  # noqa: S310
            json.load(answer)
    except urllib.error.HTTPError as error:
        raise OSError(f"{uri} {_meaning(error, address.netloc)}") from None
    except ValueError:
        raise UserError(f"{uri} answers, but is no MLflow server") from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise OSError(f"{uri} does not answer ({reason}): is it up, and the name right?") from None
    return f"{uri} answers as {address.netloc}"


def _meaning(error: urllib.error.HTTPError, host: str) -> str:
    said = error.read(1000).decode(errors="replace")
    if error.code == 403 and "host" in said.lower():
        return f"refuses the name {host} (403): start `mlflow server` with --allowed-hosts {host}"
    if error.code in (401, 403):
        return (
            f"wants to know who asks ({error.code}): set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    return f"answers {error.code} to MLflow's own question: is it an MLflow server?"


def _credentials() -> dict[str, str]:
    """As MLflow's client sends them."""
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return {"Authorization": f"Bearer {token}"}
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    if not user:
        return {}
    pair = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}".encode()
    return {"Authorization": f"Basic {b64encode(pair).decode()}"}
