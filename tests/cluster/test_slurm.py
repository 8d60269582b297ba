"""The sbatch script under a stand-in for Slurm: real Ray on two real (namespaced) nodes."""

import sqlite3
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from bcl_ray.render import render
from bcl_ray.render.description import Slurm as Allocation
from tests.cluster.slurm import WAIT, Slurm, can_make_nodes

ROOT = Path(__file__).parents[2]


@pytest.fixture
def slurm(tmp_path):
    nodes = 2 if can_make_nodes() else 1
    if nodes == 1:
        warnings.warn("no namespaces here: the sbatch script runs on one node only", stacklevel=2)
    slurm = Slurm(tmp_path / "slurm", nodes)
    yield slurm
    slurm.close()


def sbatch(description, folder: Path, nodes: int) -> Path:
    job = description.job.model_copy(
        update={
            "recipe": "digits_lt",
            "run": "digits",
            "workers": 2,
            "overrides": (
                "train.epochs=6",
                "train.eval_every=6",
                "train.checkpoint_every_steps=5",
                f"scale.cpus_per_worker={0.8 if nodes == 2 else 0.4}",  # one a node
                "scale.cpus_per_data_task=0.1",
            ),
        }
    )
    allocation = Allocation(
        nodes=nodes,
        gpus_per_node=0,
        folder=str(folder),
        setup=(f"export PATH={Path(sys.executable).parent}:$PATH",),
    )
    ours = description.model_copy(update={"job": job, "slurm": allocation})
    script = folder / "train.sbatch"
    script.write_text(render("slurm", ours)["train.sbatch"])
    return script


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_signal_before_the_time_is_up_cuts_a_checkpoint_and_the_requeued_job_ends_the_run(
    description, slurm, tmp_path
):
    folder = tmp_path / "shared"
    folder.mkdir()
    data = f"file://{folder}/shards/digits_lt"
    shard = ["shard", "digits", data, "--profile", "exponential", "--imbalance-factor", "50"]
    subprocess.run([sys.executable, "-m", "bcl_ray", *shard], check=True, cwd=ROOT)
    script = sbatch(description, folder, len(slurm.addresses))
    run = folder / "runs" / "digits"
    signals = []

    def when_it_has_begun(slurm):
        if not signals and any(run.glob("checkpoint_*")):
            signals.append("USR1")
            slurm.signal("USR1")

    first = slurm.run(script, job=7, then=when_it_has_begun)
    assert "bcl-ray: stopped at step" in first
    assert "the job goes back into the queue" in first
    assert "requeue 7" in (slurm.folder / "scontrol.log").read_text()
    assert {"--kill-on-bad-exit=1", f"--wait={WAIT}"} <= set(slurm.options)

    second = slurm.run(script, job=7)
    assert slurm.status == 0, second
    assert "2 workers started at step" in second
    assert "epoch 6/6" in second
    mlflow = sqlite3.connect(folder / "runs" / "mlflow.db")
    assert mlflow.execute("select status from runs").fetchall() == [("FINISHED",)]
    steps = mlflow.execute("select step from metrics where key = 'loss/total' order by step")
    assert [step for (step,) in steps] == [0, 1, 2, 3, 4, 5]
    assert list((folder / "jobs").iterdir()) == [], "the token is gone"
