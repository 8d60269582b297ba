"""Real kills: what is left of the run ends as if nothing had happened."""

import contextlib
import shutil
import signal

import psutil
import pytest
from mlflow import MlflowClient

from tests.e2e.conftest import OPTIONS, assert_same_run, last_state, latest_step

pytestmark = [pytest.mark.ray, pytest.mark.slow]
STEPS = 12  # per epoch


def in_mid_epoch(workplace, name):
    """Whether the last checkpoint was cut within an epoch, after the first one."""
    step = latest_step(workplace, name)
    return step > STEPS and step % STEPS != 0


def assert_tracked_once(workplace, name):
    client = MlflowClient(f"sqlite:///{workplace}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("bcl-ray")
    runs = client.search_runs([experiment.experiment_id], f"run_name = '{name}'")
    assert len(runs) == 1
    assert runs[0].info.status == "FINISHED"
    history = client.get_metric_history(runs[0].info.run_id, "loss/total")
    assert sorted(metric.step for metric in history) == [0, 1, 2, 3]


def test_a_killed_driver_is_resumed_in_mid_epoch_bit_for_bit_or_with_other_workers(
    start, workplace, undisturbed
):
    command = start("train", "digits_lt", *OPTIONS, "tracking.run=driver-killed")
    command.wait_for(lambda: in_mid_epoch(workplace, "driver-killed"))
    others = command.children()
    workers = [p for p in others if "RayTrainWorker" in " ".join(p.cmdline())]
    command.process.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive
    for process in others:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    stopped = latest_step(workplace, "driver-killed")
    assert 0 < stopped < 4 * STEPS
    shutil.copytree(workplace / "runs" / "driver-killed", workplace / "runs" / "fewer-workers")

    resumed = start("train", "--resume", "driver-killed")
    assert resumed.wait() == 0, resumed.output
    assert resumed.start_steps() == [stopped]
    assert_same_run(last_state(workplace, "driver-killed"), undisturbed[0])
    assert_tracked_once(workplace, "driver-killed")

    resumed = start("train", "--resume", "fewer-workers", "scale.workers=1")
    assert resumed.wait() == 0, resumed.output
    state = last_state(workplace, "fewer-workers")
    assert state.step == undisturbed[0].step
    assert state.history[-1]["images/evaluated"] == 360


def test_a_run_is_not_continued_with_another_experiment(start, undisturbed):
    command = start("train", "--resume", "undisturbed", "loss.tau=0")
    assert command.wait() == 2
    assert "only data.path, scale.* and tracking.* may change on --resume" in command.output


def test_a_run_has_one_driver_and_ctrl_c_ends_it_as_killed(start, workplace):
    command = start("train", "digits_lt", *OPTIONS, "train.epochs=40", "tracking.run=interrupted")
    command.wait_for(lambda: latest_step(workplace, "interrupted") > 0)
    second = start("train", "--resume", "interrupted")
    assert second.wait() == 2
    assert "is being trained by another process" in second.output
    command.process.send_signal(signal.SIGINT)
    assert command.wait(60) == 130, command.output
    step = latest_step(workplace, "interrupted")
    last = f"bcl-ray: stopped at step {step}; go on with: bcl-ray train --resume interrupted\n"
    assert command.output.endswith(last)
    client = MlflowClient(f"sqlite:///{workplace}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("bcl-ray")
    (run,) = client.search_runs([experiment.experiment_id], "run_name = 'interrupted'")
    assert run.info.status == "KILLED"
