"""Jobs on a real Ray head with dashboard and token, through the command line."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bcl_ray.machine.versions import client_versions
from bcl_ray.ops.jobs import request
from bcl_ray.ops.jobs.client import JobClient
from bcl_ray.ops.jobs.package import Package, pack
from bcl_ray.ops.jobs.request import new_request

pytestmark = [pytest.mark.ray, pytest.mark.slow]

BIN = Path(sys.executable).parent
SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


class Head:
    """The local cluster, as a person at a terminal with its environment uses it."""

    def __init__(self, cluster, folder: Path) -> None:
        self.folder, self.own = folder, cluster.environment()
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "BCL_RAY_"))},
            **self.own,
        }
        self.address, self.store = self.own["RAY_ADDRESS"], self.own["BCL_RAY_STORE"]
        self.runs = f"{self.store}/jobs/runs"
        self.nodes = set(cluster.nodes())

    def begin(self, *words: str, **extra: str) -> subprocess.Popen:
        """Start a command of the command line, as a person with S3 credentials would."""
        return subprocess.Popen(
            [BIN / "bcl-ray", *words],
            env={**self.environment, **extra},
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, **extra: str) -> tuple[int, str, str]:
        process = self.begin(*words, **extra)
        out, err = process.communicate(timeout=280)
        return process.returncode, out, err

    def records(self) -> str:
        """All that the cluster tells of its jobs, their logs and packages' names included."""
        cluster = JobClient(self.address)
        jobs = cluster.jobs()
        logs = [cluster.get_job_logs(job.submission_id) for job in jobs]
        return json.dumps([job.model_dump(mode="json") for job in jobs]) + "".join(logs)


@pytest.fixture(scope="module")
def head(local_cluster, tmp_path_factory):
    made = Head(local_cluster, tmp_path_factory.mktemp("here"))
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("RAY_", "BCL_RAY_"))]:
            patch.delenv(name)
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
            patch.setenv(name, made.own[name])
        patch.setenv("RAY_API_SERVER_ADDRESS", "")  # so that what the client sets is undone
        yield made


@pytest.fixture(scope="module")
def words(head):
    """Arguments of a small training."""
    data = f"{head.store}/jobs/digits"
    shape = ("--profile", "exponential", "--imbalance-factor", "50")
    status, _, err = head.run("shard", "digits", data, *shape)
    assert status == 0, err
    return (f"data.path={data}", f"tracking.runs={head.runs}", "scale.workers=1")


def tracked(head, run: str):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(head.own["MLFLOW_TRACKING_URI"])
    ids = [one.experiment_id for one in client.search_experiments()]
    [found] = client.search_runs(ids, f"attributes.run_name = '{run}'")
    return found


def sent(head, name: str, script: str) -> JobClient:
    """Send a job of one script, as `submit` sends its own."""
    file = head.folder / f"{name}.py"
    file.write_text(script)
    cluster = JobClient(head.address)
    made = new_request("train", name, (), {"run": "none"}, add_time=False)
    request.submit(cluster, made, Package({"jobs/train.py": file}, ()))
    return cluster


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.2)
    raise TimeoutError


def test_a_training_is_followed_to_its_end_as_if_it_ran_here(head, words):
    status, out, err = head.run("submit", "train", "digits_lt", *words, "train.epochs=2")
    assert (status, err) == (0, "")
    told = "the store of run"  # of a store without atomic conditional writes, as Swift
    lines = [line for line in out.splitlines() if not line.startswith(told)]
    job = re.fullmatch(rf"job      (digits_lt-\d{{4}}-\d{{6}})  on {head.address}", lines[0])[1]
    assert lines[1] == f"run      {job}  in {head.runs}/{job}"
    for begin in (
        "method   BCL",
        "data     s3://",
        "MLflow   http://",
        "page     http://",
        "1 worker started, ",
        "epoch 1/2",
        "epoch 2/2",
    ):
        assert sum(line.startswith(begin) for line in lines) == 1, begin
    assert "accuracy in per cent" in out
    assert lines[-1] == f"next: bcl-ray submit evaluate {head.runs}/{job}"
    assert "bcl_ray event" not in out
    assert "Running entrypoint" not in out
    found = tracked(head, job)
    assert found.info.status == "FINISHED"
    measured = {name.split("/")[1] for name in found.data.metrics if name.startswith("system/")}
    assert measured == head.nodes, "those that only read data, and the head, too"

    again = head.run("jobs", "logs", job)
    assert again == (0, out.partition("\n")[2], "")
    assert head.run("jobs", "logs", job, "--follow") == again

    record = JobClient(head.address).job(job).metadata
    _, shown, _ = head.run("shards", "show", f"{head.store}/jobs/digits", "--json")
    fingerprint = json.loads(shown)["fingerprint"]
    assert record["data.fingerprint"] == fingerprint
    assert record["run"] == f"{head.runs}/{job}"
    _, shown, _ = head.run("jobs", "status", job)
    for text in ("succeeded", "digits_lt", fingerprint, client_versions()["Ray"]):
        assert text in shown


def test_a_job_gets_sigint_and_longer_than_rays_own_three_seconds(head):
    script = (
        "import time\n"
        "print('here', flush=True)\n"
        "try:\n"
        "    time.sleep(600)\n"
        "except KeyboardInterrupt:\n"
        "    time.sleep(5)\n"
        "    print('last words')\n"
    )
    cluster = sent(head, "patient", script)
    wait_for(lambda: "here" in cluster.get_job_logs("patient"))
    status, out, _ = head.run("jobs", "stop", "patient")
    assert status == 0
    assert re.match(
        r"SIGINT sent; the job has 90 s to end\nlast words\njob patient stopped after \d+ s\n", out
    )


