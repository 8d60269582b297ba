"""The report of a search, without training."""

import pytest

from bcl_ray.experiment.recipes import digits_lt
from bcl_ray.tuning.search_ledger import begin
from bcl_ray.tuning.search_report import _summary
from bcl_ray.tuning.settings import Extent, Settings
from bcl_ray.tuning.trials import Trial

WINNER = {
    "trial": "trial-001",
    "metric": "accuracy/all - calibration/ece",
    "score": 1.5,
    "point": {"loss.tau": 0.5},
    "confirmed": {},
    "test": {"accuracy/all": (71.25, 0.0)},
}


@pytest.mark.parametrize(
    ("published", "told"),
    [(None, "validation data: loss.tau=0.5."), (0.0, "(with the published values 0.00)")],
)
def test_a_published_score_is_told_even_if_it_is_zero(tmp_path, published, told):
    ledger = begin(str(tmp_path / "one"), Settings(), Extent(), digits_lt(), "f" * 64)
    own = [Trial("trial-001", 1, {"loss.tau": 0.5}, scores={5: 1.5}, status="finished")]
    assert told in _summary(ledger, own, {**WINNER, "published": published})[1]
