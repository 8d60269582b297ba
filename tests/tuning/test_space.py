"""The space of a search: what may vary, and what a sample is."""

import math

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bcl_ray.experiment.choices import LOSSES
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import digits_lt
from bcl_ray.tuning.space import Parameter, Space, overrides
from bcl_ray.tuning.space_parser import parse_space

RECIPE = digits_lt()
OPTIONS_OF_BCL = [f"loss.{option}" for option in LOSSES["bcl"].uses]


def test_without_a_file_the_space_is_the_loss():
    space = parse_space(None, RECIPE)
    assert [p.name for p in space.parameters] == OPTIONS_OF_BCL
    assert space.published == {
        "loss.temperature": 0.1,
        "loss.contrastive_weight": 0.5,
        "loss.classification_weight": 1.0,
        "loss.tau": 1.0,
        "loss.anchor_mean": "instance",
    }


def test_the_loss_is_what_matters_for_its_kind():
    adjusted = with_overrides(RECIPE, ["loss.kind=logit_adjusted"])
    assert [p.name for p in parse_space(None, adjusted).parameters] == ["loss.tau"]
    with pytest.raises(ValueError, match=r"loss\.kind 'ce' has no options to search"):
        parse_space(None, with_overrides(RECIPE, ["loss.kind=ce"]))


def test_a_file_replaces_the_loss_or_extends_it():
    replaced = parse_space("optim.lr: {log_uniform: [0.01, 1]}", RECIPE)
    assert [p.name for p in replaced.parameters] == ["optim.lr"]
    extended = parse_space("extends: loss\nloss.tau: {choice: [1, 2]}", RECIPE)
    assert [p.name for p in extended.parameters] == OPTIONS_OF_BCL
    assert Parameter("loss.tau", "choice", (1, 2)) in extended.parameters