def test_a_job_that_does_not_end_is_killed_and_this_is_reported(head, monkeypatch):
    monkeypatch.setattr(request, "STOP_SECONDS", 2)
    script = (
        "import signal, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "print('here', flush=True)\n"
        "time.sleep(600)\n"
    )
    cluster = sent(head, "deaf", script)
    wait_for(lambda: "here" in cluster.get_job_logs("deaf"))
    _, out, _ = head.run("jobs", "stop", "deaf")
    assert re.search(r"job deaf stopped after \d+ s \(killed: it had not ended by itself\)", out)


def test_a_client_with_another_bcl_ray_is_refused_in_the_job_with_both_named(head, monkeypatch):
    mine = client_versions()
    monkeypatch.setattr(request, "client_versions", lambda: {**mine, "bcl_ray": "9.9.9"})
    made = new_request("evaluate", "other-version", ("file:///gone",), {}, add_time=False)
    request.submit(JobClient(head.address), made, pack("evaluate", made.words))
    status, out, err = head.run("jobs", "logs", "other-version", "--follow")
    assert status == 2
    refusal = f"bcl_ray 9.9.9 submitted it, and the cluster has {mine['bcl_ray']}"
    assert out.startswith(f"bcl-ray: job refused: {refusal}")
    assert err == (
        "bcl-ray: job other-version failed: Job entrypoint command failed with exit code 2\n"
    )


def test_the_command_of_a_job_fails_with_its_own_exit_status_and_the_code_that_was_sent(head):
    status, out, err = head.run("submit", "evaluate", "file:///gone/run", "--with-code")
    assert status == 2
    assert "bcl-ray: 'file:///gone/run' is no model" in out
    job = out.split()[1]
    assert err == f"bcl-ray: job {job} failed: Job entrypoint command failed with exit code 2\n"


def test_rays_own_submit_runs_the_same_with_plain_text(head):
    made = pack("evaluate", ["file:///gone/run"])
    made.write(head.folder / "plain")
    folder = ("--working-dir", head.folder / "plain")
    entry = ("python", "jobs/evaluate.py", "file:///gone/run")
    done = subprocess.run(
        [BIN / "ray", "job", "submit", "--address", head.address, *folder, "--", *entry],
        env=head.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "bcl-ray: 'file:///gone/run' is no model" in done.stdout + done.stderr


@pytest.mark.long
@pytest.mark.parametrize(
    ("prefix", "status"), [("", "FAILED"), (" BCL_RAY_ON_MISTAKE=stop", "STOPPED")]
)
def test_a_mistake_ends_a_rayjob_as_stopped_for_a_failed_one_is_repeated(head, prefix, status):
    cluster, name = JobClient(head.address), f"mistaken-{status.lower()}"
    entrypoint = f"env{prefix} python -m bcl_ray train digits_lt train.epoch=3"
    cluster.send(submission_id=name, entrypoint=entrypoint, metadata={"kind": "train"})
    deadline = time.monotonic() + 90
    while not cluster.get_job_status(name).is_terminal():
        assert time.monotonic() < deadline, cluster.get_job_logs(name)
        time.sleep(0.5)
    log = cluster.get_job_logs(name)
    assert cluster.get_job_status(name).value == status, log
    assert "bcl-ray: no option 'train.epoch'" in log
    assert (f"job {name} is stopped, for it would fail again in the same way" in log) == bool(
        prefix
    )


def test_a_cluster_with_other_versions_is_refused_before_anything_is_sent(head, monkeypatch):
    cluster = JobClient(head.address)
    assert cluster.versions() == {"Ray": client_versions()["Ray"], "Python": "3.11"}
    before = len(cluster.jobs())
    script = (
        "import bcl_ray.machine.versions as versions\n"
        "real = versions.client_versions\n"
        "versions.client_versions = lambda: {**real(), 'Ray': '2.59.0', 'Python': '3.9'}\n"
        "from bcl_ray.cli import main\n"
        "main('submit', 'evaluate', 's3://bucket/run')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=head.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(
        "bcl-ray: job refused: Python 3.9 submitted it, and the cluster has 3.11; Ray 2.59.0 "
        "submitted it, and the cluster has 2.60.0: install the cluster's versions"
    )
    assert len(cluster.jobs()) == before


def test_a_missing_and_a_wrong_token_are_reported(head):
    status, _, err = head.run("jobs", "list", RAY_AUTH_TOKEN="wrong")  # noqa: S106
    assert (status, "does not accept the token of RAY_AUTH_TOKEN (403)" in err) == (2, True)
    status, _, err = head.run("jobs", "list", RAY_AUTH_TOKEN_PATH="", HOME=str(head.folder))
    assert (
        status,
        "requires a token (401); token on this machine: none in RAY_AUTH_TOKEN" in err,
    ) == (2, True)


def test_the_error_for_an_unknown_job_suggests_the_nearest(head):
    sent(head, "someone-1124-1", "")
    for command in ("status", "logs", "stop"):
        status, out, err = head.run("jobs", command, "someone-1124-2")
        assert (status, out) == (2, "")
        assert "knows no job 'someone-1124-2': did you mean someone-1124-1" in err


def test_no_secret_is_in_any_record_or_log(head):
    """Last of all: everything that the tests above have sent and printed."""
    token = Path(head.own["RAY_AUTH_TOKEN_PATH"]).read_text().strip()
    records = head.records()
    assert "digits_lt" in records
    for secret in (*(head.own[name] for name in SECRETS), token):
        assert secret not in records
    _, listed, _ = head.run("jobs", "list")
    assert listed.splitlines()[0].split() == ["job", "status", "started", "took", "run"]
    assert re.search(r"^someone-1124-1 +succeeded ", listed, re.MULTILINE)
