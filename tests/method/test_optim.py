"""Schedules against tables written by hand, and which parameters have weight decay."""

import pytest
import torch
from torch import nn

from bcl_ray.experiment.options import OptimConfig
from bcl_ray.method.optim import learning_rate, make_optimizer, parameter_groups
from tests import oracles

CIFAR = OptimConfig(
    global_batch_size=256,
    lr=0.15,
    schedule="step",
    warmup_epochs=5,
    milestones=(160, 180),
)


def cosine(**options) -> OptimConfig:
    return OptimConfig(global_batch_size=8, lr=0.1, schedule="cosine", **options)


@pytest.mark.parametrize(
    ("epoch", "step_of_epoch", "expected"),
    [
        (0, 0, 0.15 / 215),  # 5 epochs of 43 steps
        (0, 42, 0.03),
        (1, 42, 0.06),
        (2, 42, 0.09),
        (3, 42, 0.12),
        (4, 41, 0.15 * 214 / 215),
        (4, 42, 0.15),
        (5, 0, 0.15),
        (100, 17, 0.15),
        (159, 42, 0.15),
        (160, 0, 0.015),
        (179, 42, 0.015),
        (180, 0, 0.0015),
        (199, 42, 0.0015),
    ],
)
def test_published_cifar_schedule(epoch, step_of_epoch, expected):
    assert learning_rate(epoch * 43 + step_of_epoch, 43, 200, CIFAR) == pytest.approx(expected)


def test_cosine_table():
    rates = [learning_rate(step, 2, 3, cosine()) for step in range(6)]
    expected = [0.1, 0.0933013, 0.075, 0.05, 0.025, 0.0066987]
    assert rates == pytest.approx(expected, abs=1e-7)


def test_cosine_spans_what_warm_up_leaves():
    rates = [learning_rate(step, 2, 4, cosine(warmup_epochs=1)) for step in range(8)]
    expected = [0.05, 0.1, 0.1, 0.0933013, 0.075, 0.05, 0.025, 0.0066987]
    assert rates == pytest.approx(expected, abs=1e-7)


def test_cosine_per_epoch_is_the_authors():
    config = cosine(cosine_per_epoch=True)
    rates = [learning_rate(step, 7, 90, config) for step in range(630)]
    assert rates[::7] == pytest.approx(oracles.learning_rates_of_a_cosine(0.1, 90))
    assert rates[::7] == rates[6::7]  # constant within an epoch
    assert rates[0] == pytest.approx(0.0999702, abs=1e-7)
    assert rates[-1] == pytest.approx(0.1 * 2.98e-4, rel=1e-2)


def test_cosine_per_epoch_counts_what_warm_up_leaves():
    config = cosine(cosine_per_epoch=True, warmup_epochs=1)
    rates = [learning_rate(step, 2, 3, config) for step in range(6)]
    assert rates == pytest.approx([0.05, 0.1, 0.075, 0.075, 0.025, 0.025])


def test_warm_up_may_end_within_an_epoch():
    config = cosine(warmup_epochs=0.5)
    rates = [learning_rate(step, 4, 2, config) for step in range(3)]
    assert rates == pytest.approx([0.05, 0.1, 0.1])


def test_warm_up_may_take_the_whole_run():
    rates = [learning_rate(step, 2, 2, cosine(warmup_epochs=2)) for step in range(4)]
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1])


@pytest.mark.parametrize("step", [-1, 6])
def test_a_step_outside_the_run_is_refused(step):
    with pytest.raises(ValueError, match=rf"step \({step}\) must be in \[0, 6\): 3 epochs of 2"):
        learning_rate(step, 2, 3, cosine())


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.frozen = nn.Parameter(torch.zeros(2), requires_grad=False)


def test_all_parameters_decay_as_published():
    (group,) = parameter_groups(Tiny(), CIFAR)
    assert group["weight_decay"] == 5e-4
    assert [tuple(parameter.shape) for parameter in group["params"]] == [
        (4, 3, 3, 3),
        (4,),
        (4,),
        (4,),
    ]


def test_norms_and_biases_can_be_spared():
    config = CIFAR.model_copy(update={"decay_norms_and_biases": False})
    decayed, spared = parameter_groups(Tiny(), config)
    assert [tuple(parameter.shape) for parameter in decayed["params"]] == [(4, 3, 3, 3)]
    assert decayed["weight_decay"] == 5e-4
    assert [tuple(parameter.shape) for parameter in spared["params"]] == [(4,), (4,), (4,)]
    assert spared["weight_decay"] == 0


def test_optimizer_takes_its_options():
    optimizer = make_optimizer(Tiny(), CIFAR)
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.defaults["momentum"] == 0.9
    assert optimizer.defaults["nesterov"] is False
    assert optimizer.param_groups[0]["lr"] == 0.15
    assert optimizer.param_groups[0]["weight_decay"] == 5e-4


def test_adamw_has_the_groups_and_rates_of_the_options():
    config = CIFAR.model_copy(update={"kind": "adamw", "decay_norms_and_biases": False})
    optimizer = make_optimizer(Tiny(), config)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [5e-4, 0]


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(2, 2)
        self.classifier = nn.Linear(2, 2)


def test_a_factor_of_the_backbone_makes_groups_and_0_leaves_it_out():
    def groups(factor: float) -> dict[float, int]:
        config = CIFAR.model_copy(update={"backbone_lr": factor})
        return {g["lr_factor"]: len(g["params"]) for g in parameter_groups(Branches(), config)}

    assert groups(1.0) == {1.0: 4}
    assert groups(0.1) == {1.0: 2, 0.1: 2}
    assert groups(0.0) == {1.0: 2}


def test_an_optimiser_of_before_there_were_factors_goes_on():
    model = Branches()
    optimizer = make_optimizer(model, CIFAR)
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        del group["lr_factor"]
    optimizer.load_state_dict(state)
    assert [group.get("lr_factor", 1.0) for group in optimizer.param_groups] == [1.0]
