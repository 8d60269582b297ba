"""Commands on clusters: what they say, and the names that they take."""

from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
from typer.testing import CliRunner

from bcl_ray.cli import app, cluster, submit
from bcl_ray.ops.manifests import TARGETS


def call(*words: str) -> str:
    done = CliRunner().invoke(app, ["cluster", *words])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def running(monkeypatch, tmp_path):
    """Stands for a cluster with two nodes, one of which trains; `calls` has what was done to it."""
    calls = []
    statuses = [
        SimpleNamespace(name="train-1", pid=1, address="", alive=True),
        SimpleNamespace(name="train-2", pid=2, address="", alive=False),
    ]
    running = SimpleNamespace(
        calls=calls,
        folder=tmp_path,
        status=lambda: statuses,
        training_workers=lambda: {"train-1": 2, "train-2": 1},
        kill_node=lambda name: calls.append(("kill", name)),
        down=lambda *, wipe: calls.append(("down", wipe)),
    )
    monkeypatch.setattr(cluster, "_local", lambda folder: running)
    return running


def test_status_has_the_training_workers_of_nodes_that_are_up(running):
    header, first, second = (line.split() for line in call("status").splitlines())
    assert header == ["name", "pid", "address", "state", "training", "workers"]
    assert (first, second) == (["train-1", "1", "up", "2"], ["train-2", "2", "down"])


def test_a_killed_node_and_what_ran_on_it_are_named(running):
    assert call("kill-node", "train-1") == (
        "killed node train-1 (training workers on it: 2); `bcl-ray cluster add-node train-1` "
        "starts it again\n"
    )
    assert running.calls == [("kill", "train-1")]


def test_down_says_what_it_has_ended_and_where_the_data_are(running):
    folder = running.folder
    assert call("down") == f"ended train-1; the data of S3 and MLflow stay in {folder}\n"
    assert call("down", "--wipe") == f"ended train-1; deleted {folder} with all data\n"
    assert running.calls == [("down", False), ("down", True)]


def test_a_folder_without_a_cluster_is_named(tmp_path):
    folder = tmp_path / "none"
    assert call("status", "--folder", str(folder)) == f"no cluster is in {folder}\n"
    assert call("down", "--folder", str(folder)) == f"no cluster was up in {folder}\n"


def test_names_on_the_command_line_are_those_of_the_tables():
    assert get_args(cluster.Target) == tuple(TARGETS)
    assert get_args(submit.Kind) == tuple(submit.REQUESTS)
    jobs = Path(cluster.__file__).parents[2] / "jobs"
    assert set(get_args(submit.Kind)) == {file.stem for file in jobs.glob("*.py")}
