"""A cluster of real processes, and training jobs on it that faults happen to."""

import contextlib
import itertools
import json
import os
import pickle
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from filelock import FileLock
from mlflow import MlflowClient

from bcl_ray.ops.local import LocalCluster
from bcl_ray.runs.run_folder import open_run
from bcl_ray.storage import files
from bcl_ray.use.models import last_state
from tests.e2e.conftest import assert_same_run

EPOCHS, STEPS, IMAGES = 6, 12, 360  # STEPS per epoch; IMAGES to evaluate
OPTIONS = (
    f"train.epochs={EPOCHS}",
    f"train.eval_every={EPOCHS}",
    "train.checkpoint_every_steps=6",
    "scale.cpus_per_worker=1",
    "scale.data_cpus=1",  # each of its processes imports for a second
    "tracking.report=false",  # 5 s of CPU
)
STORE = "s3://bcl-ray"


class Job:
    """A submitted training, as its terminal shows it."""

    def __init__(self, folder: Path, name: str, *overrides: str, address: str = "") -> None:
        self.name, self.uri = name, f"{STORE}/runs/{name}"
        self._log = folder / f"{len(list(folder.glob('*.log')))}-{name}.log"
        command = ["submit", "train", "digits_lt", "--restartable", *OPTIONS, *overrides]
        places = [f"data.path={STORE}/digits{address}", f"tracking.runs={STORE}/runs{address}"]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bcl_ray", *command, *places, f"tracking.run={name}"],
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        return self._log.read_text()

    @property
    def id(self) -> str:
        found = re.search(r"^job +(\S+)", self.output, re.MULTILINE)
        assert found, self.output
        return found[1]

    def wait(self, seconds: float = 280) -> int:
        return self.process.wait(seconds)

    def succeed(self) -> None:
        assert self.wait() == 0, self.output

    def wait_for(self, condition, seconds: float = 200) -> None:
        """Until a condition holds; the job must still run then."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"it ended too early:\n{self.output}"
            assert time.monotonic() < deadline, f"nothing happened in time:\n{self.output}"
            time.sleep(0.2)

    def wait_for_epoch(self, epoch: int) -> None:
        """Until an epoch, counted from 1, is over."""
        self.wait_for(lambda: re.search(rf"epoch +{epoch}/", self.output))

    def epochs(self) -> int:
        """How many are over."""
        return len(re.findall(r"^epoch +\d+/", self.output, re.MULTILINE))

    def wait_for_mid_epoch(self, epoch: int = 1) -> None:
        """Until the last checkpoint was cut within this epoch or a later one."""
        self.wait_for(lambda: (s := self.last_step()) > epoch * STEPS and s % STEPS)

    def last_step(self) -> int:
        """Step of the last checkpoint that Ray Train has noted."""
        return int(self._noted()["latest_checkpoint_result"]["metrics"]["step"])

    def last_checkpoint(self) -> str:
        """Its folder's name."""
        return str(self._noted()["latest_checkpoint_result"]["checkpoint_dir_name"])

    def checkpoints(self) -> set[str]:
        """Folders of the checkpoints that Ray Train keeps account of."""
        return {one["checkpoint_dir_name"] for one in self._noted()["checkpoint_results"]}

    def _noted(self) -> dict:
        snapshot = files.join(self.uri, "checkpoint_manager_snapshot.json")
        try:
            return json.loads(files.read_bytes(snapshot))
        except FileNotFoundError:
            none = {"metrics": {"step": 0}, "checkpoint_dir_name": ""}
            return {"latest_checkpoint_result": none, "checkpoint_results": []}

    def starts(self) -> list[int]:
        """The step that each start of the workers began at."""
        found = re.findall(r"workers? started(?: at step ([\d,]+))?", self.output)
        return [int(step.replace(",", "") or 0) for step in found]

    def state(self):
        return last_state(open_run(self.uri)[0])


