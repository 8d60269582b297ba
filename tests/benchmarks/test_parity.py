"""The plain loop of `benchmarks.parity`, whose parts are replaced by the project's."""

import pytest

from bcl_ray.data.shards import write_shards
from bcl_ray.data.sources import open_source
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import cifar100_lt
from benchmarks.parity import ALL, PLAIN, PROJECT, RECIPE, trained

TINY = (
    "views.image_size=8",
    "views.eval_resize=8",
    "optim.global_batch_size=32",
    "model.width=4",
    "model.hidden_dim=16",
    "model.feature_dim=8",
    "train.epochs=2",
)


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Loss of each epoch and accuracy of a row's training on digits."""
    shards = str(tmp_path_factory.mktemp("parity") / "digits")
    manifest = write_shards(
        open_source("digits"), shards, profile="exponential", imbalance_factor=50
    )
    experiment = with_overrides(cifar100_lt(), [*RECIPE, *TINY, f"data.path={shards}"])

    def run(row, seed=0):
        result = trained(experiment, manifest, (row, seed), evaluated=True)
        return result["losses"], result["accuracy"]

    return run


def test_with_all_parts_replaced_it_is_the_projects_own_training_bit_for_bit(train):
    losses, accuracy = train(ALL)
    own_losses, own_accuracy = train(PROJECT)
    assert losses == own_losses
    assert accuracy == pytest.approx(own_accuracy)
    assert train(ALL, seed=1)[0] != losses


@pytest.mark.parametrize("part", ["loss", "optimiser"])
def test_what_computes_the_same_trains_the_same(train, part):
    assert train(part)[0] == pytest.approx(train(PLAIN)[0], rel=1e-3)


@pytest.mark.parametrize("part", ["order", "crops", "colours", "network", "weights"])
def test_every_other_part_takes_effect(train, part):
    assert train(part)[0] != pytest.approx(train(PLAIN)[0], rel=1e-6)
