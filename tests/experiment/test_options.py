import re

import pytest
import yaml
from pydantic import ValidationError

from bcl_ray.experiment.options import (
    Experiment,
    LossConfig,
    OptimConfig,
    Section,
    TrainConfig,
    ViewConfig,
)
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import RECIPES, cifar10_lt


def sections(model: type[Section] = Experiment) -> list[type[Section]]:
    nested = [
        field.annotation
        for field in model.model_fields.values()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    ]
    return [model, *(found for inner in nested for found in sections(inner))]


def test_an_experiment_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        cifar10_lt().loss.temperature = 0.2


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_every_option_has_a_description(section):
    missing = [
        name
        for name, field in section.model_fields.items()
        if not field.description and field.annotation not in sections()
    ]
    assert missing == []


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_every_section_refuses_an_option_it_does_not_know(section):
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        section.model_validate({"no_such_option": 1})


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_yaml_is_complete_and_holds_only_plain_values(recipe):
    content = yaml.safe_load(recipe().to_yaml())
    assert list(content) == list(Experiment.model_fields)
    assert list(content["loss"]) == list(LossConfig.model_fields)
    assert list(content["views"]["contrastive"]) == list(ViewConfig.model_fields)


def test_batch_that_the_workers_cannot_share_is_refused():
    message = (
        r"^optim.global_batch_size \(256\) must be divisible by scale.workers \(3\): workers with "
        r"unequal batches would hang in all-reduce$"
    )
    with pytest.raises(ValueError, match=message):
        with_overrides(cifar10_lt(), ["scale.workers=3"])


def test_more_workers_than_plan_1_serves_are_refused():
    message = (
        r"^scale.workers \(32\) must be at most data.max_workers \(16\) if data.plan is 1: raise "
        "data.max_workers to plan for more$"
    )
    with pytest.raises(ValueError, match=message):
        with_overrides(cifar10_lt(), ["data.plan=1", "scale.workers=32"])
    wider = ["data.plan=1", "data.max_workers=32", "scale.workers=32"]
    assert with_overrides(cifar10_lt(), wider).scale.workers == 32
    assert with_overrides(cifar10_lt(), ["scale.workers=32"]).scale.workers == 32


@pytest.mark.parametrize("kind", ["scl", "bcl"])
def test_two_weights_of_zero_are_refused(kind):
    message = (
        "^loss.classification_weight and loss.contrastive_weight are both 0: "
        "set at least one of them$"
    )
    weights = ["loss.classification_weight=0", "loss.contrastive_weight=0"]
    with pytest.raises(ValueError, match=message):
        with_overrides(cifar10_lt(), [f"loss.kind={kind}", *weights])


@pytest.mark.parametrize("kind", ["ce", "logit_adjusted"])
def test_a_loss_of_one_part_that_weighs_nothing_is_refused(kind):
    message = (
        f"^loss.classification_weight is 0, and loss.kind '{kind}' has no other loss: "
        "set it above 0, or take kind 'scl' or 'bcl'$"
    )
    with pytest.raises(ValueError, match=message):
        with_overrides(cifar10_lt(), [f"loss.kind={kind}", "loss.classification_weight=0"])


