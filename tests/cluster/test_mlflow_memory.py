"""The rendered MLflow, as it is started in its pod, fits into the memory that the pod has."""

import os
import urllib.request
from functools import partial

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric

from bcl_ray.machine.waiting import answers
from bcl_ray.ops.local.ports import LOOPBACK
from bcl_ray.ops.local.processes import BIN, Processes
from bcl_ray.tracking import mlflow_server
from tests.cluster.rendered import mlflow_server as mlflow_container
from tests.s3_servers import free_block
from tests.tracked import PATIENCE

MIB = 2**20
RESERVE = 1.5  # for PostgreSQL's and S3's clients, larger artifacts and more runs than here


def rendered(description, folder, port):
    """Command and environment of the rendered container, on a database and files of this test."""
    server = mlflow_container(description)
    secrets = {
        "MLFLOW_AUTH_ADMIN_USERNAME": mlflow_server.ADMIN,
        "MLFLOW_AUTH_ADMIN_PASSWORD": "the administrator's",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a key of the session",
    }
    database, settings = f"sqlite:///{folder}/mlflow.db", folder / "basic_auth.ini"
    settings.write_text(mlflow_server.basic_auth(database))
    here = {
        "HOME": str(folder),
        "MLFLOW_BACKEND_STORE_URI": database,
        "MLFLOW_ARTIFACTS_DESTINATION": str(folder / "artifacts"),
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
    }
    environment = {
        item["name"]: here.get(item["name"], item.get("value")) or secrets.get(item["name"], "")
        for item in server["env"]
    }
    places = {"--host=0.0.0.0": f"--host={LOOPBACK}", "--port=5000": f"--port={port}"}
    arguments = [places.get(argument, argument) for argument in server["args"]]
    assert {f"--port={port}", f"--host={LOOPBACK}", "--workers=2"} <= set(arguments)
    return [str(BIN / server["command"][0]), server["command"][1], *arguments], environment


def use(uri, folder):
    """What a training and those who look at it ask of a server."""
    client = MlflowClient(uri)
    experiment = client.create_experiment("measured")
    run = client.create_run(experiment).info.run_id
    client.log_batch(run, metrics=[Metric(f"m{i}", 0.5, i, i) for i in range(1000)])
    client.log_artifact(run, str(folder / "model.bin"))
    client.download_artifacts(run, "model.bin", str(folder))
    for _ in range(8):  # of both workers
        assert len(client.search_runs([experiment])) == 1
    with urllib.request.urlopen(f"{uri}/health", timeout=30) as page:  # noqa: S310
        assert page.status == 200


@pytest.mark.long
@pytest.mark.slow
def test_mlflow_s_processes_fit_into_their_pod_with_a_reserve(description, tmp_path, monkeypatch):
    processes, port = Processes(tmp_path / "processes"), free_block(1)
    command, environment = rendered(description, tmp_path, port)
    (tmp_path / "model.bin").write_bytes(os.urandom(64 * MIB))
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", mlflow_server.ADMIN)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", environment["MLFLOW_AUTH_ADMIN_PASSWORD"])
    try:
        processes.start("mlflow", command, {**os.environ, **environment})
        processes.wait("mlflow", partial(answers, LOOPBACK, port), PATIENCE)
        use(f"http://{LOOPBACK}:{port}", tmp_path)
        tree = processes.tree("mlflow")
        # Shared pages count once, in parts: as the kernel counts them against a pod.
        used = sum(process.memory_full_info().pss for process in tree) / MIB
    except psutil.AccessDenied:
        pytest.skip("NOT MEASURED: /proc/PID/smaps_rollup cannot be read here")
    finally:
        processes.kill("mlflow")
    limit = mlflow_container(description)["resources"]["limits"]["memory"]
    print(f"{len(tree)} processes, {used:.0f} MiB of {limit}")
    assert len(tree) <= 6, "job execution alone is eight more"
    assert RESERVE * used <= int(limit.removesuffix("Mi"))
