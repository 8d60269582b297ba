"""The image's recipe and the scripts on every node: linted, and run against real processes."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from tests.cluster.conftest import ROOT

NODE = ROOT / "cluster" / "node"
SCRIPTS = [
    *sorted(NODE.glob("*.sh")),
    ROOT / "cluster" / "slurm" / "train.sbatch",
    ROOT / "tests" / "cluster" / "image.sh",
]
BIN = Path(sys.executable).parent


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_shellcheck_finds_nothing(script):
    done = subprocess.run([BIN / "shellcheck", script], capture_output=True, text=True, check=False)
    assert done.stdout + done.stderr == ""


def test_hadolint_finds_nothing():
    done = subprocess.run(
        [BIN / "hadolint", ROOT / "cluster" / "Dockerfile"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout + done.stderr == ""


def test_the_linters_find_something_where_there_is_something(tmp_path):
    (tmp_path / "bad.sh").write_text("#!/bin/sh\nrm $1/*\n")
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN cd /x && pip install ray\n")
    for command in ("shellcheck bad.sh", "hadolint Dockerfile"):
        tool, file = command.split()
        assert (
            subprocess.run(
                [BIN / tool, tmp_path / file], capture_output=True, check=False
            ).returncode
            == 1
        )


def test_the_image_copies_only_what_exists_and_installs_by_the_constraints():
    lines = (ROOT / "cluster" / "Dockerfile").read_text().splitlines()
    copied = [
        word
        for line in lines
        if line.startswith("COPY") and "--from" not in line
        for word in line.split()[1:-1]
        if not word.startswith("--")
    ]
    assert copied
    assert [word for word in copied if not (ROOT / word).exists()] == []
    kept = (ROOT / "cluster" / "Dockerfile.dockerignore").read_text()
    assert [word for word in copied if f"!{'/'.join(word.split('/')[:2])}" not in kept] == []
    assert lines.count("USER 1000:1000") == 1


def run(script, *arguments, tools, folder, **environment):
    """Run a node's script with stand-ins for some programs in front of its path."""
    # Only this test's Train workers, whatever else runs here.
    own = folder / script
    own.write_text((NODE / script).read_text().replace("[r]ay::RayTrainWorker", f"{folder}/worker"))
    for name, text in tools.items():
        file = folder / name
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)
    begun = time.monotonic()
    done = subprocess.run(
        ["bash", own, *arguments],
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", **environment},
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    return done, time.monotonic() - begun


@pytest.mark.slow
def test_leaving_tells_ray_how_long_it_has_and_waits_for_train_workers(tmp_path):
    worker = subprocess.Popen(["bash", "-c", f"exec -a {tmp_path}/worker sleep 3"])
    told = f'echo "$@" >{tmp_path}/told'
    try:
        done, seconds = run(
            "leave.sh", "20", tools={"ray": told}, folder=tmp_path, RAY_ADDRESS="h:1"
        )
    finally:
        worker.kill()
        worker.wait()
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "told").read_text() == (
        "drain-node --address h:1 --reason DRAIN_NODE_REASON_PREEMPTION "
        "--reason-message the node is ending --deadline-remaining-seconds 20\n"
    )
    assert 2 < seconds < 15


def test_leaving_a_ray_that_is_gone_is_said_and_does_not_hang(tmp_path):
    done, seconds = run("leave.sh", "1", tools={"ray": "exit 1"}, folder=tmp_path)
    assert done.returncode == 0
    assert "Ray was not told: 1" in done.stderr
    assert seconds < 10


class Dashboard(BaseHTTPRequestHandler):
    """Ray's Jobs API: a job that takes a second to stop, one that is over, and a driver."""

    stopped: ClassVar = []

    def do_GET(self):
        assert self.path == "/api/jobs/"
        done = self.stopped and time.monotonic() - self.stopped[0][1] > 1
        jobs = [
            {"submission_id": "a", "status": "STOPPED" if done else "RUNNING"},
            {"submission_id": "b", "status": "FAILED"},
            {"submission_id": None, "status": "RUNNING"},
        ]
        self.reply(jobs)

    def do_POST(self):
        self.stopped.append((self.path, time.monotonic()))
        self.reply({"stopped": True})

    def reply(self, content):
        assert self.headers["Authorization"] == "Bearer secret"
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def stop_jobs(address):
    environment = {**os.environ, "BCL_RAY_DASHBOARD": address, "RAY_AUTH_TOKEN": "secret"}
    begun = time.monotonic()
    done = subprocess.run(
        [NODE / "stop-jobs.py", "20"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    return done, time.monotonic() - begun


@pytest.mark.slow
def test_a_head_that_ends_stops_its_jobs_once_and_waits_for_them():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Dashboard)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        done, seconds = stop_jobs(f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()
    assert (done.returncode, done.stderr) == (0, "")
    assert [path for path, _ in Dashboard.stopped] == ["/api/jobs/a/stop"]
    assert 1 < seconds < 15


def test_a_head_whose_ray_is_gone_ends_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        done, seconds = stop_jobs(f"http://127.0.0.1:{free.getsockname()[1]}")
    assert done.returncode == 0
    assert "jobs were not stopped: <urlopen error [Errno 111] Connection refused>" in done.stderr
    assert seconds < 10


class Metadata(BaseHTTPRequestHandler):
    """EC2's metadata service, which calls the instance back at the third question."""

    asked = 0

    def do_PUT(self):
        self.answer(200, b"token")

    def do_GET(self):
        assert self.headers["X-aws-ec2-metadata-token"] == "token"
        assert self.path == "/latest/meta-data/spot/instance-action"
        type(self).asked += 1
        self.answer(404 if self.asked < 3 else 200, b"{}")

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_a_spot_instance_that_is_called_back_leaves(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        done, _ = run(
            "watch-spot.sh",
            "100",
            tools={"bcl-ray-leave": 'echo "leaving in $1"'},
            folder=tmp_path,
            BCL_RAY_METADATA=f"http://127.0.0.1:{server.server_port}",
            BCL_RAY_PAUSE="0.1",
        )
    finally:
        server.shutdown()
    assert done.stdout == "this spot instance is called back\nleaving in 100\n"
    assert Metadata.asked == 3
