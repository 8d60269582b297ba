import contextlib
import json
import math
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partialmethod
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
import yaml
from mlflow import MlflowClient
from mlflow.models import Model
from sqlalchemy import make_url

from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.method.model import Classifier
from bcl_ray.runs import checkpoint, run_folder
from bcl_ray.tracking import connection, journal, mlflow_model, mlflow_run, mlflow_server
from bcl_ray.tracking.connection import sqlite_file, tracking_uri
from bcl_ray.tracking.journal import Subject
from bcl_ray.tracking.tracker import Tracker
from tests.odd_names import ODD_NAMES
from tests.tracked import (
    DATA,
    FINGERPRINT,
    PATIENCE,
    begin,
    experiment_in,
    final_checkpoint,
    found,
    manifest,
    mlflow_at,
    record_of,
    start,
    steps_of,
    sync,
    tracker_of,
    wait_for,
)


class Server:
    """A real MLflow server, in a process group of its own, always at the same address."""

    def __init__(self, folder, database):
        self.folder = folder
        shutil.copy(database, folder / "server.db")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process = None

    def begin(self):
        """Start the process, without waiting for it."""
        if self.process is None:
            command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
            command += ["--host", "127.0.0.1", "--port", str(self.port)]
            command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
            command += ["--artifacts-destination", str(self.folder / "artifacts")]
            environment = os.environ | mlflow_server.SETTINGS
            with (self.folder / "server.log").open("a") as log:
                self.process = subprocess.Popen(
                    command,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    cwd=self.folder,
                    env=environment,
                )

    def up(self):
        self.begin()
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.uri}/health", timeout=5)  # noqa: S310
                return self
            time.sleep(0.1)
        raise TimeoutError((self.folder / "server.log").read_text())

    def kill(self):
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="session")
def session_server(tmp_path_factory, database):
    server = Server(tmp_path_factory.mktemp("server"), database)
    yield server
    server.kill()


@pytest.fixture
def server(session_server):
    return session_server.up()


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setattr(journal, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(journal, "LONGEST_PAUSE", 0.5)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for (
        name,
        value,
    ) in connection.SETTINGS.items():  # a Tracker sets what is not set; undone with the rest
        monkeypatch.setenv(name, value)


@pytest.fixture
def served(tmp_path, server):
    """An experiment that the real server tracks."""
    return experiment_in(tmp_path / "runs", f"tracking.uri={server.uri}")


def test_a_server_that_is_down_at_the_start_in_the_middle_and_at_the_end_misses_nothing(
    tmp_path, session_server
):
    """The first test, because the server must not have been started yet."""
    assert session_server.process is None
    experiment = experiment_in(tmp_path / "runs", f"tracking.uri={session_server.uri}")
    run, begun = begin(experiment), time.time()
    folder, _ = final_checkpoint(tmp_path / "final", experiment)
    client = MlflowClient(session_server.uri)
    tracker = tracker_of(run, experiment)
    start(tracker, experiment)
    tracker.metrics(record_of(0), 0)
    wait_for(lambda: tracker.problem)
    assert "Connection refused" in tracker.problem
    started = time.time()
    session_server.up()
    wait_for(lambda: tracker.run_id and steps_of(client, tracker.run_id) == [0])

    session_server.kill()
    tracker.metrics(record_of(1), 1)
    wait_for(lambda: tracker.problem)
    session_server.up()
    wait_for(lambda: steps_of(client, tracker.run_id) == [0, 1])

    session_server.kill()
    tracker.metrics(record_of(2), 2)
    tracker.model(str(folder))
    assert not tracker.finish("FINISHED", 0.3)
    assert tracker.problem
    ended = time.time()
    with pytest.raises(
        ValueError, match=f"MLflow at {session_server.uri} did not accept everything"
    ):
        sync(run, experiment, 0.3)
    session_server.up()
    sync(run, experiment)
    _, recorded = found(experiment, run)
    assert steps_of(client, recorded.info.run_id) == [0, 1, 2]
    assert recorded.info.run_id == tracker.run_id
    assert recorded.info.status == "FINISHED"
    assert "model.uri" in recorded.data.tags
    times = recorded.info.start_time / 1000, recorded.info.end_time / 1000
    assert begun - 0.01 <= times[0] <= started, "when it began, not when MLflow was reached"
    assert started <= times[1] <= ended, "when it ended, not when it was delivered"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "served"])
