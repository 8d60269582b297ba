"""A cluster on one machine: what starts, who may reach it, what survives, and that all ends."""

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import requests

from bcl_ray.ops.local import LocalCluster
from bcl_ray.ops.local.cluster_folder import node_groups
from tests.s3_servers import free_block

CLUSTER = (sys.executable, "-m", "bcl_ray", "cluster")


def processes_of(cluster) -> list[psutil.Process]:
    server = cluster.parts.own_s3_server().processes
    groups = [(cluster.processes, cluster.processes.names()), (server, server.names())]
    return [one for group, names in groups for name in names for one in group.tree(name)]


def driver(cluster, code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **cluster.environment()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def status_of(url: str, token: str | None = None, **headers: str) -> int:
    if token:
        headers["Authorization"] = f"Bearer {token}"
    return requests.get(url, headers=headers, timeout=30).status_code


def test_a_third_of_the_nodes_are_for_data():
    assert node_groups(1) == {"train-1": "train"}
    assert node_groups(2) == {"data-1": "data", "train-1": "train"}
    assert node_groups(3) == {"data-1": "data", "train-1": "train", "train-2": "train"}
    assert list(node_groups(7).values()).count("data") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, r"--workers \(0\) must be at least 1"),
        ({"cpus": 0}, r"--cpus \(0\) must be at least 1"),
        ({"store": "gs://x"}, r"--store \(gs://x\) must be swift or s3://BUCKET/PREFIX"),
        ({"database": "mysql"}, r"--database \(mysql\) must be sqlite or postgres"),
    ],
    ids=["workers", "cpus", "store", "database"],
)
def test_options_out_of_range_are_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        LocalCluster(tmp_path).up(**options)


def test_a_folder_without_a_cluster_says_how_to_start_one(tmp_path):
    cluster = LocalCluster(tmp_path)
    with pytest.raises(OSError, match=f"no cluster is in {tmp_path}: start one with `bcl-ray"):
        cluster.environment()
    assert cluster.status() == []
    cluster.down()


@pytest.mark.slow
def test_a_port_in_use_is_refused_before_anything_starts(tmp_path):
    first = free_block(20)
    with socket.socket() as held:
        held.bind(("127.0.0.1", first + 1))
        held.listen()
        with pytest.raises(OSError, match=rf"ports in use: {first + 1} \(MLflow\), by .*\(pid"):
            LocalCluster(tmp_path).up(port=first)
    assert LocalCluster(tmp_path).status() == []


@pytest.mark.ray
@pytest.mark.slow
def test_everything_listens_on_this_machine_alone(local_cluster):
    found = set()
    for one in processes_of(local_cluster):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            for held in one.net_connections("tcp"):
                if held.status == psutil.CONN_LISTEN:
                    found.add((one.name(), held.laddr.ip))
    assert {"raylet", "gcs_server"} <= {name for name, _ in found}
    assert {ip for _, ip in found} <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


