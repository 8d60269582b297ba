"""The plain loop of `benchmarks.parity`, whose parts are replaced by the project's."""

import math
from statistics import mean

import pytest

from bcl_ray.data.shards import write_shards
from bcl_ray.data.sources import open_source
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import cifar100_lt
from benchmarks.parity import ALL, PLAIN, PROJECT, RECIPE, half_width, trained

TINY = (
    "views.image_size=8",
    "views.eval_resize=8",
    "optim.global_batch_size=32",
    "model.width=4",
    "model.hidden_dim=16",
    "model.feature_dim=8",
    "train.epochs=2",
)


LEARNING = (  # a case that eight epochs teach something, in which seeds differ little
    "views.image_size=8",
    "views.eval_resize=8",
    "views.classification.padding=1",
    "views.classification.cutout=2",
    "views.classification.flip=0",
    "views.contrastive.flip=0",
    "views.contrastive.scale=[0.6, 1]",
    "optim.global_batch_size=64",
    "optim.lr=0.01",
    "optim.milestones=[6]",
    "model.hidden_dim=64",
    "model.feature_dim=32",
    "train.epochs=8",
)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Shards of digits, and their manifest."""
    shards = str(tmp_path_factory.mktemp("parity") / "digits")
    options = {"profile": "exponential", "imbalance_factor": 5}
    return shards, write_shards(open_source("digits"), shards, **options)


@pytest.fixture(scope="module")
def train(digits):
    """Loss of each epoch and accuracy of a row's training on digits."""
    shards, manifest = digits

    def run(row, seed=0, options=TINY):
        experiment = with_overrides(cifar100_lt(), [*RECIPE, *options, f"data.path={shards}"])
        result = trained(experiment, manifest, (row, seed), evaluated=True)
        return result["losses"], result["accuracy"]

    return run


@pytest.fixture(scope="module")
def seeds(train):
    """Last losses and accuracies of some seeds."""

    def run(row, *changes, count=5):
        found = [train(row, seed, (*LEARNING, *changes)) for seed in range(count)]
        return [losses[-1] for losses, _ in found], [accuracy["all"] for _, accuracy in found]

    return run


@pytest.fixture(scope="module")
def plain(seeds):
    return seeds(PLAIN)


def above(values, others):
    """By how much a mean is above another beyond the interval of their difference."""
    return mean(values) - mean(others) - math.hypot(half_width(values), half_width(others))


@pytest.mark.slow
@pytest.mark.long
def test_the_projects_training_does_not_fall_behind_the_plain_loop(seeds, plain):
    losses, accuracies = seeds(PROJECT)
    assert above(losses, plain[0]) <= 0, (losses, plain[0])
    assert above(plain[1], accuracies) <= 0, (accuracies, plain[1])


@pytest.mark.slow
@pytest.mark.long
def test_a_training_that_learns_less_is_found_to_fall_behind(seeds, plain):
    losses, accuracies = seeds(PROJECT, "optim.lr=0.001", count=3)
    assert above(losses, plain[0]) > 0, (losses, plain[0])
    assert above(plain[1], accuracies) > 0, (accuracies, plain[1])


@pytest.mark.slow
def test_with_all_parts_replaced_it_is_the_projects_own_training_bit_for_bit(train):
    losses, accuracy = train(ALL)
    own_losses, own_accuracy = train(PROJECT)
    assert losses == own_losses
    assert accuracy == pytest.approx(own_accuracy)
    assert train(ALL, seed=1)[0] != losses


@pytest.mark.slow
@pytest.mark.parametrize("part", ["loss", "optimiser"])
def test_what_computes_the_same_trains_the_same(train, part):
    assert train(part)[0] == pytest.approx(train(PLAIN)[0], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["order", "crops", "colours", "network", "weights"])
def test_every_other_part_takes_effect(train, part):
    assert train(part)[0] != pytest.approx(train(PLAIN)[0], rel=1e-6)
