"""Drills of a search: many trials through few places, drivers of trials and its own killed.

On this machine alone, whose Ray ends with the search that started it.
"""

import contextlib
import json
import re
import signal
import subprocess
import sys

import psutil
import pytest
from mlflow import MlflowClient

from bcl_ray.runs import checkpoint
from bcl_ray.runs.run_folder import open_run, why_only_best
from bcl_ray.use.models import best_checkpoint, last_checkpoint
from tests.e2e.conftest import Command, assert_same_run

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(2400)]
KINDS = ("checkpoint", "best")
RECIPE = ("digits_lt", "tracking.report=false")  # figures are 5 s of CPU a trial


class Search(Command):
    """A `bcl-ray search`."""

    def __init__(self, folder, name, *words):
        super().__init__(folder, "search", *words)
        self.folder = folder / "runs" / name

    def trials(self):
        """What is written down of each trial, by name."""
        files = sorted(self.folder.glob("trial-*/trial.json"))
        return {file.parent.name: json.loads(file.read_text()) for file in files}

    def drivers(self):
        """Of trials; while one computes, its process is called by Tune's own class."""
        found = []
        for process in self.children():
            with contextlib.suppress(psutil.Error):
                title = " ".join(process.cmdline())
                if title.startswith(("ray::TrialRun", "ray::ResourceTrainable")):
                    found.append(process)
        return found

    def state(self, trial):
        """The last one, or the best of a trial that lost."""
        run = open_run(str(self.folder / trial))[0]
        return checkpoint.load((best_checkpoint if why_only_best(run) else last_checkpoint)(run))

    def checkpoints(self):
        """How many of each trial's last ones there are, and of its best."""
        return {
            name: tuple(
                len(list((self.folder / name).glob(f"{kind}_*/state.pt"))) for kind in KINDS
            )
            for name in self.trials()
        }


@pytest.fixture
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("searches")
    words = ["shard", "digits", "data/digits_lt", "--profile", "exponential"]
    words += ["--imbalance-factor", "50"]
    subprocess.run([sys.executable, "-m", "bcl_ray", *words], cwd=folder, check=True)
    return folder


@pytest.fixture
def start(folder, monkeypatch):
    """Start a search."""
    started = []

    def run(name, *words):
        started.append(Search(folder, name, *words))
        return started[-1]

    monkeypatch.delenv("RAY_ADDRESS", raising=False)  # of another module's cluster
    yield run
    for search in started:
        if search.process.poll() is None:
            for process in [*search.children(), search.process]:
                process.kill()


def tracked(folder):
    """MLflow's client, and its runs by name, each of which is there once."""
    client = MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("bcl-ray")
    return client, client.search_runs([experiment.experiment_id])


def test_six_trials_through_two_places_and_the_drivers_of_two_of_them_killed(start, folder):
    """Places of stopped and of dead trials come free; what has died goes on in another process."""
    words = [*RECIPE, "train.epochs=9", "--trials", "6", "--max-concurrent", "2"]
    search = start("many", *words, "train.eval_every=3", "--name", "many")
    search.wait_for(lambda: any(trial["scores"] for trial in search.trials().values()), 600)
    search.wait_for(lambda: len(search.drivers()) == 2)
    for process in search.drivers():
        process.kill()
    assert search.wait(1200) == 0, search.output
    trials = search.trials()
    assert len(trials) == 6
    ends = [trial["status"] for trial in trials.values()]
    assert set(ends) == {"finished", "stopped"}
    assert ends.count("stopped") >= 1
    assert trials["trial-000"]["status"] == "finished"
    assert len(trials["trial-000"]["scores"]) == 3
    # Ray clears the places of the dead itself, mostly; else they are taken from it.
    assert search.output.count("still held resources 30 s after its end") <= 2
    assert "6/6" in search.output
    client, runs = tracked(folder)
    (parent,) = [run for run in runs if run.info.run_name == "many"]
    children = {
        run.info.run_name: run
        for run in runs
        if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
    }
    assert children.keys() == trials.keys()
    for name, trial in trials.items():
        ended = "FINISHED" if trial["status"] == "finished" else "KILLED"
        assert children[name].info.status == ended
        if ended == "KILLED":
            assert children[name].data.tags["stopped"].startswith("by the search, after")
        history = client.get_metric_history(children[name].info.run_id, "loss/total")
        assert sorted(metric.step for metric in history) == list(range(len(history))), name
        assert ("model.uri" in children[name].data.tags) == (ended == "FINISHED"), name
    winner = re.search(r"winner +(trial-\d+)", search.output)[1]
    assert search.checkpoints() == {name: (2 * (name == winner), 1) for name in trials}
    confirmed = start("many", "--resume", "many", "--confirm", "1,1")
    assert confirmed.wait(1200) == 0, confirmed.output
    repeats = {f"{name}-seed-1" for name in (winner, "trial-000")}
    winner = re.search(r"winner +(trial-\d+)", confirmed.output)[1]
    kept = {
        name for name, (last, best) in confirmed.checkpoints().items() if (last, best) == (2, 1)
    }
    assert repeats | {winner} <= kept
    for name in trials.keys() - kept:
        assert confirmed.checkpoints()[name] == (0, 1)


def test_ctrl_c_saves_what_runs_and_then_a_killed_driver_loses_nothing(start, folder):
    """The same trials, with the same weights, as in a search that nothing happened to."""
    words = [*RECIPE, "train.epochs=6", "train.eval_every=2", "train.checkpoint_every_steps=3"]
    words += ["--trials", "2", "--scheduler", "none", "--max-concurrent", "1"]
    undisturbed = start("calm", *words, "--name", "calm")
    assert undisturbed.wait(900) == 0, undisturbed.output
    interrupted = start("killed", *words, "--name", "killed")
    interrupted.wait_for(lambda: any(t["scores"] for t in interrupted.trials().values()), 600)
    interrupted.process.send_signal(signal.SIGINT)
    assert interrupted.wait(120) == 130, interrupted.output
    assert "search stopped; go on with: bcl-ray search --resume killed" in interrupted.output
    assert interrupted.trials()["trial-000"]["status"] == "running"
    assert any((interrupted.folder / "trial-000").glob("checkpoint_*"))
    killed = start("killed", "--resume", "killed")
    # One has ended, the other is under way.
    killed.wait_for(lambda: killed.trials().get("trial-001", {}).get("scores"), 900)
    killed.process.kill()
    killed.process.wait()
    before = killed.trials()
    assert [trial["status"] for trial in before.values()] == ["finished", "running"]
    resumed = start("killed", "--resume", "killed")
    assert resumed.wait(900) == 0, resumed.output
    after = resumed.trials()
    assert after.keys() == undisturbed.trials().keys()
    for name, trial in after.items():
        expected = undisturbed.trials()[name]
        assert (trial["status"], trial["point"], trial["scores"]) == (
            "finished",
            expected["point"],
            expected["scores"],
        )
        assert_same_run(resumed.state(name), undisturbed.state(name))
    assert after["trial-000"] == before["trial-000"], "what has ended is not touched"
    assert re.search(r"winner +trial-\d+", resumed.output)
    client, runs = tracked(folder)
    (parent,) = [run for run in runs if run.info.run_name == "killed"]
    children = [
        run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
    ]
    assert sorted(run.info.run_name for run in children) == sorted(after)
    for run in (parent, *children):
        assert run.info.status == "FINISHED"
    for run in children:
        history = client.get_metric_history(run.info.run_id, "loss/total")
        assert sorted(metric.step for metric in history) == list(range(6))