class Drill:
    """Starts jobs on a cluster, finds their processes, and compares their ends."""

    def __init__(self, cluster: LocalCluster, folder: Path, shared: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.jobs: list[Job] = []
        self.attempt = 1  # of the test: a second one has runs of its own
        self._frozen: list[psutil.Process] = []
        self._kept = shared / "undisturbed.pickle"

    def start(self, name: str, *overrides: str, address: str = "") -> Job:
        """Submit a training; `address`: of S3, as a URI's options, if it is not the usual one."""
        name += f"-{self.attempt}" if self.attempt > 1 else ""
        self.jobs.append(Job(self.folder, name, *overrides, address=address))
        return self.jobs[-1]

    def processes(self, title: str, node: str | None = None) -> list[psutil.Process]:
        """Ray processes with a word in their title, on a node or on any."""
        pids = self.cluster.nodes()
        roots = [pids[node]] if node else pids.values()
        found = []
        for root in roots:
            for process in psutil.Process(root).children(recursive=True):
                try:
                    if title in " ".join(process.cmdline()):
                        found.append(process)
                except psutil.Error:
                    continue
        return found

    def workers(self, node: str | None = None) -> list[psutil.Process]:
        return self.processes("ray::RayTrainWorker", node)

    def node_of_workers(self) -> str:
        """A node, not the head, that trains."""
        names = [name for name in self.cluster.nodes() if name != "head"]
        return next(name for name in names if self.workers(name))

    def frozen(self, *processes: psutil.Process) -> list[psutil.Process]:
        """Stand still, as on a machine that is frozen, until they are thawed."""
        for process in processes:
            process.send_signal(signal.SIGSTOP)
            self._frozen.append(process)
        return list(processes)

    def thaw(self) -> None:
        """Let everything go on that was frozen."""
        for process in self._frozen:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
        self._frozen.clear()

    def driver_of(self, job: Job) -> psutil.Process:
        """The process that a job's entry point is."""
        (driver,) = (
            process
            for process in self.processes(f"tracking.run={job.name}", "head")
            if process.cmdline()[0].rpartition("/")[2].startswith("python")
        )
        return driver

    @contextlib.contextmanager
    def small_disks(self):
        """Every node's own folder on a small disk of its own; yields those folders."""
        folders = {name: self.ray_folder / name for name in self.names}
        for name in folders:
            self.cluster.kill_node(name)
        mounted = []
        try:
            for folder in folders.values():
                mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
                if subprocess.run(mount, check=False, capture_output=True).returncode:
                    pytest.skip("a small disk cannot be mounted: this test needs root")
                mounted.append(folder)
            for name in folders:
                self.cluster.add_node(name)
            yield folders
        finally:
            for name in folders:
                if name in self.cluster.nodes():
                    self.cluster.kill_node(name)
            for folder in mounted:
                subprocess.run(["umount", "--lazy", str(folder)], check=True)

    def run_id(self, job: Job) -> str:
        return self._tracked(job)[1][0].info.run_id

    def tracked_status(self, job: Job) -> str:
        return self._tracked(job)[1][0].info.status

    def undisturbed(self):
        """The end of a run that nothing happened to; made once, by the first process to ask."""
        with FileLock(f"{self._kept}.lock"):
            if not self._kept.exists():
                job = self.start(f"undisturbed-{len(self.jobs)}", "tracking.report=true")
                job.succeed()
                self.check_tracked(job)
                self._kept.write_bytes(pickle.dumps(job.state()))
            return pickle.loads(self._kept.read_bytes())  # noqa: S301 (our own)

    def check_same(self, job: Job) -> None:
        """Weights, momentum and metrics are those of the undisturbed run, bit for bit."""
        assert_same_run(job.state(), self.undisturbed())
        self.check_counted(job.state())
        self.check_tracked(job)

    def check_counted(self, state) -> None:
        counts = [r["images/evaluated"] for r in state.history if "images/evaluated" in r]
        assert counts == [IMAGES]

    def check_tracked(self, job: Job) -> None:
        """One MLflow run, finished, with each epoch once and its artifacts in S3."""
        client, runs = self._tracked(job)
        assert [run.info.status for run in runs] == ["FINISHED"]
        history = client.get_metric_history(runs[0].info.run_id, "loss/total")
        assert sorted(metric.step for metric in history) == list(range(EPOCHS))
        ends = [metric.timestamp / 1000 for metric in history]
        gaps = [later - earlier for earlier, later in itertools.pairwise(ends)]
        standstill = max(gaps) - statistics.median(gaps)
        print(f"{job.name}: stood still {standstill:.0f} s; workers started at {job.starts()}")
        assert "experiment.yaml" in [f.path for f in client.list_artifacts(runs[0].info.run_id)]
        assert "model.uri" in runs[0].data.tags

    def _tracked(self, job: Job):
        client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
        experiment = client.get_experiment_by_name("bcl-ray")
        return client, client.search_runs([experiment.experiment_id], f"run_name = '{job.name}'")

    def mend(self) -> None:
        """End what runs, and bring back what was taken away."""
        self.thaw()
        for job in self.jobs:
            if job.process.poll() is None:  # its test has failed
                job.process.kill()
                stop = [sys.executable, "-m", "bcl_ray", "jobs", "stop", job.id]
                subprocess.run(stop, check=False, capture_output=True)
        notices = [name for name in self.cluster.processes.names() if name.startswith("notice-")]
        while any(self.cluster.processes.alive(name) for name in notices):
            time.sleep(0.5)  # the node that it is for ends with it
        alive = self.cluster.nodes()
        if "head" not in alive:
            self.cluster.start("head")
        for name in self.names:
            if name not in alive:
                self.cluster.add_node(name)

    @property
    def ray_folder(self) -> Path:
        """Where each node has a folder of its own."""
        return Path(json.loads((self.cluster.folder / "cluster.json").read_text())["ray_folder"])

    @property
    def names(self) -> list[str]:
        return ["data-1", "train-1", "train-2"]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory, worker_id):
    """A cluster of three nodes with S3 and MLflow; this process sees them as a laptop does."""
    cluster = LocalCluster(tmp_path_factory.mktemp("cluster"))
    before = dict(os.environ)
    os.environ["REPORTER_UPDATE_INTERVAL_MS"] = "60000"  # of dashboards, which nobody looks at
    port = 9700 + 20 * int(worker_id.removeprefix("gw") if worker_id != "master" else 0)
    cluster.up(workers=3, port=port, store_mib=128)
    os.environ.update(cluster.environment())
    try:
        shard = ["shard", "digits", f"{STORE}/digits", "--profile", "exponential"]
        shard += ["--imbalance-factor", "50"]
        subprocess.run([sys.executable, "-m", "bcl_ray", *shard], check=True, stdout=sys.stderr)
        yield cluster
    finally:
        os.environ.clear()
        os.environ.update(before)
        cluster.down(wipe=True)


@pytest.fixture(scope="session")
def laid_out(cluster, tmp_path_factory, worker_id):
    folder = tmp_path_factory.mktemp("jobs")
    several = worker_id != "master"  # then each process has a folder in the session's
    return Drill(cluster, folder, folder.parents[1] if several else folder.parent)


@pytest.fixture
def drill(laid_out, request):
    laid_out.attempt = getattr(request.node, "execution_count", 1)
    yield laid_out
    laid_out.mend()
