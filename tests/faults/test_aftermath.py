"""What a finished job has left behind holds none of the secrets that it used."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from bcl_ray.runs import run_folder
from bcl_ray.storage import files
from tests.faults.conftest import STORE

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def test_no_secret_is_in_the_job_the_run_or_mlflow(drill, tmp_path):
    drill.undisturbed()
    job = next((job for job in drill.jobs if job.process.poll() == 0), None)
    if job is None:  # another process has made the undisturbed run
        job = drill.start("any")
        job.succeed()
    secrets = [
        os.environ["AWS_SECRET_ACCESS_KEY"],
        Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text().strip(),
    ]
    ours, in_mlflow = files_of(job), tracked(drill.run_id(job), tmp_path)
    assert any(name.startswith("s3://") and name.endswith("state.pt") for name in ours)
    assert any(name.endswith("experiment.yaml") for name in in_mlflow)
    left = {"output": job.output.encode(), **records(job), **ours, **in_mlflow}
    left |= logs(drill.ray_folder)
    for name, content in left.items():
        for secret in secrets:
            assert len(secret) >= 16
            assert secret.encode() not in content, name


def records(job) -> dict[str, bytes]:
    """What the cluster says of the job."""
    commands = {name: ["jobs", name, job.id] for name in ("status", "logs")}
    return {
        name: subprocess.run(
            [sys.executable, "-m", "bcl_ray", *command], check=True, capture_output=True
        ).stdout
        for name, command in commands.items()
    }


def files_of(job) -> dict[str, bytes]:
    """The run's own files, in S3 and on its driver's machine."""
    folders = [job.uri, *(files.join(job.uri, name) for name in files.list_folders(job.uri))]
    found = {
        uri: files.read_bytes(uri)
        for folder in folders
        for uri in (files.join(folder, name) for name in files.list_files(folder))
    }
    local = run_folder.local_folder(run_folder.open_run(job.uri)[0])
    return found | {str(f): f.read_bytes() for f in local.rglob("*") if f.is_file()}


def logs(folder: Path) -> dict[str, bytes]:
    """What Ray and its processes wrote on every node."""
    files_of = [file for file in folder.glob("*/session_2*/logs/**/*") if file.is_file()]
    assert {file.relative_to(folder).parts[0] for file in files_of} >= {"head", "data-1", "train-1"}
    return {str(file): file.read_bytes() for file in files_of}


def tracked(run_id: str, folder: Path) -> dict[str, bytes]:
    """All that MLflow has, artifacts too, which lie in S3."""
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    run = client.get_run(run_id)
    there = files.list_folders(f"{STORE}/mlflow")
    assert there, "artifacts are in S3"
    client.download_artifacts(run_id, "", str(folder))
    found = {str(f): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    return found | {"MLflow's run": str(run.to_dictionary()).encode()}
