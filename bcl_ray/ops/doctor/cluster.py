"""Checks of a cluster from outside: dashboard, token, versions, and a job that checks the nodes."""

import json
import re
import shlex
import time
from collections.abc import Iterator
from dataclasses import asdict
from urllib.parse import urlsplit

import requests

from bcl_ray.machine.errors import UserError
from bcl_ray.machine.messages import last_line
from bcl_ray.machine.versions import client_versions
from bcl_ray.ops.doctor.finding import CHECK_SECONDS, Finding, merge, run_check
from bcl_ray.ops.jobs.client import JobClient

MARK = "bcl-ray-finding "  # begins a line of the job's log that holds a finding
JOB_SECONDS = 110.0  # for the driver, and a process on each node, on busy machines


def to_log_line(finding: Finding) -> str:
    """A finding as a line of a job's log."""
    return MARK + json.dumps(asdict(finding))


def examine_cluster(
    address: str, ca_file: str | None, store: str | None, mlflow: str | None
) -> Iterator[Finding]:
    """Check a cluster from this machine, and then its nodes by a job.

    Args:
        store: s3:// URI, or None.
        mlflow: Tracking URI as the nodes reach it, or None.

    Raises:
        ValueError: A URI holds a secret, which the job's record would show.
    """
    for option, uri in (("--store", store), ("--mlflow", mlflow)):
        if uri and "@" in urlsplit(uri).netloc:  # the error must not show the secret
            raise UserError(f"{option} holds a user name or a password: take it out")
    clients: list[JobClient] = []

    def check_dashboard() -> str:
        clients.append(JobClient(address, ca_file))
        return address

    yield run_check("dashboard", "cluster", check_dashboard)
    if not clients:
        return
    cluster = clients[0]
    yield run_check("token", "cluster", lambda: _check_token(cluster))
    yield run_check("versions", "cluster", lambda: _check_versions(cluster))
    yield run_check("State API", "cluster", lambda: _check_nodes(cluster))
    yield from _examine_nodes_by_job(cluster, store, mlflow)


def _check_token(cluster: JobClient) -> str:
    without_token = requests.get(
        f"{cluster.address}/api/version", timeout=CHECK_SECONDS - 3, verify=cluster.ca_file or True
    )
    if without_token.status_code < 400:
        raise UserError(
            "the cluster takes jobs from anyone who reaches it: start it with RAY_AUTH_MODE=token "
            "(KubeRay: authOptions.mode: token)"
        )
    return f"required, and that of {cluster.token_origin} is accepted"


def _check_versions(cluster: JobClient) -> str:
    own, theirs = client_versions(), cluster.versions()
    pairs = [(name, own[name], number) for name, number in theirs.items() if name in own]
    differing = [
        f"{name} {here} here, {there} there" for name, here, there in pairs if here != there
    ]
    if differing:
        raise UserError(f"{'; '.join(differing)}: install the cluster's versions here")
    return ", ".join(f"{name} {number}" for name, number in theirs.items()) + ", as here"


def _check_nodes(cluster: JobClient) -> str:
    try:
        answer = cluster.get("/api/v0/nodes?limit=1000", timeout=CHECK_SECONDS - 3)
        nodes = answer["data"]["result"]["result"]
    except (ValueError, KeyError, TypeError):
        raise UserError("no State API: install ray[default] on the head") from None
    alive = [node for node in nodes if node["state"] == "ALIVE"]
    if not alive:
        raise UserError("no node is alive: look at the head's logs")
    total = {
        name: sum(node["resources_total"].get(name, 0) for node in alive) for name in ("CPU", "GPU")
    }
    return f"{len(alive)} nodes, {total['CPU']:g} CPUs, {total['GPU']:g} GPUs"


def _examine_nodes_by_job(
    cluster: JobClient, store: str | None, mlflow: str | None
) -> Iterator[Finding]:
    words = ["python", "-m", "bcl_ray", "doctor", "--on-nodes"]
    words += ["--store", store] if store else []
    words += ["--mlflow", mlflow] if mlflow else []
    findings: list[Finding] = []

    def run_job() -> str:
        name = f"doctor-{time.strftime('%m%d-%H%M%S')}"
        cluster.send(submission_id=name, entrypoint=shlex.join(words), metadata={"kind": "doctor"})
        status, log = _wait_for_job(cluster, name)
        findings.extend(_findings_in(log))
        if not findings:
            line = last_line(log, "its log is empty")[:300]
            raise OSError(f"job {name} {status}: {line}; `bcl-ray jobs logs {name}`")
        return f"{name} checked every node"

    yield run_check("jobs", "cluster", run_job, JOB_SECONDS + CHECK_SECONDS)
    yield from merge(findings)


def _wait_for_job(cluster: JobClient, name: str) -> tuple[str, str]:
    """How a job ended, and its log; a job that takes too long is stopped."""
    deadline = time.monotonic() + JOB_SECONDS
    while not (status := cluster.get_job_status(name)).is_terminal():
        if time.monotonic() > deadline:
            cluster.stop_job(name)
            return f"has not ended within {JOB_SECONDS:g} s", cluster.get_job_logs(name)
        time.sleep(0.5)
    return f"is {status.value}", cluster.get_job_logs(name)


def _findings_in(log: str) -> list[Finding]:
    lines = re.findall(rf"^{MARK}(.*)$", log, re.MULTILINE)
    return [Finding(**json.loads(line)) for line in lines]
