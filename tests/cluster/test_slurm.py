"""The rendered sbatch script under a real Slurm, on two nodes: what it makes of every end."""

import re
import sqlite3
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from bcl_ray.ops.manifests import render
from bcl_ray.ops.manifests.platforms import Slurm as Allocation
from tests.cluster.real_slurm import ENDS, Slurm, missing, real_slurm

ROOT = Path(__file__).parents[2]
SHARED_NODE = {"exclusive": False, "cpus_per_node": 1, "memory_gib": 4}
STARTED = re.compile(r"\d+ workers? started")

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def slurm():
    if reason := missing():
        warnings.warn(f"NOT TESTED: the sbatch script, which wants Slurm: {reason}", stacklevel=2)
        pytest.skip(reason)
    with real_slurm() as slurm:
        data = f"file://{slurm.folder}/shared/shards/digits_lt"
        shard = ["shard", "digits", data, "--profile", "exponential", "--imbalance-factor", "50"]
        subprocess.run([sys.executable, "-m", "bcl_ray", *shard], check=True, cwd=ROOT)
        yield slurm


class Job:
    """A job that trains digits."""

    def __init__(self, slurm: Slurm, number: int, run: str) -> None:
        self.slurm, self.number = slurm, number
        self.folder = slurm.folder / "shared" / "runs" / run
        self.file = slurm.folder / "shared" / f"slurm-{number}.log"

    @property
    def log(self) -> str:
        """What it printed, over all its starts."""
        return self.file.read_text() if self.file.exists() else ""

    @property
    def state(self) -> str:
        """As Slurm has it: RUNNING, PENDING, ..."""
        return self.slurm.job(self.number)["JobState"]

    @property
    def restarts(self) -> int:
        """How often it went back into the queue."""
        return int(self.slurm.job(self.number)["Restarts"])

    @property
    def minutes(self) -> int:
        """How many whole minutes it has run."""
        hours, minutes, _ = self.slurm.job(self.number)["RunTime"].split(":")
        return 60 * int(hours) + int(minutes)

    @property
    def losses(self) -> int:
        """How often it said that it lost a node or Ray on it."""
        return self.log.count("lost: the job goes back into the queue")

    def end(self, seconds: float = 900) -> str:
        """Wait for its end; returns state and exit code."""
        try:
            return self.slurm.end_of(self.number, seconds)
        except TimeoutError:
            pytest.fail(f"{self.state} {self.log}")

    def wait(self, condition: Callable[[], object], seconds: float = 300) -> None:
        """Wait for something that is to come before the job's end."""
        try:
            self.slurm.wait(lambda: condition() or self.state in ENDS, seconds)
        except TimeoutError:
            pytest.fail(f"{self.state} {self.log}")
        assert self.state not in ENDS, f"{self.state} {self.log}"

    def trains(self, restarts: int) -> None:
        """Wait until it has cut a checkpoint since a restart."""
        self.wait(lambda: self.restarts == restarts and self.state == "RUNNING")
        self.wait(lambda: len(STARTED.findall(self.log)) > restarts)
        before = self._checkpoints()
        self.wait(lambda: self._checkpoints() - before)

    def _checkpoints(self) -> set[str]:
        return {folder.name for folder in self.folder.glob("checkpoint_*")}

    def steps(self) -> list[int]:
        """Epochs of which MLflow has a loss, in order, of its only run, which is complete."""
        with sqlite3.connect(self.folder.parent / "mlflow.db") as mlflow:
            named = "select run_uuid, status from runs where name = ?"
            found = mlflow.execute(named, [self.folder.name]).fetchall()
            assert [status for _, status in found] == ["FINISHED"], self.log
            uid = found[0][0]
            losses = "select step from metrics where run_uuid = ? and key = 'loss/total'"
            return sorted(step for (step,) in mlflow.execute(losses, [uid]))


@pytest.fixture
def submit(slurm, description):
    """Submit a training of digits; the script is what is rendered from a description."""

    def submit(
        run: str,
        *options: str,
        nodes: int = 1,
        epochs: int = 4,
        retries: int = 3,
        arguments: tuple[str, ...] = (),
        **site,
    ) -> Job:
        shared = slurm.folder / "shared"
        cpus = site.get("cpus_per_node", 2)
        job = description.job.model_copy(
            update={
                "recipe": "digits_lt",
                "run": run,
                "retries": retries,
                "workers": nodes,
                "overrides": (
                    f"train.epochs={epochs}",
                    f"train.eval_every={epochs}",
                    "train.checkpoint_every_steps=3",
                    f"scale.cpus_per_worker={0.8 * cpus:g}",  # one a node
                    "scale.cpus_per_data_task=0.1",
                ),
            }
        )
        allocation = Allocation(
            nodes=nodes,
            gpus_per_node=0,
            folder=str(shared),
            tmp=str(slurm.folder / "tmp"),
            setup=("echo $unset; false", f"export PATH={Path(sys.executable).parent}:$PATH"),
            **site,
        )
        ours = description.model_copy(update={"job": job, "slurm": allocation})
        script = shared / f"{run}.sbatch"
        script.write_text(render("slurm", ours)["train.sbatch"])
        return Job(slurm, slurm.sbatch(script, *options, arguments=arguments), run)

    return submit


