"""A run that is interrupted ends as if nothing had happened; kills are drilled in tests/faults."""

import re
import shutil
import signal

import pytest
from mlflow import MlflowClient

from tests.e2e.conftest import OPTIONS, assert_same_run, last_state, latest_step

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]
STEPS = 12  # per epoch


def in_mid_epoch(workplace, name):
    """Whether the last checkpoint was cut within an epoch, after the first one."""
    step = latest_step(workplace, name)
    return step > STEPS and step % STEPS != 0


def tracked(workplace, name):
    """MLflow's client, and the one run that it has by that name."""
    client = MlflowClient(f"sqlite:///{workplace}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("bcl-ray")
    (run,) = client.search_runs([experiment.experiment_id], f"run_name = '{name}'")
    return client, run


def test_an_interrupted_run_is_resumed_in_mid_epoch_bit_for_bit_or_with_other_workers(
    start, workplace, undisturbed
):
    command = start("train", "digits_lt", *OPTIONS, "tracking.run=interrupted")
    command.wait_for(lambda: in_mid_epoch(workplace, "interrupted"))
    command.process.send_signal(signal.SIGINT)
    assert command.wait(60) == 130, command.output
    step = latest_step(workplace, "interrupted")
    last = f"bcl-ray: stopped at step {step}; go on with: bcl-ray train --resume interrupted\n"
    assert command.output.endswith(last)
    assert tracked(workplace, "interrupted")[1].info.status == "KILLED"
    shutil.copytree(workplace / "runs" / "interrupted", workplace / "runs" / "fewer-workers")

    resumed = start("train", "--resume", "interrupted")
    assert resumed.wait() == 0, resumed.output
    assert resumed.start_steps() == [step]
    assert_same_run(last_state(workplace, "interrupted"), undisturbed[0])
    client, run = tracked(workplace, "interrupted")
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "loss/total")
    assert sorted(metric.step for metric in history) == [0, 1, 2, 3]

    resumed = start("train", "--resume", "fewer-workers", "scale.workers=1")
    assert resumed.wait() == 0, resumed.output
    state = last_state(workplace, "fewer-workers")
    assert state.step == undisturbed[0].step
    assert state.history[-1]["images/evaluated"] == 360


def test_a_stop_that_comes_with_the_last_step_of_an_epoch_is_not_lost(start, workplace):
    """Here every step is the last one of its epoch."""
    words = ["train.epochs=300", "train.eval_every=300", "optim.global_batch_size=256"]
    words += ["tracking.report=false", "tracking.run=single-steps"]
    command = start("train", "digits_lt", *words)
    command.wait_for(lambda: re.search(r"epoch +2/", command.output))
    command.process.send_signal(signal.SIGINT)
    assert command.wait(60) == 130, command.output
    assert f"stopped at step {latest_step(workplace, 'single-steps')}; go on" in command.output


def test_a_run_is_not_continued_with_another_experiment(start, undisturbed):
    command = start("train", "--resume", "undisturbed", "loss.tau=0")
    assert command.wait() == 2
    assert "only data.path, data.residency, scale.* and tracking.* may change" in command.output


def test_a_damaged_checkpoint_is_replaced_by_the_one_before(start, workplace, undisturbed):
    folder = workplace / "runs" / "damaged"
    shutil.copytree(workplace / "runs" / "undisturbed", folder)
    last = max(folder.glob("checkpoint_0*"), key=lambda found: found.stat().st_mtime)
    (last / "state.pt").write_bytes((last / "state.pt").read_bytes()[:1000])
    resumed = start("train", "--resume", "damaged")
    assert resumed.wait() == 0, resumed.output
    assert f"{last.name}/state.pt is damaged" in resumed.output
    assert resumed.start_steps() == [4 * STEPS - 4], "train.checkpoint_every_steps before the end"
    assert_same_run(last_state(workplace, "damaged"), undisturbed[0])
