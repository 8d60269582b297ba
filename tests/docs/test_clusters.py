"""docs/clusters: its estimates are those of `bcl-ray plan`."""

import re

import pytest

from bcl_ray.api.forecasts import forecast_cluster
from tests.docs.pages import ROOT

ROWS = [
    [cell.strip(" `") for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "clusters" / "cost.md").read_text().splitlines()
    if re.match(r"\| `\w+` \| \d+ ", line)
]


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}-{row[1]}")
def test_the_estimates_are_those_of_the_command(row, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where there are no shards
    recipe, machines, speed, hours, cost, limit = row
    gpus, gpu = machines.split()
    found = forecast_cluster(recipe, gpus=int(gpus), gpu=gpu).forecast
    assert found.images_per_second == pytest.approx(float(speed), abs=1)
    assert found.hours == pytest.approx(float(hours), abs=0.006)
    assert found.cost == pytest.approx(float(cost), abs=0.006)
    assert found.limits[0].name == limit


def test_there_is_an_estimate_for_each_published_setting():
    assert {row[0] for row in ROWS} == {"cifar100_lt", "imagenet_lt", "inat18"}
