"""What a search maximises."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bcl_ray.tuning.score import parse_score

FOUND = {"accuracy/all": 60.0, "accuracy/few": 20.0, "calibration/ece": 5.0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("accuracy/all", 60.0),
        ("0.5*accuracy/few+0.5*accuracy/all", 40.0),
        (" .25 * accuracy/few + .75*accuracy/all ", 50.0),
        ("accuracy/all - 2*calibration/ece", 50.0),
        ("-1e-1*calibration/ece", -0.5),
        ("accuracy/few + accuracy/few", 40.0),
    ],
)
def test_a_mix_is_the_sum_of_its_parts(text, expected):
    assert parse_score(text).of(FOUND) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "accuracy",
        "accuracy/all accuracy/few",
        "0.5accuracy/all",
        "accuracy/all+",
        "2*",
        "a/b*2",
    ],
)
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match=r"--metric '.*' must be a metric's name, or a mix"):
        parse_score(text)


def test_a_metric_that_an_evaluation_lacks_is_named():
    with pytest.raises(
        ValueError,
        match=r"--metric accuracy/medium: the evaluation has no 'accuracy/medium'; it has acc",
    ):
        parse_score("accuracy/medium").of(FOUND)


def test_a_group_without_classes_is_refused_before_the_start():
    parse_score("accuracy/all+calibration/ece").check_available(["all", "few"], 1)
    with pytest.raises(ValueError, match="there is no 'accuracy/many' with these data: there are"):
        parse_score("0.5*accuracy/many+accuracy/all").check_available(["all", "few"], 1)
    with pytest.raises(ValueError, match="there is no 'calibration/eec' with these data"):
        parse_score("accuracy/all-calibration/eec").check_available(["all"], 1)


def test_geometry_that_some_evaluations_lack_is_refused_before_the_start():
    score = parse_score("accuracy/all-geometry/nc1")
    score.check_available(["all"], 1)
    parse_score("accuracy/all").check_available(["all"], geometry_every=10)
    with pytest.raises(
        ValueError, match=r"'geometry/nc1' is not measured at every .*: set train.geometry_every=1"
    ):
        score.check_available(["all"], geometry_every=10)


@given(
    st.dictionaries(
        st.sampled_from(sorted(FOUND)), st.floats(-9, 9, allow_subnormal=False), min_size=1
    )
)
def test_a_mix_of_any_weights_is_read_as_written(weights):
    text = "".join(f"{weight:+}*{name}" for name, weight in weights.items())
    expected = sum(weight * FOUND[name] for name, weight in weights.items())
    assert parse_score(text).of(FOUND) == pytest.approx(expected)
