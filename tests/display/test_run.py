import io

import pytest
from rich.console import Console

from bcl_ray.display.run import RunDisplay, method_title
from bcl_ray.display.tables import accuracy_table, prediction_table
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import cifar10_lt
from bcl_ray.runs.budget import Budget
from bcl_ray.use.predict.outputs import Summary

BUDGET = Budget(
    steps_per_epoch=48,
    steps=9600,
    images_per_epoch=12_288,
    left_out=118,
    eval_images=10_000,
    bytes_per_epoch=10**7,
    batch_bytes=10**6,
    plan=2,
    mixing="images of a row group (48) never meet in a batch",
    worker_cpus=2.0,
    data_cpus=6.0,
    store_bytes=10**8,
)
BEGIN = {
    "kind": "begin",
    "run": "mine",
    "folder": "s3://bucket/[runs]/mine",
    "tracking_uri": "sqlite:///" + "long/" * 40 + "mlflow.db",
    "budget": BUDGET,
    "experiment": cifar10_lt(),
    "classes": 10,
}
START = {"kind": "start", "workers": 2, "step": 0, "precision": "float32"}
RECORD = {
    "epoch": 4.0,
    "loss/total": 3.14159,
    "throughput/images_per_second": 1234.5,
    "time/data_share": 2.4,
    "time/epoch": 10.0,
}


def shown(*events: dict, terminal: bool = False) -> str:
    text = io.StringIO()
    with RunDisplay(Console(file=text, width=120, force_terminal=terminal)) as follower:
        for event in events:
            follower(event)
    return text.getvalue()


def test_an_epoch_that_was_only_evaluated_is_shown_without_rates_of_training():
    record = {"epoch": 4.0, "loss/total": 3.14159, "time/evaluate": 1.5}
    out = shown(BEGIN, {"kind": "epoch", "epochs": 20, "records": [record]})
    assert "epoch  5/20   loss 3.142   1.5 s" in out


def rendered(table) -> list[list[str]]:
    text = io.StringIO()
    Console(file=text, width=120).print(table)
    rows = [line for line in text.getvalue().splitlines() if line.startswith(("┃", "│"))]
    return [[cell.strip() for cell in row.replace("┃", "│").strip("│").split("│")] for row in rows]


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "BCL"),
        (["loss.tau=0"], "BCL (tau 0)"),
        (["loss.kind=scl"], "supervised contrastive"),
        (["loss.kind=logit_adjusted"], "logit-adjusted cross-entropy"),
        (["loss.contrastive_weight=0"], "BCL (contrastive_weight 0)"),
        (["loss.kind=logit_adjusted", "loss.tau=0"], "logit-adjusted cross-entropy (tau 0)"),
        (["loss.kind=ce"], "cross-entropy"),
    ],
)
def test_a_method_is_named_by_its_loss(overrides, name):
    assert method_title(with_overrides(cifar10_lt(), overrides)) == name


def test_the_table_leaves_out_groups_that_no_run_has_and_marks_what_one_lacks():
    first = {"accuracy/all": 84.32, "accuracy/many": 90.0, "calibration/ece": 3.05}
    second = {"accuracy/all": 70.0}
    table = accuracy_table([("a", "BCL", first), ("b", "cross-entropy", second)])
    assert rendered(table) == [
        ["run", "method", "all", "many", "ECE"],
        ["a", "BCL", "84.3", "90.0", "3.0"],
        ["b", "cross-entropy", "70.0", "-", "-"],
    ]


def test_the_beginning_tells_run_method_data_scale_and_where_to_look():
    lines = shown(BEGIN).splitlines()
    assert lines == [
        "run      mine  in s3://bucket/[runs]/mine",
        "method   BCL, resnet32",
        "data     data/cifar10_lt: 10 classes, 12,288 training images in 48 steps of 256, 10,000 "
        "of 'test' to evaluate",
        "scale    1 worker on Ray",
        "MLflow   " + BEGIN["tracking_uri"],
    ]


def test_an_epoch_is_one_line():
    event = {"kind": "epoch", "epochs": 200, "records": [RECORD]}
    assert shown(BEGIN, START, event).splitlines()[-1] == (
        "epoch   5/200   loss 3.142   1,234 images/s   data 2 %   10.0 s"
    )


def test_an_evaluated_epoch_tells_the_accuracy_of_the_groups_there_are():
    evaluated = RECORD | {"accuracy/all": 50.0, "accuracy/few": 25.04, "time/evaluate": 2.5}
    event = {"kind": "epoch", "epochs": 200, "records": [RECORD, evaluated]}
    assert shown(BEGIN, START, event).splitlines()[-1] == (
        "epoch   5/200   loss 3.142   accuracy all 50.0  few 25.0   1,234 images/s   data 2 %   "
        "12.5 s"
    )


STEP = {"kind": "step", "epoch": 4, "step": 12, "steps": 48}


