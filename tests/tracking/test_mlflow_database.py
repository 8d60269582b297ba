"""MLflow's SQLite database is created completely, by any number of processes at once."""

import os
import subprocess
import sys
import time

import pytest
from mlflow import MlflowClient

PROGRAM = """
import sys, time
from pathlib import Path
from bcl_ray.tracking.journal import Subject
from bcl_ray.tracking.mlflow_run import MlflowRun

folder, name = sys.argv[1:]
Path(folder, name + ".ready").touch()
while not Path(folder, "go").exists():
    time.sleep(0.001)
MlflowRun(f"sqlite:///{folder}/mlflow.db", Subject(name, name, "experiment", {}, {}), time.time())
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def begin(folder, *names):
    """Start processes that wait for a file named go."""
    environment = {**os.environ, "TMPDIR": str(folder)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(folder), name],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for name in names
    ]
    while not all((folder / f"{name}.ready").exists() for name in names):
        time.sleep(0.05)
    return processes


def runs_in(folder):
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return {run.info.run_name for run in client.search_runs(ids)}


def test_drivers_that_begin_at_once_on_a_new_database_do_not_break_it(tmp_path):
    processes = begin(tmp_path, "a", "b", "c")
    (tmp_path / "go").touch()
    errors = [process.communicate()[1] for process in processes]
    # Only one of them can make the experiment; the others are told so, and try again.
    failed = [error for error in errors if "Traceback" in error]
    assert all("UNIQUE constraint failed: experiments." in error for error in failed)
    assert len(runs_in(tmp_path)) == 3 - len(failed) > 0
    assert not list(tmp_path.glob(".mlflow.db*"))


def test_a_driver_that_is_killed_meanwhile_leaves_no_broken_database(tmp_path):
    (process,) = begin(tmp_path, "killed")
    (tmp_path / "go").touch()
    while not list(tmp_path.glob(".mlflow.db*")):
        time.sleep(0.001)
    time.sleep(0.3)  # it is in the midst of the tables
    process.kill()
    process.communicate()
    assert not (tmp_path / "mlflow.db").exists()
    (next_one,) = begin(tmp_path, "next")
    assert next_one.wait() == 0, next_one.stderr.read()
    assert runs_in(tmp_path) == {"next"}
