"""Whole runs on a local Ray: what they compute, record and refuse."""

import json
import re
import socket

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from bcl_ray.experiment.overrides import from_yaml
from bcl_ray.runs import findings
from tests.e2e.conftest import OPTIONS, assert_same_run, last_state
from tests.tracked import mlflow_at

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def runs(workplace):
    client = MlflowClient(f"sqlite:///{workplace}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("bcl-ray")
    return client, {
        run.info.run_name: run for run in client.search_runs([experiment.experiment_id])
    }


def test_a_run_prints_one_line_per_epoch_and_ends_with_a_table(undisturbed):
    _, output = undisturbed
    assert len(re.findall(r"^epoch \d/4 ", output, re.MULTILINE)) == 4
    assert re.search(r"│ undisturbed │ BCL +│", output)
    assert "next: bcl-ray evaluate undisturbed" in output
    for noise in ("INFO", "WARNING", "Traceback", "ray::"):
        assert noise not in output


def test_every_test_image_is_counted_once(undisturbed):
    state, _ = undisturbed
    counted = [r["images/evaluated"] for r in state.history if "images/evaluated" in r]
    assert counted == [360, 360]


def test_mlflow_has_one_complete_run(undisturbed, runs):
    client, found = runs
    run = found["undisturbed"]
    state, _ = undisturbed
    assert run.info.status == "FINISHED"
    assert run.data.params["loss.temperature"] == "0.1"
    assert run.data.tags["data.fingerprint"] == state.fingerprint
    history = client.get_metric_history(run.info.run_id, "loss/total")
    assert [metric.step for metric in history] == [0, 1, 2, 3]
    assert [metric.value for metric in history] == [r["loss/total"] for r in state.history]
    node = socket.gethostname().partition(".")[0]
    cpu = client.get_metric_history(run.info.run_id, f"system/{node}/cpu_percent")
    assert [metric.step for metric in cpu] == [0, 1, 2, 3]
    assert all(0 < metric.value <= 100 for metric in cpu)
    contexts = [one.tags[0].value for one in run.inputs.dataset_inputs]
    assert sorted(contexts) == ["test", "training"]


def test_a_run_leaves_figures_and_a_report_in_its_folder_and_in_mlflow(
    undisturbed, runs, workplace
):
    _, output = undisturbed
    assert "\nreport: runs/undisturbed/report.html\n" in output
    folder = workplace / "runs" / "undisturbed"
    figures = {file.name for file in (folder / "figures").iterdir()}
    assert figures >= {"classes.png", "confusion.png", "mistakes.png", "feature_geometry.png"}
    client, run = runs[0], runs[1]["undisturbed"]
    kept = {found.path for found in client.list_artifacts(run.info.run_id)}
    assert kept >= {"report.html", "classes.csv", "classes.json", "figures"}
    shown = {found.path for found in client.list_artifacts(run.info.run_id, "figures")}
    assert shown == {f"figures/{name}" for name in figures}
    found = findings.read(str(folder))
    assert len(np.unique(found.ids)) == len(found.ids) == 360
    assert found.about["epoch"] == 3


def test_mlflow_brings_the_trained_model_back(undisturbed, runs, workplace):
    from bcl_ray.method.model import Classifier, TwoBranch

    state, _ = undisturbed
    _, found = runs
    with mlflow_at(f"sqlite:///{workplace}/runs/mlflow.db"):
        loaded = mlflow.pytorch.load_model(found["undisturbed"].data.tags["model.uri"])
    experiment = from_yaml(state.experiment)
    model = TwoBranch(experiment.model, 10)
    model.load_state_dict(state.model)
    folders = {
        file.name.partition("_")[0] for file in (workplace / "runs" / "undisturbed").iterdir()
    }
    assert folders & {"checkpoint", "best", "final"} == {"checkpoint", "best"}, "no third copy"
    images = torch.from_numpy(np.random.default_rng(0).random((5, 3, 8, 8), dtype=np.float32))
    own = Classifier(model, experiment.views.mean, experiment.views.std).eval()
    assert torch.allclose(loaded(images), own(images), atol=1e-5)


@pytest.mark.long
def test_the_number_of_workers_does_not_change_what_is_computed(start, workplace):
    """To rounding, which a small learning rate keeps from growing."""
    for workers in (1, 4):
        command = start(
            "train",
            "digits_lt",
            "train.epochs=1",
            "optim.lr=0.001",
            "model.batch_norm=sync",
            f"scale.workers={workers}",
            "scale.cpus_per_worker=0.25",
            "tracking.report=false",
            f"tracking.run=workers-{workers}",
        )
        assert command.wait() == 0, command.output
    one, four = (last_state(workplace, f"workers-{workers}") for workers in (1, 4))
    for name, value in one.history[0].items():
        if name.startswith("loss/"):
            assert four.history[0][name] == pytest.approx(value, rel=1e-4), name
    for name, value in one.model.items():
        assert torch.allclose(four.model[name], value, rtol=1e-3, atol=1e-4), name
    assert four.history[0]["images/evaluated"] == 360


@pytest.mark.long
def test_images_on_the_device_train_what_the_stream_trains_bit_for_bit(
    start, workplace, undisturbed
):
    name = "from-device"
    command = start("train", "digits_lt", *OPTIONS, "data.residency=device", f"tracking.run={name}")
    assert command.wait() == 0, command.output
    assert ", all images on the device" in command.output
    streamed, output = undisturbed
    assert ", all images on the device" not in output
    assert_same_run(last_state(workplace, name), streamed)
    ours, theirs = (findings.read(f"{workplace}/runs/{run}") for run in (name, "undisturbed"))
    assert (ours.ids == theirs.ids).all()
    assert (ours.confidence == theirs.confidence).all()


@pytest.mark.parametrize("kept", ["last", "best"])
def test_evaluate_repeats_the_accuracy_of_the_checkpoint(undisturbed, start, kept):
    state, _ = undisturbed
    accuracies = [r["accuracy/all"] for r in state.history if "accuracy/all" in r]
    command = start("evaluate", "undisturbed", "--json", *(["--best"] if kept == "best" else []))
    assert command.wait() == 0, command.output
    expected = accuracies[-1] if kept == "last" else max(accuracies)
    assert json.loads(command.output)["undisturbed"]["accuracy/all"] == pytest.approx(expected)


def test_a_finished_name_is_refused_for_another_configuration(undisturbed, start):
    command = start("train", "digits_lt", "loss.tau=0", "tracking.run=undisturbed")
    assert command.wait() == 2
    assert command.output == (
        "bcl-ray: run 'undisturbed' exists in runs with another configuration: "
        "give the new run another name (tracking.run=NAME)\n"
    )


def test_a_loss_that_is_not_finite_stops_all_workers_and_keeps_the_last_checkpoint(
    start, workplace
):
    command = start("train", "digits_lt", *OPTIONS, "optim.lr=1e20", "tracking.run=diverged")
    assert command.wait() == 1
    assert re.search(r"bcl-ray: step \d+: the loss .*is not finite", command.output)
    assert "begin another run with a lower optim.lr" in command.output
    assert "--resume" not in command.output  # which would only repeat it
    assert command.start_steps() == [0]