def test_mlflow_has_everything_about_a_run(request, tmp_path, kind, capfd):
    experiment = request.getfixturevalue(kind)
    run = begin(experiment)
    folder, network = final_checkpoint(tmp_path / "final", experiment)
    capfd.readouterr()
    tracker = tracker_of(run, experiment)
    start(tracker, experiment)
    for epoch in range(3):
        tracker.metrics(record_of(epoch), epoch)
    tracker.model(str(folder))
    assert tracker.finish("FINISHED", PATIENCE), tracker.problem
    assert tracker.problem is None
    printed = capfd.readouterr()
    assert "View run" not in printed.out
    assert "WARNING" not in printed.err

    client, recorded = found(experiment, run)
    assert recorded.info.run_id == tracker.run_id
    assert (recorded.info.status, recorded.info.run_name) == ("FINISHED", "first")
    where = f"#/experiments/{recorded.info.experiment_id}/runs/{recorded.info.run_id}"
    assert tracker.page == (f"{tracker.uri}/{where}" if kind == "served" else None)
    check_description(client, recorded, experiment)
    history = client.get_metric_history(tracker.run_id, "loss/total")
    assert [(one.step, one.value) for one in history] == [(0, 1.0), (1, 1 / 2), (2, 1 / 3)]
    check_model(client, recorded, experiment, network)


def check_description(client, recorded, experiment):
    run_id, data = recorded.info.run_id, recorded.data
    options = experiment.model_dump(mode="json")
    for section in ("data", "views", "model", "loss", "optim", "train", "scale", "tracking"):
        for name, value in options[section].items():
            assert data.params[f"{section}.{name}"] == str(value)
    resolved = yaml.safe_load(
        mlflow.artifacts.load_text(artifact(client, run_id, "experiment.yaml"))
    )
    assert resolved == options
    counts = mlflow.artifacts.load_text(artifact(client, run_id, "class_counts.json"))
    assert json.loads(counts) == {"a": 20, "b": 5, "ü": 3}
    tags = data.tags
    assert (tags["recipe"], tags["digest"]) == ("digits_lt", experiment.digest())
    assert (tags["data"], tags["data.fingerprint"]) == (DATA, FINGERPRINT)
    assert (
        tags["version.torch"] == torch.__version__.partition("+")[0] or "+" in tags["version.torch"]
    )
    assert tags["version.mlflow"] == mlflow.__version__
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        check=False,
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    if head.returncode == 0:
        assert tags["git.commit"].removesuffix("-dirty") == head.stdout.strip()


def artifact(client, run_id, name):
    """Local copy of a run's artifact, as a URI."""
    return Path(client.download_artifacts(run_id, name)).as_uri()


