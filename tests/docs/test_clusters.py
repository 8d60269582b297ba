"""docs/clusters: its estimates follow from their assumptions."""

import re

import pytest

from bcl_ray.experiment.recipes import RECIPES
from tests.docs.pages import ROOT

ROWS = [
    [cell.strip(" `") for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "clusters" / "cost.md").read_text().splitlines()
    if re.match(r"\| `\w+` \| \d+ ", line)
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_estimates_follow_from_their_assumptions(row):
    recipe, (images, test, epochs, v, gpus, hours, price, cost, cpus) = row[0], map(float, row[1:])
    experiment = RECIPES[recipe]()
    assert experiment.train.epochs == epochs
    assert 1 + experiment.num_contrastive == 3
    seconds = (3 * images * epochs / v + test * epochs / (3 * v)) / gpus
    assert seconds / 3600 == pytest.approx(hours, abs=0.051 if hours > 1 else 0.005)
    assert hours * price == pytest.approx(cost, rel=0.02)
    per_cpu = 13800 if recipe.startswith("cifar") else 189
    assert v * gpus / 3 / per_cpu == pytest.approx(cpus, abs=0.051)


def test_there_is_an_estimate_for_each_published_setting():
    assert [row[0] for row in ROWS] == ["cifar100_lt", "imagenet_lt", "inat18"]
