"""What is checked before a job is sent; commands that stop before they reach a cluster."""

import json
import re
import subprocess
import sys
import time

import pytest

from bcl_ray.cli import main, submit
from bcl_ray.machine.versions import (
    check_same_versions,
    client_versions,
    git_commit,
)
from bcl_ray.ops.jobs import checks, request

pytestmark = pytest.mark.ray  # Ray's client is imported, though no Ray is started

CLUSTER = "http://head.example:8265"
REMOTE = ("data.path=s3://bucket/shards", "tracking.runs=s3://bucket/runs")


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", CLUSTER)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def unseen(monkeypatch):
    """Object storage that cannot be reached from here."""

    def fail(uri):
        raise OSError(f"{uri}: no route")

    monkeypatch.setattr(checks, "read_manifest", fail)
    monkeypatch.setattr(checks.run_folder, "open_run", fail)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    target = tmp_path_factory.mktemp("shards") / "digits"
    command = [sys.executable, "-m", "bcl_ray", "shard", "digits", str(target)]
    subprocess.run(command, check=True, capture_output=True)
    return target


def request_for(kind: str, *words: str, address: str = CLUSTER) -> request.JobRequest:
    return submit._request(kind, words, address)


def test_a_run_without_a_name_gets_the_name_of_its_job(unseen):
    job = request_for("train", "cifar10_lt", *REMOTE, "train.epochs=2")
    assert re.fullmatch(r"cifar10_lt-\d{4}-\d{6}", job.name)
    assert job.words == ("cifar10_lt", *REMOTE, "train.epochs=2", f"tracking.run={job.name}")
    assert job.metadata["run"] == f"s3://bucket/runs/{job.name}"
    assert job.metadata["recipe"] == "cifar10_lt"
    assert job.notes == (
        "data not checked from here (s3://bucket/shards: no route); the job will check them",
    )


def test_a_run_keeps_its_name_and_the_job_adds_the_time(unseen):
    job = request_for("train", "cifar10_lt", *REMOTE, "tracking.run=mine")
    assert re.fullmatch(r"mine-\d{4}-\d{6}", job.name)
    assert job.words == ("cifar10_lt", *REMOTE, "tracking.run=mine")
    assert job.metadata["run"] == "s3://bucket/runs/mine"


def test_a_resumed_run_keeps_its_folder(unseen):
    job = request_for(
        "train", "--resume", "mine", "tracking.runs=s3://bucket/runs", "scale.workers=1"
    )
    assert re.fullmatch(r"mine-\d{4}-\d{6}", job.name)
    assert job.words == ("--resume", "mine", "tracking.runs=s3://bucket/runs", "scale.workers=1")
    assert job.metadata["run"] == "s3://bucket/runs/mine"


def test_shard_and_evaluate_are_named_by_what_they_do():
    job = request_for("shard", "cifar10", "s3://bucket/shards", "--seed", "3")
    assert re.fullmatch(r"shard-cifar10-\d{4}-\d{6}", job.name)
    assert job.words == ("cifar10", "s3://bucket/shards", "--seed", "3")
    job = request_for(
        "evaluate", "first", "s3://b/runs/other", "--best", "--runs", "s3://bucket/runs"
    )
    assert re.fullmatch(r"evaluate-first-\d{4}-\d{6}", job.name)
    words = ("models:/digits@champion", "s3://bucket/new/images/", "s3://bucket/labels", "--csv")
    job = request_for("predict", *words)
    assert re.fullmatch(r"predict-images-\d{4}-\d{6}", job.name)
    assert job.words == words
    assert job.metadata["output"] == "s3://bucket/labels"


def test_a_record_has_the_commit_the_versions_and_the_data_s_fingerprint(digits):
    job = request_for("train", "digits_lt", f"data.path=file://{digits}", "tracking.runs=file:///r")
    manifest = json.loads((digits / "manifest.json").read_text())
    assert job.metadata["data.fingerprint"] == manifest["fingerprint"]
    assert job.metadata["version.ray"] == client_versions()["Ray"]
    assert job.metadata.get("git.commit") == git_commit(submit_root())
    assert job.notes == ()


def submit_root():
    from pathlib import Path

    import bcl_ray

    return Path(bcl_ray.__file__).parents[1]


def test_data_that_can_be_read_are_checked_against_the_experiment(digits):
    words = (f"data.path=file://{digits}", "tracking.runs=file:///r")
    with pytest.raises(ValueError, match="is more than the training split has rows"):
        request_for("train", "digits_lt", *words, "optim.global_batch_size=8192")


def test_options_that_follow_from_the_backbone_are_checked_like_others(digits):
    pytest.importorskip("timm")
    words = (f"data.path=file://{digits}", "tracking.runs=file:///r")
    assert request_for("train", "finetune", *words).metadata["data.fingerprint"]
    with pytest.raises(ValueError, match="is more than the training split has rows"):
        request_for("train", "finetune", *words, "optim.global_batch_size=8192")


