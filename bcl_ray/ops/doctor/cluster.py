"""A cluster from outside: its dashboard, its token, its versions, and a job that asks the nodes."""

import json
import re
import shlex
import time
from collections.abc import Iterator
from dataclasses import asdict
from urllib.parse import urlsplit

import requests

from bcl_ray.machine.errors import UserError
from bcl_ray.machine.versions import client_versions
from bcl_ray.ops.doctor.finding import SECONDS, Finding, look, merged
from bcl_ray.ops.jobs.client import JobClient

MARK = "bcl-ray-finding "
JOB_SECONDS = 110.0  # a driver and a process on each node, on machines that have work


def show(finding: Finding) -> str:
    """A finding as a line of a job's log."""
    return MARK + json.dumps(asdict(finding))


def examine_cluster(
    address: str, ca_file: str | None, store: str | None, mlflow: str | None
) -> Iterator[Finding]:
    """What this machine sees of a cluster, then what its nodes see.

    Args:
        address: http(s)://HOST:PORT of the dashboard.
        ca_file: certificates to trust for https.
        store: s3:// address, or None.
        mlflow: tracking URI as the nodes reach it, or None.

    Raises:
        ValueError: an address holds a secret, which a job's record would keep.
    """
    for option, uri in (("--store", store), ("--mlflow", mlflow)):
        if uri and "@" in urlsplit(uri).netloc:  # it is not shown
            raise UserError(f"{option} holds a user name or a password: take it out")
    reached: list[JobClient] = []

    def dashboard() -> str:
        reached.append(JobClient(address, ca_file))
        return address

    yield look("dashboard", "cluster", dashboard)
    if not reached:
        return
    cluster = reached[0]
    yield look("token", "cluster", lambda: _token(cluster))
    yield look("versions", "cluster", lambda: _versions(cluster))
    yield look("State API", "cluster", lambda: _nodes(cluster))
    yield from _by_job(cluster, store, mlflow)


def _token(cluster: JobClient) -> str:
    bare = requests.get(
        f"{cluster.address}/api/version", timeout=SECONDS - 3, verify=cluster.ca_file or True
    )
    if bare.status_code < 400:
        raise UserError(
            "the cluster takes jobs from anyone who reaches it: start it with RAY_AUTH_MODE=token "
            "(KubeRay: authOptions.mode: token)"
        )
    return f"asked for, and that of {cluster.token_place} is accepted"


def _versions(cluster: JobClient) -> str:
    own, theirs = client_versions(), cluster.versions()
    pairs = [(name, own[name], number) for name, number in theirs.items() if name in own]
    other = [f"{name} {ours} here, {there} there" for name, ours, there in pairs if ours != there]
    if other:
        raise UserError(f"{'; '.join(other)}: install the cluster's versions here")
    return ", ".join(f"{name} {number}" for name, number in theirs.items()) + ", as here"


def _nodes(cluster: JobClient) -> str:
    answer = cluster._do_request("GET", "/api/v0/nodes?limit=1000", timeout=SECONDS - 3)
    try:
        nodes = answer.json()["data"]["result"]["result"]
    except (ValueError, KeyError, TypeError):
        raise UserError("no State API: install ray[default] on the head") from None
    alive = [node for node in nodes if node["state"] == "ALIVE"]
    if not alive:
        raise UserError("no node is alive: look at the head's logs")
    total = {
        name: sum(node["resources_total"].get(name, 0) for node in alive) for name in ("CPU", "GPU")
    }
    return f"{len(alive)} nodes, {total['CPU']:g} CPUs, {total['GPU']:g} GPUs"


def _by_job(cluster: JobClient, store: str | None, mlflow: str | None) -> Iterator[Finding]:
    words = ["python", "-m", "bcl_ray", "doctor", "--on-nodes"]
    words += ["--store", store] if store else []
    words += ["--mlflow", mlflow] if mlflow else []
    found: list[Finding] = []

    def job() -> str:
        name = f"doctor-{time.strftime('%m%d-%H%M%S')}"
        cluster.send(submission_id=name, entrypoint=shlex.join(words), metadata={"kind": "doctor"})
        status, log = _outcome(cluster, name)
        found.extend(_read(log))
        if not found:
            said = [line for line in log.splitlines() if line.strip()] or ["it said nothing"]
            raise OSError(f"job {name} {status}: {said[-1][:300]}; `bcl-ray jobs logs {name}`")
        return f"{name} asked every node"

    yield look("jobs", "cluster", job, JOB_SECONDS + SECONDS)
    yield from merged(found)


def _outcome(cluster: JobClient, name: str) -> tuple[str, str]:
    """How a job ended, and its log; it is stopped when its time is up."""
    deadline = time.monotonic() + JOB_SECONDS
    while not (status := cluster.get_job_status(name)).is_terminal():
        if time.monotonic() > deadline:
            cluster.stop_job(name)
            return f"has not ended within {JOB_SECONDS:g} s", cluster.get_job_logs(name)
        time.sleep(0.5)
    return f"is {status.value}", cluster.get_job_logs(name)


def _read(log: str) -> list[Finding]:
    lines = re.findall(rf"^{MARK}(.*)$", log, re.MULTILINE)
    return [Finding(**json.loads(line)) for line in lines]
