"""The MLflow server of a local cluster, where it asks who wants something."""

import contextlib
import json
import stat
import urllib.error
import urllib.request
from functools import partial

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from bcl_ray.machine.waiting import answers
from bcl_ray.ops.doctor.machine import check_tracking_server
from bcl_ray.ops.local import tracking_server
from bcl_ray.ops.local.ports import LOOPBACK
from bcl_ray.ops.local.processes import Processes
from bcl_ray.ops.local.ray_commands import machine_environment
from bcl_ray.ops.local.tracking_server import Accounts
from bcl_ray.runs import run_folder
from bcl_ray.runs.checkpoint import load
from bcl_ray.tracking import mlflow_model, mlflow_server
from bcl_ray.tracking.registry import register, resolve
from tests.s3_servers import free_block
from tests.tracked import (
    PATIENCE,
    begin,
    experiment_in,
    final_checkpoint,
    found,
    record_of,
    start,
    steps_of,
    tracker_of,
)


@pytest.fixture(scope="module")
def protected(tmp_path_factory):
    """Address of a server that asks, and the account that it knows."""
    folder = tmp_path_factory.mktemp("protected")
    processes, accounts = Processes(folder / "processes"), Accounts(folder / "mlflow")
    port = free_block(1)
    database = tracking_server.sqlite(folder / "mlflow")
    environment = machine_environment() | tracking_server.environment(database)
    command = tracking_server.command(port, str(folder / "artifacts"), auth=True)
    processes.start("mlflow", command, environment | accounts.server(database))
    try:
        processes.wait("mlflow", partial(answers, LOOPBACK, port), PATIENCE)
        accounts.ensure_client(f"http://{LOOPBACK}:{port}")
        yield f"http://{LOOPBACK}:{port}", accounts
    finally:
        processes.kill("mlflow")


@pytest.fixture(autouse=True)
def nobody(monkeypatch):
    for name in ("URI", "USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)


@contextlib.contextmanager
def as_account(monkeypatch, name, password):
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_USERNAME", name)
        patch.setenv("MLFLOW_TRACKING_PASSWORD", password)
        yield


def status_of(url):
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310  (loopback)
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_clients_without_credentials_are_refused(protected, monkeypatch):
    uri, accounts = protected
    for path in ("", "/api/2.0/mlflow/experiments/search?max_results=1", "/graphql"):
        assert status_of(uri + path) == 401, path
    assert status_of(f"{uri}/health") == 200, "Kubernetes asks without a password"
    with pytest.raises(OSError, match=r"asks for a login \(401\): set MLFLOW_TRACKING_USER"):
        check_tracking_server(uri)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", mlflow_server.ADMIN)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "password1234")  # MLflow's own, once
    with pytest.raises(OSError, match=r"\(401\)"):
        check_tracking_server(uri)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", accounts.client()["MLFLOW_TRACKING_PASSWORD"])
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", tracking_server.USER)
    assert check_tracking_server(uri).startswith(uri)


def test_passwords_are_for_their_owner_alone(protected):
    _, accounts = protected
    for name in ("password", "client_password"):
        password = (accounts.folder / name).read_text()
        holding = [
            file
            for file in accounts.folder.rglob("*")
            if file.is_file() and password.encode() in file.read_bytes()
        ]
        assert [file.name for file in holding] == [name]
        assert stat.S_IMODE(holding[0].stat().st_mode) == 0o600
    password = accounts.client()["MLFLOW_TRACKING_PASSWORD"]
    assert Accounts(accounts.folder).client()["MLFLOW_TRACKING_PASSWORD"] == password, "it is kept"


def test_a_client_owns_what_it_creates_and_no_more(protected, monkeypatch):
    """Its own experiments, but neither those of others nor accounts."""
    uri, accounts = protected
    with as_account(monkeypatch, mlflow_server.ADMIN, (accounts.folder / "password").read_text()):
        assert mlflow_server.ensure_account(uri, "anna", "a long enough password")
        assert not mlflow_server.ensure_account(uri, "anna", "another long password")
        with pytest.raises(OSError, match="did not create account 'eve': INVALID_PARAMETER"):
            mlflow_server.ensure_account(uri, "eve", "short")
    client = MlflowClient(uri)
    with as_account(monkeypatch, *accounts.client().values()):
        ours = client.create_run(client.create_experiment("ours")).info.run_id
        client.log_metric(ours, "a", 1.0)
        with pytest.raises(OSError, match=r"did not create account 'eve': .*Permission denied"):
            mlflow_server.ensure_account(uri, "eve", "a long enough password")
    with (
        as_account(monkeypatch, "anna", "a long enough password"),
        pytest.raises(MlflowException, match=r"not authenticated|401"),
    ):
        client.get_run(ours)
    with as_account(monkeypatch, "anna", "another long password"):
        assert client.get_run(ours).data.metrics == {"a": 1.0}
        for change in (client.delete_run, lambda run: client.log_metric(run, "a", 2.0)):
            with pytest.raises(MlflowException, match="Permission denied"):
                change(ours)


def test_a_run_is_tracked_and_its_model_registered_with_the_password(
    protected, tmp_path, monkeypatch
):
    uri, accounts = protected
    # Exporting a network takes seconds, and is tested elsewhere.
    monkeypatch.setattr(mlflow_model, "_export", lambda source, target, about: target.mkdir())
    experiment = experiment_in(tmp_path / "runs", f"tracking.uri={uri}")
    run = begin(experiment)
    record = {**record_of(0), "accuracy/all": 70.0}
    folder, _ = final_checkpoint(tmp_path / "runs" / "first" / "best_1", experiment, [record])
    with tracker_of(run, experiment) as tracker:
        start(tracker, experiment)
        tracker.metrics(record, 0)
        assert not tracker.finish("FINISHED", 3)
        assert "401" in (tracker.problem or ""), "the run ends all the same"
    for name, value in accounts.client().items():
        monkeypatch.setenv(name, value)
    with tracker_of(run, experiment) as tracker:
        assert tracker.finish("FINISHED", PATIENCE), tracker.problem
    client, recorded = found(experiment, run)
    assert steps_of(client, recorded.info.run_id) == [0]
    register(run, str(folder), load(folder), "digits", alias="champion")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert resolve("models:/digits@champion") == (run.uri, str(folder))
    version = MlflowClient(uri).get_model_version_by_alias("digits", "champion")
    assert version.run_id == recorded.info.run_id
    journal = (run_folder.local_folder(run) / "journal.jsonl").read_text()
    assert accounts.client()["MLFLOW_TRACKING_PASSWORD"] not in journal
    assert accounts.client()["MLFLOW_TRACKING_PASSWORD"] not in json.dumps(recorded.to_dictionary())