MISTAKES = [
    (
        "loss.temprature: {uniform: [0, 1]}",
        "no option 'loss.temprature'.*did you mean 'temperature",
    ),
    ("los.tau: {uniform: [0, 1]}", "no option 'los.tau'"),
    ("loss: {uniform: [0, 1]}", "'loss' is a section"),
    ("loss.temperature: {uniform: [0, 1]}", "loss.temperature=0: input should be greater than 0"),
    ("train.ema_decay: {uniform: [0, 1]}", "train.ema_decay=1: input should be less than 1"),
    ("loss.anchor_mean: {uniform: [0, 1]}", "loss.anchor_mean=0: input should be 'instance' or"),
    ("loss.anchor_mean: {choice: [instance, image]}", "loss.anchor_mean=image: input should be"),
    ("model.width: {uniform: [8, 32]}", "model.width=15.54: input should be a valid integer"),
    ("loss.tau: {choice: [high]}", "loss.tau=high: input should be a valid number"),
    ("loss.tau: {uniform: [2, 1]}", r"loss.tau: uniform \[2, 1\] must rise"),
    ("loss.tau: {uniform: [1]}", r"loss.tau: uniform needs \[lowest, highest\], got \[1\]"),
    ("loss.tau: {uniform: [a, b]}", r"loss.tau: uniform \[a, b\] must be two numbers"),
    ("loss.tau: {uniform: [0, .inf]}", r"loss.tau: uniform \[0, inf\] must be two numbers"),
    ("loss.tau: {log_uniform: [0, 1]}", r"log_uniform \[0, 1\] must be above 0"),
    ("model.width: {integer: [8, 9.5]}", r"integer \[8, 9.5\] must be two integers"),
    ("loss.tau: {uniform: [0, 1], choice: [2]}", "loss.tau must have one of uniform, log_uniform"),
    ("loss.tau: 1", "loss.tau must have one of uniform"),
    ("loss.tau: {uniform: [0, 1], points: 1}", r"loss.tau: points \(1\) must be an integer of at"),
    ("loss.tau: {choice: []}", "loss.tau: choice needs a list of values"),
    ("scale.workers: {choice: [1]}", "scale.workers cannot be searched: it changes how fast"),
    ("data.path: {choice: [a]}", "data.path cannot be searched: trials are compared on the same"),
    ("tracking.run: {choice: [a]}", "tracking.run cannot be searched: the search names its runs"),
    ("train.seed: {choice: [1]}", "train.seed cannot be searched: --confirm"),
    ("extends: everything", "extends is 'everything': it must be loss, or left out"),
    ("- loss.tau", "must map options to their values"),
    ("", "must map options to their values"),
    ("loss.tau: {uniform: [0", "is not valid YAML"),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_a_mistake_is_named(text, message):
    with pytest.raises(ValueError, match=f"--space.*{message}"):
        parse_space(text, RECIPE)


def test_a_sample_depends_on_the_seed_and_the_number_alone():
    space = parse_space(None, RECIPE)
    assert space.sample(0, 7) == space.sample(0, 7)
    assert space.sample(0, 7) != space.sample(0, 8)
    assert space.sample(0, 7) != space.sample(1, 7)


def test_samples_are_distributed_as_they_should_be():
    text = (
        "loss.temperature: {log_uniform: [0.01, 1]}\nloss.tau: {uniform: [1, 2]}\n"
        "train.epochs: {integer: [1, 4]}\nloss.anchor_mean: {choice: [instance, class]}"
    )
    space = parse_space(text, RECIPE)
    points = [space.sample(0, number) for number in range(1, 2001)]
    for name, quarters in (
        ("loss.temperature", [10 ** (-1.5), 0.1, 10 ** (-0.5)]),
        ("loss.tau", [1.25, 1.5, 1.75]),
    ):
        values = [point[name] for point in points]
        for share, quarter in zip((0.25, 0.5, 0.75), quarters, strict=True):
            assert np.mean([value < quarter for value in values]) == pytest.approx(share, abs=0.04)
    epochs = [point["train.epochs"] for point in points]
    for number in (1, 2, 3, 4):
        assert epochs.count(number) == pytest.approx(500, abs=80)
    assert [p["loss.anchor_mean"] for p in points].count("class") == pytest.approx(1000, abs=100)


@given(
    kind=st.sampled_from(["uniform", "log_uniform"]),
    low=st.floats(1e-6, 1e3),
    factor=st.floats(1.0001, 1e4),
    share=st.floats(0, 1),
)
def test_a_sample_lies_within_its_bounds_and_is_short(kind, low, factor, share):
    value = Parameter("loss.tau", kind, (low, low * factor)).quantile(share)
    assert low <= value <= low * factor
    assert value in (low, low * factor, float(f"{value:.4g}"))


@given(low=st.integers(-50, 50), width=st.integers(1, 100), share=st.floats(0, 1))
def test_an_integer_lies_within_its_bounds(low, width, share):
    value = Parameter("train.epochs", "integer", (low, low + width)).quantile(share)
    assert isinstance(value, int)
    assert low <= value <= low + width


def test_points_that_the_configuration_refuses_together_are_passed_over():
    text = "loss.classification_weight: {choice: [0, 1]}\nloss.contrastive_weight: {choice: [0, 1]}"
    space = parse_space(text, RECIPE)
    weights = {tuple(space.sample(0, number).values()) for number in range(50)}
    assert weights == {(0, 1), (1, 0), (1, 1)}
    assert [tuple(point.values()) for point in space.grid()] == [(0, 1), (1, 0), (1, 1)]


def test_a_space_without_a_possible_point_says_why():
    space = Space(
        with_overrides(RECIPE, ["loss.contrastive_weight=0"]),
        (Parameter("loss.classification_weight", "choice", (0,)),),
    )
    with pytest.raises(ValueError, match=r"allows none: loss\.classification_weight and"):
        space.sample(0, 1)


def test_a_grid_has_every_combination_but_the_published_one():
    text = (
        "loss.tau: {uniform: [0, 2], points: 3}\nloss.temperature: {log_uniform: [0.01, 1]}\n"
        "train.epochs: {integer: [1, 3]}\n"
    )
    points = list(parse_space(text, with_overrides(RECIPE, ["train.epochs=2"])).grid())
    assert len(points) == 3 * 3 * 3 - 1  # (1, 0.1, 2) is trial 0
    assert {point["loss.tau"] for point in points} == {0.0, 1.0, 2.0}
    assert {point["loss.temperature"] for point in points} == {0.01, 0.1, 1.0}
    assert {point["train.epochs"] for point in points} == {1, 2, 3}


def test_a_grid_looks_up_the_published_values_once(monkeypatch):
    dumps, dump = [], type(RECIPE).model_dump

    def counted(self, **options):
        dumps.append(self)
        return dump(self, **options)

    space = parse_space("loss.tau: {uniform: [0, 2], points: 20}", RECIPE)
    monkeypatch.setattr(type(RECIPE), "model_dump", counted)
    monkeypatch.setattr(Space, "allows", lambda self, point: True)
    assert len(list(space.grid())) == 20
    assert len(dumps) == 1


@settings(max_examples=50)
@given(
    st.one_of(
        st.floats(0.001, 5),
        st.integers(1, 5),
    )
)
def test_a_value_survives_the_way_through_an_override(value):
    changed = with_overrides(RECIPE, overrides({"loss.tau": value}))
    assert math.isclose(changed.loss.tau, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optim.milestones", [10, 20]),
        ("model.weights", None),
        ("optim.decay_norms_and_biases", False),
        ("loss.anchor_mean", "class"),
        ("views.classification.scale", [0.2, 1.0]),
    ],
)
def test_so_does_any_choice(name, value):
    space = parse_space(yaml.safe_dump({name: {"choice": [value]}}), RECIPE)
    changed = with_overrides(RECIPE, overrides(space.sample(0, 1))).model_dump(mode="json")
    for part in name.split("."):
        changed = changed[part]
    assert changed == value