def check_model(client, recorded, experiment, network):
    logged = client.get_logged_model(recorded.data.tags["model.uri"].removeprefix("models:/"))
    assert (str(logged.status), logged.source_run_id) == ("READY", recorded.info.run_id)
    assert [one.model_id for one in recorded.outputs.model_outputs] == [logged.model_id]
    with mlflow_at(tracking_uri(experiment)):
        loaded = mlflow.pytorch.load_model(logged.model_uri)
        about = mlflow.models.get_model_info(logged.model_uri)
    assert (about.run_id, about.model_id) == (recorded.info.run_id, logged.model_id)
    assert about.signature.inputs.inputs[0].shape == (-1, 3, 8, 8)
    assert about.signature.outputs.inputs[0].shape == (-1, 3)
    assert about.saved_input_example_info["artifact_path"] == "input_example.json"
    folder = Path(logged.artifact_location.removeprefix("file://"))
    if folder.exists():  # no server in between
        example = Model.load(folder).load_input_example(folder)
        assert (example.shape, example.dtype) == ((2, 3, 8, 8), np.float32)
        served = mlflow.pyfunc.load_model(str(folder))
        np.testing.assert_allclose(
            served.predict(example), loaded(torch.tensor(example)).detach(), atol=1e-5
        )
    views = experiment.views
    own = Classifier(network, views.mean, views.std).eval()
    with torch.no_grad():
        for images in (torch.rand(size, 3, 8, 8) for size in (1, 2, 3, 65)):
            mean, std = (torch.tensor(part).view(3, 1, 1) for part in (views.mean, views.std))
            expected = network.classifier(network.embed((images - mean) / std))
            assert expected.std() > 0.1
            torch.testing.assert_close(loaded(images), expected, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(loaded(images), own(images), rtol=1e-5, atol=1e-5)


def test_a_resumed_run_is_the_same_mlflow_run_with_each_epoch_once(sqlite):
    run = begin(sqlite)
    first = tracker_of(run, sqlite)
    start(first, sqlite)
    for epoch in range(3):
        first.metrics(record_of(epoch), epoch)
    assert first.finish("FAILED", PATIENCE)
    assert found(sqlite, run)[1].info.status == "FAILED"

    again, _ = run_folder.open_run(run.uri)
    resumed = with_overrides(sqlite, ["scale.workers=1", "tracking.experiment=another"])
    second = tracker_of(again, resumed)
    start(second, resumed)
    for epoch in range(5):  # a resumed run tells its history again, with other times
        second.metrics(record_of(epoch), epoch)
    wait_for(lambda: second.run_id and steps_of(found(sqlite, run)[0], second.run_id)[-1:] == [4])
    assert found(sqlite, run)[1].info.status == "RUNNING"
    assert second.finish("FINISHED", PATIENCE), second.problem
    client, recorded = found(sqlite, run)
    assert second.run_id == first.run_id
    assert recorded.info.status == "FINISHED"
    for metric in ("loss/total", "accuracy/all", "time/epoch"):
        assert steps_of(client, second.run_id, metric) == [0, 1, 2, 3, 4]
    assert recorded.data.params["scale.workers"] == "2", "parameters are the first start's"

    sync(run, resumed)
    assert steps_of(client, second.run_id) == [0, 1, 2, 3, 4], "also after another replay"
    assert found(sqlite, run)[1].info.status == "FINISHED"


def test_metrics_that_an_epoch_gets_later_are_kept(sqlite):
    run = begin(sqlite)
    with tracker_of(run, sqlite) as tracker:
        tracker.metrics({"loss/total": 1.0}, 0)
        tracker.metrics({"loss/total": 2.0, "accuracy/all": 3.0}, 0)
        assert tracker.finish("FINISHED", PATIENCE)
    data = found(sqlite, run)[1].data
    assert data.metrics == {"loss/total": 1.0, "accuracy/all": 3.0}


@pytest.mark.slow
def test_an_answer_that_is_lost_doubles_nothing(tmp_path, sqlite, monkeypatch):
    """In each of these calls, the connection breaks after the server has done its work."""
    failed = Counter()

    def losing(name, original):
        def call(client, *args, **options):
            result = original(client, *args, **options)
            failed[name] += 1
            if failed[name] in (1, 3):
                raise ConnectionError(f"the answer to {name} was lost")
            return result

        return call

    names = ("create_experiment", "create_run", "log_batch", "log_text", "create_logged_model")
    names += ("log_model_artifacts", "finalize_logged_model", "log_outputs", "set_tag")
    names += ("log_artifact", "log_inputs")
    for name in (*names, "set_terminated", "update_run"):
        monkeypatch.setattr(MlflowClient, name, losing(name, getattr(MlflowClient, name)))
    # Exporting a network takes seconds, and is tested elsewhere.
    monkeypatch.setattr(mlflow_model, "_export", lambda source, target, about: target.mkdir())
    run = begin(sqlite)
    with tracker_of(run, sqlite) as tracker:
        start(tracker, sqlite)
        for epoch in range(3):
            tracker.metrics(record_of(epoch), epoch)
        tracker.artifact(picture(tmp_path), "figures")
        tracker.model(str(tmp_path))
        assert tracker.finish("FINISHED", PATIENCE), tracker.problem
    assert {name for name in names if not failed[name]} == set()
    check_inputs(found(sqlite, run)[1].inputs.dataset_inputs)
    client, recorded = found(sqlite, run)
    assert steps_of(client, tracker.run_id) == [0, 1, 2]
    assert len(client.search_logged_models([recorded.info.experiment_id])) == 1
    assert len(recorded.outputs.model_outputs) == 1


@pytest.mark.slow
def test_a_process_that_is_killed_loses_and_doubles_nothing(sqlite):
    run = begin(sqlite)
    script = f"""
import os, signal, time
from bcl_ray.runs import run_folder
from bcl_ray.tracking.connection import tracking_uri
from bcl_ray.tracking.tracker import Tracker, training_subject
run, experiment = run_folder.open_run({run.uri!r})
folder = run_folder.local_folder(run)
tracker = Tracker(training_subject(run, experiment), tracking_uri(experiment), folder)
for epoch in range(50):
    tracker.metrics({{"loss/total": 1.0}}, epoch)
    if tracker.run_id is None:  # some of it reaches MLflow, some does not
        while tracker.run_id is None: time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, timeout=PATIENCE)
    assert done.returncode == -signal.SIGKILL
    sync(run, sqlite)
    client, recorded = found(sqlite, run)
    assert steps_of(client, recorded.info.run_id) == list(range(50))
    entries = journal.Journal(Path(run.uri) / "journal.jsonl").entries()
    times = [one.timestamp for one in client.get_metric_history(recorded.info.run_id, "loss/total")]
    assert times == [int(1000 * entry["time"]) for entry in entries]


def picture(folder, content="a picture"):
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "classes.png"
    file.write_text(content)
    return file


def test_artifacts_and_data_sets_are_there_once_after_any_number_of_replays(tmp_path, sqlite):
    run = begin(sqlite)
    file = picture(tmp_path / "figures")
    for content in ("first", "second"):  # a resumed run draws again, and tells its data again
        picture(file.parent, content)
        with tracker_of(run, sqlite) as tracker:
            start(tracker, sqlite)
            tracker.artifact(file, "figures")
            tracker.artifact(file)
            assert tracker.finish("FINISHED", PATIENCE), tracker.problem
    file.unlink()
    sync(run, sqlite)
    client, recorded = found(sqlite, run)
    names = [one.path for one in client.list_artifacts(tracker.run_id)]
    assert names == ["class_counts.json", "classes.png", "experiment.yaml", "figures"]
    assert [one.path for one in client.list_artifacts(tracker.run_id, "figures")] == [
        "figures/classes.png"
    ]
    kept = artifact(client, tracker.run_id, "figures/classes.png")
    assert mlflow.artifacts.load_text(kept) == "second"
    check_inputs(recorded.inputs.dataset_inputs)


def check_inputs(inputs):
    inputs = sorted(inputs, key=lambda one: one.dataset.name, reverse=True)
    assert [one.dataset.name for one in inputs] == ["digits/train", "digits/test"]
    assert [one.tags[0].value for one in inputs] == ["training", "test"]
    for one in inputs:
        assert one.dataset.digest == FINGERPRINT[:12]
        assert (one.dataset.source_type, json.loads(one.dataset.source)) == ("s3", {"uri": DATA})
        profile = json.loads(one.dataset.profile)
        assert (profile["num_rows"], profile["source"]) == (28, "by hand")
        assert profile["class_counts"] == {"a": 20, "b": 5, "ü": 3}


def test_an_artifact_that_is_gone_is_told_and_holds_up_nothing(tmp_path, sqlite):
    run = begin(sqlite)
    tracker = tracker_of(run, sqlite)
    tracker.artifact(tmp_path / "gone.png")
    tracker.metrics(record_of(0), 0)
    assert not tracker.finish("FINISHED", PATIENCE)
    assert f"{tmp_path}/gone.png was deleted before MLflow got it" in tracker.problem
    assert steps_of(found(sqlite, run)[0], tracker.run_id) == [0]


def search_of(experiment, uid="5" * 32):
    """A run that is not a training run."""
    about = Subject(uid, "a search", experiment.tracking.experiment, {"trials": "2"}, {"k": "v"})
    return Tracker(about, tracking_uri(experiment), Path(experiment.tracking.runs) / "search")


def test_names_of_classes_are_themselves_in_mlflow(sqlite):
    counts = range(len(ODD_NAMES), 0, -1)
    split = (
        manifest()
        .splits["train"]
        .model_copy(update={"class_counts": tuple(counts), "rows": sum(counts)})
    )
    update = {"class_names": tuple(ODD_NAMES), "splits": {"train": split, "test": split}}
    run = begin(sqlite)
    with tracker_of(run, sqlite) as tracker:
        tracker.start()
        tracker.describe(sqlite, manifest().model_copy(update=update))
        assert tracker.finish("FINISHED", PATIENCE), tracker.problem
    client, recorded = found(sqlite, run)
    stored = mlflow.artifacts.load_dict(f"{recorded.info.artifact_uri}/class_counts.json")
    assert stored == dict(zip(ODD_NAMES, counts, strict=True))
    for used in client.get_run(recorded.info.run_id).inputs.dataset_inputs:
        profile = json.loads(used.dataset.profile)
        assert profile["class_counts"] == stored


def test_a_run_is_below_its_parent_which_needs_no_experiment(sqlite):
    run = begin(sqlite)
    for _ in range(2):  # both are resumed
        with search_of(sqlite) as search, tracker_of(run, sqlite) as trial:
            search.start()
            start(trial, sqlite, parent="5" * 32)
            trial.metrics(record_of(0), 0)
            assert search.drain_and_stop(PATIENCE)
            assert trial.finish("FINISHED", PATIENCE), trial.problem
    client, recorded = found(sqlite, run)
    parent = client.get_run(search.run_id)
    assert recorded.data.tags["mlflow.parentRunId"] == search.run_id
    assert (parent.info.run_name, parent.data.params) == ("a search", {"trials": "2"})
    assert parent.data.tags["k"] == "v"
    assert parent.info.experiment_id == recorded.info.experiment_id
    assert len(client.search_runs([parent.info.experiment_id])) == 2


def test_a_run_whose_parent_is_not_there_yet_does_not_wait_for_it(sqlite):
    run = begin(sqlite)
    tracker = tracker_of(run, sqlite)
    start(tracker, sqlite, parent="5" * 32)
    tracker.metrics(record_of(0), 0)
    with ThreadPoolExecutor() as pool:
        ended = pool.submit(tracker.finish, "FINISHED", PATIENCE)
        waiting = "MLflow does not have the parent of this run yet"
        wait_for(lambda: waiting in (tracker.problem or ""))
        client, recorded = found(sqlite, run)
        assert recorded.info.status == "FINISHED"
        assert steps_of(client, tracker.run_id) == [0]
        with search_of(sqlite) as search:
            search.start()
            assert search.drain_and_stop(PATIENCE)
        assert ended.result()
    assert found(sqlite, run)[1].data.tags["mlflow.parentRunId"] == search.run_id


def test_tags_say_which_job_and_cluster(sqlite, monkeypatch):
    settings = {"metadata": {"job_submission_id": "job-7"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(settings))
    monkeypatch.setenv("RAY_ADDRESS", "http://head.example:8265")
    run = begin(sqlite)
    with tracker_of(run, sqlite) as tracker:
        start(tracker, sqlite)
        assert tracker.finish("FINISHED", PATIENCE)
    tags = found(sqlite, run)[1].data.tags
    assert (tags["job"], tags["cluster"]) == ("job-7", "head.example")


def test_a_server_that_swallows_every_packet_holds_nobody_up(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        experiment = experiment_in(tmp_path / "runs", f"tracking.uri={uri}")
        run = begin(experiment)
        begun = time.monotonic()
        tracker = tracker_of(run, experiment)
        start(tracker, experiment)
        for epoch in range(1000):
            tracker.metrics(record_of(epoch), epoch)
        assert not tracker.finish("FINISHED", 0.2)
        assert time.monotonic() - begun < 20, "liveness, not speed"
        assert tracker.problem == "no answer within 0.2 s"
    kinds = Counter(
        entry["kind"] for entry in journal.Journal(Path(run.uri) / "journal.jsonl").entries()
    )
    assert (kinds["metrics"], kinds["status"]) == (1000, 2)


def test_a_run_that_breaks_is_marked_failed_and_one_that_is_interrupted_killed(sqlite):
    for name, error in (("broken", RuntimeError), ("interrupted", KeyboardInterrupt)):
        run = begin(sqlite, name)
        with pytest.raises(error), tracker_of(run, sqlite):
            raise error
        assert found(sqlite, run)[1].info.status == {"broken": "FAILED"}.get(name, "KILLED")


def test_a_model_whose_folder_is_gone_is_told_and_holds_up_nothing(tmp_path, sqlite, caplog):
    run = begin(sqlite)
    tracker = tracker_of(run, sqlite)
    tracker.model(str(tmp_path / "gone"))
    tracker.metrics(record_of(0), 0)
    assert not tracker.finish("FINISHED", PATIENCE), "not everything is there"
    assert f"{tmp_path}/gone" in tracker.problem
    assert "an entry was skipped" in caplog.text
    client, recorded = found(sqlite, run)
    assert recorded.info.status == "FINISHED"
    assert steps_of(client, tracker.run_id) == [0]


@pytest.mark.slow
def test_a_model_whose_store_does_not_answer_is_handed_in_when_it_does(
    tmp_path, sqlite, monkeypatch
):
    """The checkpoint is read when the model is delivered, so that no copy is needed."""
    folder, _ = final_checkpoint(tmp_path / "last", sqlite)
    load, outages = checkpoint.load, [OSError("s3://bucket does not answer")] * 2

    def once_down(where):
        if outages:
            raise outages.pop()
        return load(where)

    monkeypatch.setattr(checkpoint, "load", once_down)
    run = begin(sqlite)
    with tracker_of(run, sqlite) as tracker:
        tracker.model(folder.as_uri())
        assert tracker.finish("FINISHED", PATIENCE), tracker.problem
    assert "model.uri" in found(sqlite, run)[1].data.tags


def test_what_mlflow_refuses_is_told_and_holds_up_nothing(sqlite):
    run = begin(sqlite)
    tracker = tracker_of(run, sqlite)
    tracker.metrics({"loss?total": 1.0}, 0)
    tracker.metrics(record_of(1), 1)
    assert not tracker.finish("FINISHED", PATIENCE)
    assert "loss?total" in tracker.problem
    client, _ = found(sqlite, run)
    assert steps_of(client, tracker.run_id) == [1]


def test_an_experiment_in_the_trash_is_named_at_once_and_filled_when_it_is_restored(sqlite):
    client = MlflowClient(tracking_uri(sqlite))
    trashed = client.create_experiment(sqlite.tracking.experiment)
    client.delete_experiment(trashed)
    run = begin(sqlite)
    tracker = tracker_of(run, sqlite)
    start(tracker, sqlite)
    assert not tracker.finish("FINISHED", patience=math.inf)
    assert tracker.problem == (
        f"MLflow's experiment '{sqlite.tracking.experiment}' is in the trash: restore it (mlflow "
        f"experiments restore --experiment-id {trashed}), or name another one "
        "(tracking.experiment=NAME)"
    )
    client.restore_experiment(trashed)
    sync(run, sqlite)
    assert [found.info.status for found in client.search_runs([trashed])] == ["FINISHED"]


@pytest.mark.parametrize("what", ["run", "experiment"])
def test_a_run_that_goes_to_the_trash_meanwhile_is_told_once(sqlite, what):
    client = MlflowClient(tracking_uri(sqlite))
    tracker = tracker_of(begin(sqlite), sqlite)
    start(tracker, sqlite)
    wait_for(lambda: tracker.run_id is not None)
    if what == "run":
        client.delete_run(tracker.run_id)
    else:
        client.delete_experiment(client.get_run(tracker.run_id).info.experiment_id)
    for epoch in range(3):
        tracker.metrics({"loss/total": 1.0}, epoch)
    assert not tracker.finish("FINISHED", patience=math.inf)
    assert "trash" in tracker.problem
    assert "restore" in tracker.problem
    assert ";" not in tracker.problem


def test_of_two_runs_of_one_identity_the_one_in_the_trash_comes_last(sqlite):
    client = MlflowClient(tracking_uri(sqlite))
    experiment = client.create_experiment("twice")
    runs = [client.create_run(experiment, 1000, {mlflow_run.UID_TAG: "u"}) for _ in range(3)]
    kept = runs.pop(1)
    for run in runs:
        client.delete_run(run.info.run_id)
    assert mlflow_run.find_run(client, "u").info.run_id == kept.info.run_id
    client.delete_run(kept.info.run_id)
    assert mlflow_run.find_run(client, "u").info.lifecycle_stage == mlflow_run.DELETED


def test_an_experiment_s_name_that_mlflow_refuses_is_told_at_once(sqlite):
    nameless = with_overrides(sqlite, ['tracking.experiment=""'])
    tracker = tracker_of(begin(nameless), nameless)
    start(tracker, nameless)
    assert not tracker.finish("FINISHED", patience=math.inf)
    assert "MLflow refuses the run: " in tracker.problem


def test_a_run_is_found_among_more_experiments_than_fit_a_page(sqlite, monkeypatch):
    run = begin(sqlite)
    assert tracker_of(run, sqlite).finish("FAILED", PATIENCE)
    client = MlflowClient(tracking_uri(sqlite))
    for number in range(3):
        client.create_experiment(f"other {number}")
    page = partialmethod(MlflowClient.search_experiments, max_results=1)
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "search_experiments", page)
        again = tracker_of(run, with_overrides(sqlite, ["tracking.experiment=other 1"]))
        assert again.finish("FINISHED", PATIENCE), again.problem
    assert found(sqlite, run)[1].info.status == "FINISHED"


@pytest.mark.slow
def test_more_metrics_than_mlflow_takes_at_once_arrive(sqlite):
    run = begin(sqlite)
    tracker = tracker_of(run, sqlite)
    tracker.metrics({f"class/{number}": float(number) for number in range(1100)}, 0)
    assert tracker.finish("FINISHED", PATIENCE), tracker.problem
    assert len(found(sqlite, run)[1].data.metrics) == 1100


def test_a_tracker_leaves_mlflow_s_own_settings_alone(sqlite):
    before = mlflow.get_tracking_uri()
    assert tracker_of(begin(sqlite), sqlite).finish("FINISHED", PATIENCE)
    assert mlflow.get_tracking_uri() == before
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_a_journal_that_ends_in_a_torn_line_is_delivered_up_to_it(sqlite):
    run = begin(sqlite)
    file = Path(run.uri) / "journal.jsonl"
    entry = {"kind": "metrics", "epoch": 0, "values": {"loss/total": 1.0}, "time": 1.0}
    file.write_text(json.dumps(entry) + "\n" + json.dumps({**entry, "epoch": 1})[:-9])
    with tracker_of(run, sqlite) as tracker:
        tracker.metrics(record_of(2), 2)
        assert tracker.finish("FINISHED", PATIENCE)
    client, _ = found(sqlite, run)
    assert steps_of(client, tracker.run_id) == [0, 2]


def test_a_run_without_a_journal_here_is_not_called_delivered(sqlite):
    run = begin(sqlite)
    with pytest.raises(
        ValueError, match=r"run 'first' has no journal\.jsonl in .*: run this command on"
    ):
        sync(run, sqlite)


def test_nothing_of_mlflow_reaches_the_terminal(tmp_path, server):
    """A whole run as on the command line, with a new database and with a server."""
    experiment = experiment_in(tmp_path / "runs", "tracking.runs=" + str(tmp_path / "runs"))
    folder, _ = final_checkpoint(tmp_path / "final", experiment)
    (tmp_path / "experiment.yaml").write_text(experiment.to_yaml())
    (tmp_path / "manifest.pickle").write_bytes(pickle.dumps(manifest()))
    script = f"""
from bcl_ray.display.terminal import quiet
quiet()
import pickle
from pathlib import Path
from bcl_ray.runs import run_folder
from bcl_ray.experiment.overrides import from_file, with_overrides
from bcl_ray.tracking.connection import tracking_uri
from bcl_ray.tracking.tracker import Tracker, training_subject
here = Path({str(tmp_path)!r})
manifest = pickle.loads((here / "manifest.pickle").read_bytes())
for name, change in (("a", []), ("b", ["tracking.uri={server.uri}"])):
    experiment = with_overrides(from_file(here / "experiment.yaml"), change)
    run = run_folder.create(run_folder.run_uri(name, experiment.tracking.runs), experiment, "f")
    told = training_subject(run, experiment), tracking_uri(experiment), run_folder.local_folder(run)
    with Tracker(*told) as tracker:
        tracker.start()
        tracker.describe(experiment, manifest)
        tracker.metrics({{"loss/total": 1.0}}, 0)
        if name == "b":  # once is enough: it takes seconds
            tracker.model({str(folder)!r})
        assert tracker.finish("FINISHED", {PATIENCE}), tracker.problem
print("done")
"""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=clean,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        "a",
        "b",
        "mlartifacts",
        "mlflow.db",
    ]
    assert not (tmp_path / "mlruns").exists()


def test_runs_are_tracked_beside_them_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = f"sqlite:///{tmp_path}"
    assert tracking_uri(experiment_in("my runs")) == f"{here}/my runs/mlflow.db"
    assert (
        tracking_uri(experiment_in((tmp_path / "my runs").as_uri())) == f"{here}/my runs/mlflow.db"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example")
    assert tracking_uri(experiment_in("runs")) == "https://mlflow.example"
    own = experiment_in("runs", "tracking.uri=sqlite:///x.db")
    assert tracking_uri(own) == "sqlite:///x.db", "the option comes before the environment"


@pytest.mark.parametrize("name", ["why? x", "100%", "a%41b", "a#b", "%3F", "a?b=c&d", "ü \n'\"\\"])
def test_the_database_lies_beside_the_runs_whatever_their_folder_is_called(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    uri = tracking_uri(experiment_in(folder))
    assert make_url(uri).database == str(folder / "mlflow.db")
    assert sqlite_file(uri) == folder / "mlflow.db"
    assert sqlite_file(f"{uri}?timeout=9") == folder / "mlflow.db"
    assert tracking_uri(experiment_in(folder, f"tracking.uri={uri}")) == uri


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (
            "file:///a/mlruns",
            "'file:///a/mlruns' is a file store, which MLflow does not support any more: use",
        ),
        (
            "./mlruns",
            "'./mlruns' is a file store, which MLflow does not support any more: use",
        ),
        ("postgresql://host/db", "'postgresql://host/db' must be sqlite:///FILE or the http(s)://"),
        ("sqlite://", "'sqlite://' names no file: write sqlite:///FILE"),
        ("sqlite:///:memory:", "'sqlite:///:memory:' names no file: write sqlite:///FILE"),
        ("sqlite:///what?/x.db", "'sqlite:///what?/x.db': write the '?' of a name as %3F"),
        ("sqlite:///what?.db", "'sqlite:///what?.db': write the '?' of a name as %3F"),
    ],
)
def test_other_stores_are_refused(uri, message, monkeypatch):
    with pytest.raises(ValueError, match=r"tracking\.uri ") as refusal:
        tracking_uri(experiment_in("runs", f"tracking.uri={uri}"))
    assert message in str(refusal.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_URI ") as refusal:
        tracking_uri(experiment_in("runs"))
    assert message in str(refusal.value)


def test_remote_runs_need_a_server():
    with pytest.raises(ValueError, match=r"tracking\.runs is s3://bucket/runs, so") as refusal:
        tracking_uri(experiment_in("s3://bucket/runs"))
    assert "must name an MLflow server" in str(refusal.value)


@pytest.mark.parametrize("option", ["tracking.uri", "tracking.runs", "data.path", "model.weights"])
def test_a_password_in_an_option_is_refused_and_not_shown(option):
    with pytest.raises(ValueError, match=f"{option}: a URI must not hold a password") as refusal:
        experiment_in("runs", f"{option}=http://me:sesame@host:5000/x")
    assert "sesame" not in str(refusal.value)
    assert "MLFLOW_TRACKING_PASSWORD" in str(refusal.value)
    assert "AWS_SECRET_ACCESS_KEY" in str(refusal.value)


@pytest.mark.parametrize("user", ["me:sesame", "sesame"])
def test_a_secret_in_the_environment_s_address_is_refused_and_not_shown(user, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://{user}@host")
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_URI contains a user name or") as refusal:
        tracking_uri(experiment_in("runs"))
    assert "sesame" not in str(refusal.value)
    assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in str(refusal.value)


def test_addresses_without_a_password_are_taken():
    for uri in ("hdfs://user@host:8020/x", "s3://bucket/a:b@c", "file:///a@b:c", "a:b@c"):
        assert experiment_in(uri).tracking.runs == uri
