"""The doctor: it reports what is wrong and what to do, never hangs, and checks all nodes."""

import http.server
import os
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch

from bcl_ray.ops.doctor import gpus, machine, nodes
from bcl_ray.ops.doctor.finding import Finding, merge, run_check

CLUSTER_PREFIXES = ("RAY_", "AWS_", "MLFLOW_", "BCL_RAY_")


def doctor(*options: str, **environment: str) -> tuple[int, str]:
    """Exit status and output; of the variables of clusters, only those given are set."""
    bare = {
        name: value for name, value in os.environ.items() if not name.startswith(CLUSTER_PREFIXES)
    }
    done = subprocess.run(
        [sys.executable, "-m", "bcl_ray", "doctor", *options],
        env={**bare, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def silent():
    """The address of a server that accepts, and never says anything."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def answering():
    """A function: the address of a server that answers everything alike."""
    servers = []

    def start(status: int, body: str) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_check_that_never_ends_is_abandoned():
    begun = time.monotonic()
    finding = run_check("disk", "here", lambda: time.sleep(60) or "", seconds=0.2)
    assert time.monotonic() - begun < 5
    assert finding == Finding(
        "disk", "here", False, "no answer within 0.2 s: is it overloaded, or its network blocked?"
    )


def test_an_unexpected_error_is_shown_with_its_type():
    finding = run_check("disk", "here", lambda: str({}["gone"]))
    assert (finding.good, finding.text) == (False, "KeyError: 'gone'")


def test_equal_findings_of_nodes_are_one_line_and_problems_name_their_nodes():
    good = [Finding("disk", name, True, "fine") for name in ("a", "b", "c")]
    bad = [Finding("S3", name, False, "denied") for name in ("a", "b")]
    alone = Finding("S3", "c", False, "gone")
    assert list(merge([*good, *bad, alone])) == [
        Finding("disk", "3 nodes", True, "fine"),
        Finding("S3", "2 nodes", False, "denied (on a, b)"),
        alone,
    ]


def test_a_full_disk_is_reported(monkeypatch, tmp_path):
    usage = (1000 * machine.GIB, 960 * machine.GIB, 40 * machine.GIB)
    monkeypatch.setattr(
        machine.shutil, "disk_usage", lambda _: machine.shutil._ntuple_diskusage(*usage)
    )
    with pytest.raises(OSError, match=r"40 of 1000 GiB free in .*: Ray stores nothing below 5%"):
        machine.check_disk(tmp_path)


def test_shared_memory_smaller_than_the_store_is_reported():
    with pytest.raises(OSError, match="start the container with --shm-size"):
        machine.check_shared_memory(object_store_bytes=2.0**60)
    assert "GiB free in /dev/shm" in machine.check_shared_memory(object_store_bytes=0)


@pytest.mark.parametrize(("seen", "promised"), [(2, 0.0), (0, 1.0)])
def test_a_wrong_number_of_gpus_in_ray_is_reported(monkeypatch, seen, promised):
    monkeypatch.setattr(gpus, "query_driver", lambda: gpus.DriverReport(seen))
    with pytest.raises(ValueError, match=f"nvidia-smi sees {seen}, and Ray counts {promised:g}: "):
        gpus.check_gpus(promised)


HEADER = "| NVIDIA-SMI 570.86  Driver Version: 570.86.15  CUDA Version: 12.8 |"


def test_the_driver_is_read_from_nvidia_smi(monkeypatch, tmp_path):
    command = tmp_path / "nvidia-smi"
    listed = "echo 'GPU 0: A (UUID: x)'; echo 'GPU 1: A (UUID: y)'"
    command.write_text(f"#!/bin/sh\nif [ \"$1\" = -L ]; then {listed}; else echo '{HEADER}'; fi\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus.query_driver() == gpus.DriverReport(2, "570.86.15", "12.8")
    command.write_text("#!/bin/sh\necho no driver\nexit 9\n")
    with pytest.raises(OSError, match="nvidia-smi fails: no driver"):
        gpus.query_driver()


def test_a_driver_that_hangs_is_named_and_leaves_time_for_every_part_of_the_check(
    monkeypatch, tmp_path
):
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\nexec /bin/sleep 30\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.TIME_LIMITS["GPUs"] >= 2 * gpus.DRIVER_SECONDS + gpus.TORCH_SECONDS
    assert machine.TIME_LIMITS["GPUs"] + 20 <= nodes.TASK_SECONDS, "and for the start of a task"
    monkeypatch.setattr(gpus, "DRIVER_SECONDS", 0.2)
    with pytest.raises(OSError, match=r"gives no answer within 0\.2 s: does the driver hang\?"):
        gpus.query_driver()


GOOD = gpus.DriverReport(2, "580.65", "13.0")


@pytest.mark.parametrize(
    ("driver", "seen", "message"),
    [
        (
            GOOD,
            gpus.TorchReport("2.9+cpu", None),
            "2 there, and PyTorch 2.9.cpu is built for CPUs: ins",
        ),
        (
            gpus.DriverReport(2, "570.86", "12.8"),
            gpus.TorchReport("2.9", "13.0", problem="The NVIDIA driver on your system is too old"),
            r"driver 570.86 runs CUDA up to 12.8, and PyTorch 2.9 is built for CUDA 13.0: install "
            r"driver 580 or later, or a PyTorch for CUDA 12$",
        ),
        (
            GOOD,
            gpus.TorchReport("2.9", "13.0", problem="device lost"),
            r"cannot use them \(device lost\)",
        ),
        (
            GOOD,
            gpus.TorchReport("2.9", "13.0", ["L4"]),
            "nvidia-smi sees 2, and PyTorch 1: look at CUDA_",
        ),
    ],
)
def test_a_driver_and_a_pytorch_that_do_not_fit_together_are_reported(driver, seen, message):
    with pytest.raises(ValueError, match=message):
        gpus.compare(driver, seen)


@pytest.mark.parametrize("cuda", ["13.0", "13.3", "12.4", ""])
def test_a_driver_runs_older_versions_of_cuda_and_newer_ones_of_its_own(cuda):
    seen = gpus.TorchReport("2.9", cuda or "13.0", ["L4", "L4"])
    driver = GOOD if cuda else gpus.DriverReport(2)
    assert gpus.compare(driver, seen).startswith("2 L4; driver ")


@pytest.mark.slow
def test_pytorch_runs_in_a_process_from_which_ray_hides_no_gpus(monkeypatch):
    """On a machine without a GPU, it reports the reason."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    seen = gpus.query_torch()
    assert (seen.torch, seen.cuda) == (torch.__version__, torch.version.cuda)
    assert len(seen.names) == torch.cuda.device_count()
    if seen.cuda is not None and not seen.names:
        assert "NVIDIA" in seen.problem


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (403, "Invalid Host header - possible", "with --allowed-hosts 127.0.0.1:{port}"),
        (401, "who?", r"\(401\): set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        (404, "nothing", "answers 404 to a request of MLflow's API: is it an MLflow server"),
        (200, "<html>", "answers, but is no MLflow server"),
    ],
    ids=["host", "user", "other", "page"],
)
def test_errors_of_mlflow_are_explained(answering, status, body, message):
    uri = answering(status, body)
    with pytest.raises((OSError, ValueError), match=message.format(port=uri.rpartition(":")[2])):
        machine.check_tracking_server(uri)


def test_an_mlflow_address_with_a_password_is_not_shown():
    with pytest.raises(ValueError, match="without user or password") as refused:
        machine.check_tracking_server("http://me:secret@host")
    assert "secret" not in str(refused.value)


def test_without_a_cluster_only_this_machine_is_checked():
    status, output = doctor()
    assert [line.split()[1:3] for line in output.splitlines()] == [
        ["versions", "here"],
        ["disk", "here"],
        ["memory", "here"],
        ["GPUs", "here"],
        ["HOME", "here"],
        ["TMPDIR", "here"],
    ]
    assert status == (1 if "✗" in output else 0)


@pytest.mark.ray
def test_a_password_in_the_cluster_s_address_is_not_shown():
    status, output = doctor(RAY_ADDRESS="https://me:hunter2@127.0.0.1:1")
    assert status == 2
    assert "RAY_ADDRESS holds a user name or a password" in output
    assert "hunter2" not in output


@pytest.mark.slow
def test_servers_that_never_answer_do_not_delay_it(silent):
    begun = time.monotonic()
    status, output = doctor(
        *("--store", "s3://bucket/folder", "--mlflow", silent, "--address", silent),
        AWS_ENDPOINT_URL=silent,
        AWS_ACCESS_KEY_ID="a",
        AWS_SECRET_ACCESS_KEY="b",  # noqa: S106
    )
    assert time.monotonic() - begun < 60  # two of 15 s, on a machine that has other work
    assert status == 1
    wrong = {line.split()[1]: line for line in output.splitlines() if line.startswith("✗")}
    assert {"S3", "MLflow", "dashboard"} <= set(wrong)
    assert f"{silent} does not answer (timed out): is it up" in wrong["MLflow"]


@pytest.mark.ray
@pytest.mark.slow
def test_a_healthy_cluster_has_no_problems(local_cluster):
    status, output = doctor(**local_cluster.environment())
    assert status == 0, output
    lines = [line.split() for line in output.splitlines()]
    findings = {(subject, where) for _, subject, where, *_ in lines}
    cluster = {"dashboard", "token", "versions", "State", "jobs"}
    assert {(subject, "cluster") for subject in cluster - {"State"}} <= findings
    assert "4 nodes, 6 CPUs, 0 GPUs" in output
    assert ("S3", "here") in findings
    merged_lines = [line for line in output.splitlines() if " 4 nodes " in line]
    assert [line.split()[1] for line in merged_lines] == [
        "versions",
        "memory",
        "GPUs",
        "S3",
        "MLflow",
    ]
    assert local_cluster.environment()["AWS_SECRET_ACCESS_KEY"] not in output


@pytest.mark.ray
@pytest.mark.slow
def test_a_wrong_token_and_a_wrong_key_are_reported(local_cluster, tmp_path):
    token = tmp_path / "token"
    token.write_text("0" * 64)
    environment = {
        **local_cluster.environment(),
        "RAY_AUTH_TOKEN_PATH": str(token),
        "AWS_SECRET_ACCESS_KEY": "f" * 40,
    }
    status, output = doctor(**environment)
    assert status == 1
    wrong = {line.split()[1]: line for line in output.splitlines() if line.startswith("✗")}
    assert set(wrong) == {"dashboard", "S3"}
    assert f"does not accept the token of {token} (403)" in wrong["dashboard"]
    assert "ffff" not in output