@pytest.mark.ray
@pytest.mark.slow
def test_a_request_without_the_token_is_refused(local_cluster):
    environment = local_cluster.environment()
    token = Path(environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    url = f"{environment['RAY_ADDRESS']}/api/version"
    assert (status_of(url), status_of(url, "0" * 64), status_of(url, token)) == (401, 403, 200)


@pytest.mark.ray
@pytest.mark.slow
def test_mlflow_refuses_other_names_and_puts_artifacts_into_s3(local_cluster, tmp_path):
    environment = local_cluster.environment()
    url = f"{environment['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/experiments/search?max_results=1"
    assert (status_of(url), status_of(url, Host="elsewhere.example")) == (200, 403)
    code = (
        "import mlflow; run = mlflow.start_run(); mlflow.log_text('hello', 'a/b.txt');"
        "mlflow.end_run();"  # it prints
        "import boto3; s3 = boto3.client('s3');"
        "found = s3.list_objects_v2(Bucket='bcl-ray', Prefix='mlflow/')['Contents'];"
        "keys = [item['Key'] for item in found];"
        "print([k for k in keys if run.info.run_id in k][0].endswith('artifacts/a/b.txt'))"
    )
    assert driver(local_cluster, code).splitlines()[-1] == "True"


@pytest.mark.ray
@pytest.mark.slow
def test_secrets_are_for_their_owner_alone_and_on_no_command_line(local_cluster):
    environment = local_cluster.environment()
    secrets = [
        environment["AWS_SECRET_ACCESS_KEY"],
        Path(environment["RAY_AUTH_TOKEN_PATH"]).read_text(),
    ]
    folder = local_cluster.folder
    readable = set()
    for file in (f for f in folder.rglob("*") if f.is_file() and f.stat().st_size < 10**7):
        content = file.read_bytes()
        if any(secret.encode() in content for secret in secrets):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
            readable.add(file.name)
    assert {"token", "environment", "secret_key", "proxy-server.conf"} == readable
    running = psutil.process_iter(["pid", "cmdline"])  # without those that end meanwhile
    words = [
        " ".join(one.info["cmdline"] or []) for one in running if one.info["pid"] != os.getpid()
    ]
    assert len(words) > 10
    assert not [line for line in words if any(secret in line for secret in secrets)]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.ray
@pytest.mark.slow
def test_training_workers_are_counted_by_node(local_cluster):
    code = (
        "import json, os, ray\n"
        "from bcl_ray.ops.local import LocalCluster\n"
        "ray.init(os.environ['BCL_RAY_GCS_ADDRESS'], log_to_driver=False)\n"
        "@ray.remote(num_cpus=0, resources={'train': 2})\n"  # all that a node has
        "class RayTrainWorker:\n"
        "    def ready(self):\n"
        "        pass\n"
        "workers = [RayTrainWorker.remote() for _ in range(2)]\n"
        "ray.get([worker.ready.remote() for worker in workers])\n"
        "print(json.dumps(LocalCluster().training_workers()))\n"
    )
    counts = json.loads(driver(local_cluster, code).splitlines()[-1])
    assert counts == {"train-1": 1, "train-2": 1}
    assert local_cluster.training_workers() == {}


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_node_is_gone_and_can_be_added_again(local_cluster):
    tree = local_cluster.processes.tree("data-1")
    assert len(tree) > 3  # ray start, raylet, agents
    local_cluster.kill_node("data-1")
    assert alive(tree) == []
    assert sorted(local_cluster.nodes()) == ["head", "train-1", "train-2"]
    assert {row.name: row.alive for row in local_cluster.status()}["data-1"] is False
    with pytest.raises(ValueError, match="no node 'data-1' runs; there is: train-1, train-2"):
        local_cluster.kill_node("data-1")
    local_cluster.add_node("data-1")
    assert sorted(local_cluster.nodes()) == ["data-1", "head", "train-1", "train-2"]


@pytest.mark.ray
@pytest.mark.slow
def test_a_node_with_notice_takes_no_work_and_ends(local_cluster):
    local_cluster.add_node("data-2")
    begun = time.monotonic()
    local_cluster.drain_node("data-2", 3)
    while "data-2" in local_cluster.nodes():
        assert time.monotonic() - begun < 60
        time.sleep(0.1)
    with pytest.raises(ValueError, match="no node 'data-2' runs"):
        local_cluster.drain_node("data-2", 3)


@pytest.mark.ray
@pytest.mark.slow
def test_a_second_up_is_refused(local_cluster):
    with pytest.raises(OSError, match=r"a cluster is up in .*: `bcl-ray cluster down` ends it"):
        local_cluster.up()


def interrupted_up(cluster, how: signal.Signals) -> list[psutil.Process]:
    """Start `up`, end it while nodes are starting; returns the processes that there were."""
    options = ["--folder", str(cluster.folder), "--port", str(free_block(20)), "--workers", "1"]
    with subprocess.Popen([*CLUSTER, "up", *options]) as up:
        deadline = time.monotonic() + 60
        while not cluster.processes.alive("train-1"):
            assert time.monotonic() < deadline
            assert up.poll() is None
            time.sleep(0.05)
        tree = processes_of(cluster)
        up.send_signal(how)
        status = up.wait(60)
        if status == 0:  # it was up before the signal came
            cluster.down(wipe=True)
        assert status == (130 if how == signal.SIGINT else -how)
    return tree


def alive(tree) -> list[psutil.Process]:
    return [one for one in tree if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.ray
@pytest.mark.slow
def test_an_interrupted_up_leaves_nothing(tmp_path):
    cluster = LocalCluster(tmp_path / "cluster")
    tree = interrupted_up(cluster, signal.SIGINT)
    assert len(tree) > 5
    assert alive(tree) == []
    assert cluster.status() == []


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_up_is_cleared_by_the_next_and_down_leaves_no_process(tmp_path):
    cluster, messages = LocalCluster(tmp_path / "cluster"), []
    left = interrupted_up(cluster, signal.SIGKILL)
    assert alive(left)
    cluster.up(workers=1, port=free_block(20), cpus=1, notify=messages.append)
    assert messages == ["clearing what a cluster that was not taken down has left"]
    assert alive(left) == []
    tree, ray_folder = processes_of(cluster), Path(cluster.parts.description().ray_folder)
    assert ray_folder.is_dir()
    cluster.down()
    assert alive(tree) == []
    assert not ray_folder.exists()
    assert (cluster.folder / "swift").is_dir()  # what was stored
    cluster.down(wipe=True)
    assert not cluster.folder.exists()
