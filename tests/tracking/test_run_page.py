from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import digits_lt
from bcl_ray.tracking.run_page import describe_run
from tests.tracked import manifest


def test_a_run_that_was_not_evaluated_yet_is_described_without_a_table():
    assert describe_run(digits_lt(), manifest(), {}) == (
        "**bcl** with `resnet8` on 3 classes of 20 down to 3 training images (1 medium, "
        "2 few).\n\nRecipe `digits_lt`, seed 0, data `ffffffffffff`, evaluated on split "
        "`test`."
    )


def test_the_last_evaluation_comes_first_and_the_best_second():
    experiment = with_overrides(digits_lt(), ["train.epochs=3"])
    evaluated = {
        0: {"accuracy/all": 50.0, "accuracy/few": 20.0},
        1: {"accuracy/all": 61.25, "accuracy/few": 31.0},
        2: {"accuracy/all": 60.0, "accuracy/few": 30.0, "calibration/ece": 4.5},
    }
    table = describe_run(experiment, manifest(), evaluated).split("\n\n")[1]
    assert table == (
        "| % | all | few | ECE |\n|---|---|---|---|\n"
        "| epoch 3 of 3 | 60.0 | 30.0 | 4.5 |\n| best: epoch 2 | 61.2 | 31.0 | - |"
    )


def test_the_best_is_not_told_twice():
    evaluated = {1: {"accuracy/all": 50.0}, 3: {"accuracy/all": 50.0}}
    assert "best" not in describe_run(digits_lt(), manifest(), evaluated)