@pytest.mark.parametrize(
    ("rates", "count"),
    [
        (
            {"images_per_second": 1234.5, "data_percent": 2.4, "checkpoint_percent": 0.6},
            "step 12/48  1,234 images/s  data 2 %  checkpoints 1 %",
        ),
        (
            {"gpu_memory_percent": 61.0, "gpu_percent": 99.0},
            "step 12/48  GPU 99 %  GPU memory 61 %",
        ),
        ({}, "step 12/48"),
    ],
)
def test_the_bar_shows_the_rates_that_workers_send(rates, count):
    """One of an older version sends none."""
    event = STEP | ({"rates": rates} if rates else {})
    text = shown(BEGIN, START, event, terminal=True)
    assert count in text
    assert ("GPU" in text) == ("GPU" in count)


def test_a_resumed_run_tells_its_step():
    line = shown(BEGIN, START | {"step": 4800}).splitlines()[-1]
    assert line == "2 workers started at step 4,800, 0 s after the command, in float32"
    line = shown(BEGIN, START | {"step": 9600}).splitlines()[-1]
    assert line.startswith("2 workers started at step 9,600, the last: nothing is left to train, ")


def test_a_run_whose_images_live_on_the_device_says_so():
    line = shown(BEGIN, START | {"residency": "device"}).splitlines()[-1]
    expected = "2 workers started, 0 s after the command, in float32, all images on the device"
    assert line == expected
    assert "on the device" not in shown(BEGIN, START | {"residency": "stream"})


def test_an_elastic_run_tells_that_batch_and_learning_rate_stay():
    experiment = with_overrides(cifar10_lt(), ["scale.workers=[1,4]"])
    line = shown(BEGIN | {"experiment": experiment}, START | {"step": 12}).splitlines()[-1]
    each = experiment.optim.global_batch_size // 2
    assert line == (
        f"2 workers started at step 12, 0 s after the command, in float32: {each} images each; "
        f"global batch ({2 * each}) and lr stay the same"
    )


def test_workers_that_start_again_keep_the_one_bar():
    follower = RunDisplay(Console(file=io.StringIO(), force_terminal=True))
    with follower:
        for event in (BEGIN, START, START | {"step": 7}):
            follower(event)
        assert len(follower._progress.tasks) == 1


def test_the_bar_shows_epoch_and_step():
    step = {"kind": "step", "epoch": 2, "step": 7, "steps": 48}
    assert "step 7/48" in shown(BEGIN, START, step, terminal=True)
    assert "epoch 3/200" in shown(BEGIN, START, step, terminal=True)


def test_steps_print_nothing_where_no_one_watches():
    step = {"kind": "step", "epoch": 2, "step": 7, "steps": 48}
    assert shown(BEGIN, START, step) == shown(BEGIN, START)


def test_the_end_is_silent_when_mlflow_has_everything():
    end = {"kind": "end", "run": "mine", "tracked": True, "problem": None}
    assert shown(BEGIN, START, end) == shown(BEGIN, START)


def test_the_end_tells_how_to_hand_in_what_mlflow_missed():
    end = {"kind": "end", "reference": "mine", "tracked": False, "problem": "[Errno 111] refused"}
    assert shown(BEGIN, START, end).splitlines()[-1] == (
        "MLflow did not accept everything ([Errno 111] refused); the journal has it all: "
        "try again with `bcl-ray sync mine`"
    )


def test_a_run_s_page_is_shown_whole():
    page = "http://mlflow:5000/#/experiments/1/runs/" + 32 * "a"
    assert shown({"kind": "page", "page": page}) == f"page     {page}\n"


PREDICTING = {
    "kind": "predicting",
    "model": "models:/digits@champion",
    "checkpoint": "runs/first/best_00000012",
    "images": "s3://bucket/new",
    "output": "s3://bucket/labels",
    "total": 12_345,
    "done": 4096,
    "temperature": 1.234,
    "device": "2 GPUs",
}


def test_predictions_begin_with_what_where_and_how_calibrated():
    assert shown(PREDICTING).splitlines() == [
        "model    models:/digits@champion: runs/first/best_00000012, temperature 1.23",
        "images   s3://bucket/new: 12,345, 4,096 of them labelled before",
        "output   s3://bucket/labels",
        "scale    2 GPUs on Ray",
    ]
    text = shown({**PREDICTING, "temperature": None, "done": 0})
    assert "temperature 1, because none was fitted: probabilities are not calibrated\n" in text
    assert "s3://bucket/new: 12,345\n" in text


def test_a_terminal_sees_how_far_labelling_is():
    listing = {"kind": "images", "doing": "listing", "done": 8192, "total": None}
    labelling = {"kind": "images", "doing": "labelling", "done": 4224, "total": 12_345}
    text = shown(listing, terminal=True)
    assert "listing" in text
    assert "8,192 images" in text
    text = shown(PREDICTING, {**labelling, "unreadable": 2}, terminal=True)
    assert "4,224/12,345 images, 2 unreadable" in text
    assert "images" not in shown(listing, labelling)


def test_labels_are_summed_up_by_shot_group():
    summary = Summary(200, 4, {"many": 147, "few": 49}, {"many": 73.5, "few": 9.8})
    assert rendered(prediction_table(summary)) == [
        ["group", "images", "share", "mean probability"],
        ["many", "147", "75.0 %", "50.0 %"],
        ["few", "49", "25.0 %", "20.0 %"],
        ["unreadable", "4", "", ""],
    ]
