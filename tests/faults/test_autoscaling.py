"""Clusters that start from their head alone: Ray's own autoscaler, real processes, no real GPU.

A fake GPU is a number that Ray counts: these tests show which nodes come for whom, and that they
go, not that anything computes on a GPU.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from bcl_ray.ray_runtime.node_groups import VARIABLE, NodeGroup, to_text
from tests.autoscaled import Autoscaled

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(420)]

STORE = {"object_store_memory": 100 * 2**20}
TYPES = {
    "data": {"resources": {"CPU": 2, **STORE}, "max_workers": 2},
    "gpu": {"resources": {"CPU": 1, "GPU": 1, **STORE}, "max_workers": 2},
}
MOST = to_text(NodeGroup(kind["max_workers"], kind["resources"]) for kind in TYPES.values())
NEW = pytest.mark.parametrize("cluster", ["v2"], indirect=True)  # KubeRay's since 1.4
BOTH = pytest.mark.parametrize("cluster", ["v2", "v1"], indirect=True)  # v1: that of `ray up`
PATIENCE = 240.0  # seconds for a command, from nothing to its end
GONE = 60.0  # seconds in which idle nodes have gone
TRAINING = (
    "scale.device=cpu",
    "scale.cpus_per_worker=1",
    "train.epochs=2",
    "train.eval_every=2",
    "tracking.report=false",
)


class Command:
    """A `bcl-ray` process on a cluster, and the most nodes that it had."""

    def __init__(self, cluster: Autoscaled, folder: Path, *words: str, most: str | None) -> None:
        environment = {**os.environ, "MLFLOW_TRACKING_URI": "", **cluster.environment()}
        environment |= {VARIABLE: most} if most else {}
        self._cluster, self.peak = cluster, {"data": 0, "gpu": 0}
        done = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(done,), daemon=True)
        watcher.start()
        try:
            ended = subprocess.run(
                [sys.executable, "-m", "bcl_ray", *words],
                cwd=folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
        finally:
            done.set()
            watcher.join()
        self.code, self.output = ended.returncode, ended.stdout

    def _watch(self, done: threading.Event) -> None:
        while not done.wait(0.5):
            nodes = self._cluster.nodes()  # once: they come and go
            gpus = sum("GPU" in node for node in nodes)
            counts = {"gpu": gpus, "data": len(nodes) - gpus}
            self.peak = {name: max(self.peak[name], count) for name, count in counts.items()}


@pytest.fixture(scope="module")
def cluster(request, worker_id):
    """A head of no CPUs with an autoscaler, of both versions that Ray has."""
    folder = Path(tempfile.mkdtemp(prefix="bcl-"))
    number = int(worker_id.removeprefix("gw")) if worker_id != "master" else 0
    cluster = Autoscaled(folder, 9900 + 20 * number, TYPES, v2=request.param == "v2")
    try:
        cluster.start({VARIABLE: MOST})
        yield cluster
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def run(cluster, tmp_path, trained):
    """Run a command with paths that all nodes see; a cluster that is empty before and after."""
    digits = f"data.path=file://{trained.shards}"
    places = {"train": [digits, f"tracking.runs=file://{tmp_path}/runs"]}
    places["search"] = places["train"]

    def empty(after: str) -> None:
        deadline = time.monotonic() + GONE
        while nodes := cluster.nodes():
            assert time.monotonic() < deadline, f"nodes stay: {nodes}\n{after}"
            time.sleep(0.5)

    def start(kind: str, *words: str, most: str | None = MOST) -> Command:
        empty("what came before")
        command = Command(cluster, tmp_path, kind, *words, *places.get(kind, ()), most=most)
        empty(command.output)
        return command

    return start


@BOTH
def test_training_brings_its_nodes_and_lets_them_go(run):
    command = run("train", "digits_lt", *TRAINING, "scale.workers=2", "scale.data_cpus=1")
    assert command.code == 0, command.output
    assert "waiting up to 1800 s for nodes: 3 CPU, and there are 0" in command.output
    assert "2 workers started" in command.output
    assert sum(command.peak.values()) >= 2


@NEW
def test_trials_at_once_follow_from_what_the_cluster_can_have(run):
    """Of 6 CPUs that can come, a trial of a worker and a data task wants 3."""
    words = ("--name", "loss", "--trials", "3", "--scheduler", "none")
    command = run("search", "digits_lt", *words, *TRAINING, "scale.data_cpus=2")
    assert command.code == 0, command.output
    assert "2 at once" in command.output
    assert command.peak["data"] == 2


@NEW
def test_prediction_brings_an_actor_for_each_gpu(run, trained, tmp_path):
    source = f"file://{trained.shards}"
    words = (f"file://{trained.checkpoint}", source, f"file://{tmp_path}/labels")
    command = run("predict", *words, "--batch-size", "8", "--part-size", "64")
    assert command.code == 0, command.output
    assert command.peak["gpu"] == 2
    assert command.peak["data"] >= 1


@NEW
def test_what_can_never_come_is_refused_before_any_node_is_asked_for(run):
    command = run("train", "digits_lt", *TRAINING, "scale.workers=8")
    assert command.code == 2
    assert "leave 0 of 6 CPUs for data" in command.output
    assert sum(command.peak.values()) == 0


@NEW
def test_where_nobody_has_said_how_far_it_grows_nodes_are_waited_for(run):
    late = ("scale.workers=8", "scale.wait_timeout=12")
    command = run("train", "digits_lt", *TRAINING, *late, most=None)
    assert command.code == 1
    assert re.search("waiting up to 12 s for nodes: 8.5 CPU, and there are 0", command.output)
    assert "the nodes did not come within scale.wait_timeout (12 s)" in command.output


@NEW
@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("train", "digits_lt", "scale.workers=2"), "set scale.device=cuda or scale.device=cpu"),
        (("search", "digits_lt", "scale.device=cpu", "--name", "x"), "give --max-concurrent"),
        (("predict",), "give --gpus"),
    ],
)
def test_an_option_says_what_nobody_else_can(run, trained, tmp_path, words, option):
    if words == ("predict",):
        words += (f"file://{trained.checkpoint}", f"file://{trained.shards}")
        words += (f"file://{tmp_path}/labels",)
    command = run(*words, most=None)
    assert command.code == 2
    assert option in command.output