def test_what_does_not_start_or_is_a_mistake_fails_and_is_not_queued_again(slurm, submit):
    mistake = submit("mistake", nodes=2, arguments=("optim.global_batch_size=7",))
    assert mistake.end() == "FAILED 2:0"
    assert "optim.global_batch_size (7) must be divisible by" in mistake.log
    slurm.on_node(2, "mount", "-o", "remount,ro", str(slurm.folder / "tmp"))
    one_node_fails = submit("disk", nodes=2)
    assert one_node_fails.end() == "FAILED 1:0"
    assert "n2: Ray did not start here" in one_node_fails.log
    assert "Read-only file system" in one_node_fails.log
    slurm.on_node(2, "mount", "-o", "remount,rw", str(slurm.folder / "tmp"))
    head_fails = submit("memory", "--mem=100M")  # for Ray, 30 MB of it
    assert head_fails.end() == "FAILED 1:0"
    assert "Ray did not start here" in head_fails.log
    for job in (mistake, one_node_fails, head_fails):
        assert job.restarts == 0


def test_jobs_on_a_shared_node_do_not_disturb_each_other_and_end_as_their_drivers_do(slurm, submit):
    long = submit("long", "--nodelist=n1", epochs=500, **SHARED_NODE)
    short = submit("short", "--nodelist=n1", epochs=2, **SHARED_NODE)
    assert short.end() == "COMPLETED 0:0", short.log
    assert short.steps() == [0, 1]
    long.trains(restarts=0)
    fails = submit("fails", "--nodelist=n1", arguments=("optim.lr=1e30",), **SHARED_NODE)
    assert fails.end() == "FAILED 1:0"
    long.trains(restarts=0)
    # What only the driver finds out: the run has other options.
    other = submit("short", "--nodelist=n1", arguments=("optim.lr=0.2",), **SHARED_NODE)
    assert other.end() == "FAILED 2:0", other.log
    assert "was begun with another configuration" in other.log
    lost = submit("lost", "--nodelist=n2", epochs=500, retries=0, **SHARED_NODE)
    lost.trains(restarts=0)
    slurm.on_node(2, "pkill", "-KILL", "-x", "raylet")
    assert lost.end() == "FAILED 1:0", lost.log
    assert "lost a node, or Ray on it, more than 0 times" in lost.log
    cancelled = submit("cancelled", "--nodelist=n1", **SHARED_NODE)
    cancelled.wait(lambda: STARTED.search(cancelled.log))
    slurm.cancel(cancelled.number)
    assert cancelled.end().startswith("CANCELLED"), cancelled.log

    # Slurm itself signals it, 150 s before the end of its time: at once.
    slurm.scontrol("update", f"JobId={long.number}", f"TimeLimit={long.minutes + 2}")
    long.wait(lambda: long.restarts == 1)
    slurm.scontrol("update", f"JobId={long.number}", "TimeLimit=60")
    assert long.log.count("bcl-ray: stopped at step") == 1
    long.trains(restarts=1)
    slurm.signal(long.number, "TERM")
    assert long.end() == "COMPLETED 0:0", long.log
    assert long.log.count("bcl-ray: stopped at step") == 2
    assert [job.restarts for job in (short, fails, other, lost, cancelled)] == [0, 0, 0, 0, 0]
    assert long.losses == 0


def test_a_training_on_two_nodes_outlives_a_dead_raylet_preemption_and_a_lost_node(slurm, submit):
    slurm.wait(slurm.idle, 60)
    job = submit("digits", nodes=2, epochs=10)
    job.trains(restarts=0)
    for words, counts in {"gcs_server": [1, 0], "ray::RayTrainWorker": [1, 1]}.items():
        assert [len(slurm.processes(node, words)) for node in (1, 2)] == counts, words

    (raylet,) = slurm.processes(2, "raylet/raylet ")
    slurm.on_node(2, "pkill", "-KILL", "-x", "raylet")
    slurm.wait(lambda: not Path(f"/proc/{raylet}").exists(), 10)
    job.trains(restarts=1)
    assert job.losses == 1

    slurm.run_urgently()  # with a grace time
    job.trains(restarts=2)
    assert "requeue: the job goes back into the queue" in job.log
    assert job.log.count("bcl-ray: stopped at step") == 1

    slurm.scontrol("update", "PartitionName=main", "GraceTime=0")
    slurm.run_urgently()
    job.trains(restarts=3)

    slurm.kill_node(2)
    job.wait(lambda: job.restarts == 4)
    slurm.start_node(2)
    assert job.end() == "COMPLETED 0:0", job.log
    assert job.log.count("2 workers started") == 5
    assert job.losses == 1, "what Slurm itself takes away is not counted"
    assert job.steps() == [*range(10)]
    tokens = (slurm.folder / "shared" / "jobs").glob(f"{job.number}.[0-9]*")
    assert list(tokens) == [], "none is left of any start"