def test_without_timm_the_job_checks_what_follows_from_the_backbone(digits, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    job = request_for("train", "finetune", f"data.path=file://{digits}", "tracking.runs=file:///r")
    assert "needs timm" in job.notes[0]


def test_a_folder_that_only_the_nodes_mount_is_left_to_the_job():
    job = request_for("train", "digits_lt", "data.path=file:///gone", "tracking.runs=file:///r")
    assert "data.fingerprint" not in job.metadata
    assert job.notes == ("data not checked from here; the job will check them",)


def test_a_bucket_without_data_is_refused_before_anything_is_sent(monkeypatch):
    monkeypatch.setattr(
        checks, "read_manifest", lambda uri: (_ for _ in ()).throw(ValueError("no"))
    )
    with pytest.raises(ValueError, match="no"):
        request_for("train", "cifar10_lt", *REMOTE)


def test_storage_that_never_answers_does_not_delay_a_job(monkeypatch):
    monkeypatch.setattr(checks, "CHECK_SECONDS", 0.2)
    monkeypatch.setattr(checks, "read_manifest", lambda uri: time.sleep(30))
    begun = time.monotonic()
    assert request_for("train", "cifar10_lt", *REMOTE).notes
    assert time.monotonic() - begun < 5


def test_a_run_that_is_not_checked_in_time_is_left_to_the_job_with_a_note(monkeypatch):
    monkeypatch.setattr(checks, "CHECK_SECONDS", 0.2)
    monkeypatch.setattr(checks.run_folder, "open_run", lambda uri: time.sleep(30))
    job = request_for("train", "--resume", "mine", "tracking.runs=s3://bucket/runs")
    assert job.notes[0].startswith("run not checked from here (no answer within 0.2")


def test_a_run_in_a_folder_that_only_the_nodes_mount_is_left_to_the_job_with_a_note():
    job = request_for("train", "--resume", "mine", "tracking.runs=file:///gone")
    assert job.notes == ("run not checked from here; the job will check it",)


def test_the_tracking_server_of_this_environment_is_passed_to_the_job(unseen, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example")
    assert (
        "tracking.uri=https://mlflow.example" in request_for("train", "cifar10_lt", *REMOTE).words
    )
    own = request_for("train", "cifar10_lt", *REMOTE, "tracking.uri=http://other:5000").words
    assert [word for word in own if "uri=" in word] == ["tracking.uri=http://other:5000"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    near = request_for("train", "cifar10_lt", *REMOTE, address="http://localhost:8265")
    assert "tracking.uri=http://127.0.0.1:5000" in near.words


HERE = "is a path of this machine, which a cluster does not see: use a URI"
MISTAKES = [
    ("train cifar10_lt tracking.runs=s3://b/r", f"data.path (data/cifar10_lt) {HERE}"),
    ("train cifar10_lt data.path=s3://b/d", f"tracking.runs (runs) {HERE}"),
    ("train cifar10_lt {remote} model.weights=w.pt", f"model.weights (w.pt) {HERE}"),
    ("train cifar10lt", "'cifar10lt' is no recipe and no .yaml file: did you mean"),
    ("train cifar10_lt loss.temprature=1", "no option 'loss.temprature'"),
    ("train", "train needs a recipe's name or a YAML file, or --resume RUN"),
    ("train --resume mine", f"--resume (runs/mine) {HERE}"),
    ("train cifar10_lt {remote} tracking.uri=sqlite:///x.db", "tracking.uri (sqlite:///x.db) is a"),
    (
        "train cifar10_lt {remote} tracking.uri=http://localhost:5000",
        "tracking.uri (http://localhost:5000) is a server of this machine, and the cluster is not",
    ),
    ("evaluate mine", f"MODEL (runs) {HERE}"),
    ("predict mine s3://b/x s3://b/y", f"MODEL (runs) {HERE}"),
    ("predict models:/m@champion x s3://b/y", f"INPUT (x) {HERE}"),
    ("predict s3://b/r/mine s3://b/x y", f"OUTPUT (y) {HERE}"),
    ("evaluate s3://b/r/mine --data data/x", f"--data (data/x) {HERE}"),
    ("shard digits data/x", f"the target (data/x) {HERE}"),
    ("shard folder s3://b/x --from images", f"--from (images) {HERE}"),
    ("shard digits s3://b/AKIAIOSFODNN7EXAMPLE", "argument 2 of shard holds what looks like a"),
    ("shard digits s3://b/x --address auto", "--address is 'auto', and jobs go to the dashboard"),
]


@pytest.mark.parametrize(("command", "message"), MISTAKES, ids=[command for command, _ in MISTAKES])
def test_a_mistake_is_one_line_and_nothing_is_sent(monkeypatch, capsys, unseen, command, message):
    words = command.format(remote=" ".join(REMOTE)).split()
    monkeypatch.setattr(sys, "argv", ["bcl-ray", "submit", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "")
    assert err.startswith(f"bcl-ray: {message}")
    assert err.count("\n") == 1


def test_a_command_that_does_not_parse_here_is_not_sent(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bcl-ray", "submit", "shard", "nonsense", "s3://b/x"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "'nonsense' is not one of" in capsys.readouterr().err


def test_versions_that_differ_are_refused_with_both_named():
    check_same_versions({"bcl_ray": "1", "Python": "3.11"}, {"bcl_ray": "1"})
    with pytest.raises(ValueError) as error:  # noqa: PT011
        check_same_versions(
            {"bcl_ray": "1", "Python": "3.11", "Ray": "2"}, {"Python": "3.12", "Ray": "3"}
        )
    assert str(error.value) == (
        "job refused: Python 3.11 submitted it, and the cluster has 3.12; Ray 2 submitted it, and "
        "the cluster has 3: install the cluster's versions where you submit (`--with-code` sends "
        "your bcl_ray along)"
    )


def test_a_job_of_a_client_with_the_same_versions_is_accepted():
    check_same_versions(json.loads(json.dumps(client_versions())), client_versions())


def test_a_job_s_entry_point_refuses_another_client_with_exit_status_2():
    entry = submit_root() / "jobs" / "train.py"
    done = subprocess.run(
        [sys.executable, entry, "digits_lt"],
        capture_output=True,
        text=True,
        check=False,
        env={
            "BCL_RAY_CLIENT": json.dumps({**client_versions(), "bcl_ray": "9.9.9"}),
            "PYTHONPATH": str(submit_root()),
        },
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.match(
        r"bcl-ray: job refused: bcl_ray 9\.9\.9 submitted it, and the cluster has \d", done.stderr
    )