@pytest.mark.parametrize("kind", ["scl", "bcl"])
def test_a_contrastive_loss_alone_is_enough(kind):
    loss = LossConfig(kind=kind, classification_weight=0)
    assert loss.is_contrastive


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "views.classification.scale=[0.5, 0.1]",
            "views.classification: scale (0.5, 0.1) must be two positive numbers, rising",
        ),
        (
            "views.contrastive.ratio=[0, 1]",
            "views.contrastive: ratio (0.0, 1.0) must be two positive numbers, rising",
        ),
        (
            "views.contrastive.jitter=[0, 0, 0, 0.6]",
            "views.contrastive: jitter (0.0, 0.0, 0.0, 0.6) must be >= 0, and its last number "
            "<= 0.5",
        ),
        (
            "views.eval_resize=16",
            "views.eval_resize (16) must be at least views.image_size (32): the centre is cut out "
            "of it",
        ),
        ("views.std=[0.2, 0, 0.2]", "views.std (0.2, 0.0, 0.2) must be positive"),
        ("optim.milestones=[180, 160]", "optim.milestones (180.0, 160.0) must rise"),
        ("optim.milestones=[160, 160]", "optim.milestones (160.0, 160.0) must rise"),
    ],
)
def test_options_that_contradict_each_other_are_refused(override, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        with_overrides(cifar10_lt(), [override])


@pytest.mark.parametrize(
    ("overrides", "num_views"),
    [
        ([], 2),
        (["loss.kind=scl"], 2),
        (["loss.kind=logit_adjusted"], 0),
        (["loss.kind=ce"], 0),
        (["loss.contrastive_weight=0"], 0),
        (["loss.kind=scl", "loss.contrastive_weight=0"], 0),
    ],
)
def test_the_kind_of_loss_decides_on_views(overrides, num_views):
    assert with_overrides(cifar10_lt(), overrides).num_contrastive == num_views


@pytest.mark.parametrize(
    "override",
    [
        "scale.workers=4",
        "tracking.run=other",
        "tracking.uri=sqlite:///x.db",
        "data.path=elsewhere",
        "data.residency=device",
    ],
)
def test_how_fast_and_where_a_run_goes_leaves_the_digest(override):
    assert with_overrides(cifar10_lt(), [override]).digest() == cifar10_lt().digest()


@pytest.mark.parametrize(
    "override", ["train.seed=1", "loss.tau=0.9", "data.plan=1", "views.mean=[0, 0, 0]"]
)
def test_what_determines_the_result_changes_the_digest(override):
    assert with_overrides(cifar10_lt(), [override]).digest() != cifar10_lt().digest()


@pytest.mark.parametrize(
    ("epochs", "eval_every", "geometry_every", "evaluated", "measured"),
    [
        (4, 1, 1, [1, 2, 3, 4], [1, 2, 3, 4]),
        (7, 1, 3, [1, 2, 3, 4, 5, 6, 7], [1, 3, 6, 7]),
        (10, 3, 2, [3, 6, 9, 10], [3, 6, 10]),
        (10, 3, 9, [3, 6, 9, 10], [3, 10]),
        (2, 5, 5, [2], [2]),
    ],
)
def test_the_first_and_the_last_evaluation_and_every_so_manyth_measure_geometry(
    epochs, eval_every, geometry_every, evaluated, measured
):
    """Epochs counted from 1."""
    train = TrainConfig(epochs=epochs, eval_every=eval_every, geometry_every=geometry_every)
    found = [epoch for epoch in range(epochs) if train.evaluates(epoch)]
    assert [epoch + 1 for epoch in found] == evaluated
    assert [epoch + 1 for epoch in found if train.measures_geometry(epoch)] == measured


def test_published_momentum_and_decay_are_the_defaults():
    defaults = OptimConfig(global_batch_size=256, lr=0.1, schedule="step")
    assert (defaults.momentum, defaults.gamma, defaults.decay_norms_and_biases) == (0.9, 0.1, True)


def test_elastic_workers_are_the_divisors_of_the_global_batch_from_least_to_most():
    run = with_overrides(cifar10_lt(), ["scale.workers=[2,16]", "optim.global_batch_size=240"])
    assert run.worker_counts == (2, 3, 4, 5, 6, 8, 10, 12, 15, 16)
    assert (run.scale.min_workers, run.scale.max_workers) == (2, 16)
    assert run.scale.shown_workers == "2 to 16 workers"
    fixed = with_overrides(cifar10_lt(), ["scale.workers=4"])
    assert fixed.worker_counts == (4,)


@pytest.mark.parametrize(
    ("workers", "message"),
    [
        ("[4,2]", r"^scale.workers \[4, 2\] must be \[least, most\]"),
        ("[1,3]", r"^optim.global_batch_size \(256\) must be divisible by scale.workers \(3\)"),
        ("[3,4]", r"^optim.global_batch_size \(256\) must be divisible by scale.workers \(3\)"),
        ("[0,4]", r"scale.workers"),
    ],
)
def test_elastic_workers_that_cannot_be_are_refused(workers, message):
    with pytest.raises(ValueError, match=message):
        with_overrides(cifar10_lt(), [f"scale.workers={workers}"])
