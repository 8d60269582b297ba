"""The tables and figures of a study, without training."""

import csv
import io
import json
import math

import numpy as np
import pytest

from bcl_ray.report.figures.tail_cosines import TailCosines, tail_cosines
from bcl_ray.report.seeds import half_interval
from bcl_ray.tuning import study_tables
from bcl_ray.tuning.study_file import parse_study
from bcl_ray.tuning.trials import Trial

CONTENT = {
    "recipe": "digits_lt",
    "axes": {"method": {"ce": ["loss.kind=ce"], "bcl": []}, "factor": {"10": [], "100": []}},
    "seeds": 3,
}
STUDY = parse_study(CONTENT, "a.yaml")
ALL = {"ce-10": (60, 62, 61), "bcl-10": (61, 63, 63), "ce-100": (40, 40, 40), "bcl-100": (5, 7, 9)}


def trial(cell, seed, last, status="finished"):
    metrics = {"accuracy/all": float(last), "accuracy/many": 90.0, "calibration/ece": 1.25}
    if cell.name.startswith("bcl"):
        metrics["geometry/features/tail_tail_cosine"] = -0.1 + seed / 10
    name = cell.run_name(seed)
    scores = {5: last + 2.0, 10: float(last)}
    ended = {"status": status, "seconds": 60.0 * (seed + 1), "hardware": "2 CPUs", "commit": "a"}
    return Trial(name, 0, dict(cell.labels), seed, scores, metrics, **ended)


@pytest.fixture
def cells():
    trials = [trial(cell, seed, ALL[cell.name][seed]) for cell in STUDY.cells for seed in range(3)]
    return study_tables.runs_of_cells(STUDY, trials)


def test_the_interval_is_that_of_the_t_distribution():
    """4.303 is the 97.5 % quantile with two degrees of freedom, from a printed table."""
    assert half_interval([1.0, 2.0, 3.0]) == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
    assert half_interval([4.0]) is None


def test_intervals_cover_the_mean_as_often_as_they_say():
    samples = np.random.default_rng(0).normal(50, 3, (2000, 3)).tolist()
    covered = [abs(np.mean(sample) - 50) <= half_interval(sample) for sample in samples]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_a_row_has_the_last_epoch_and_the_best_one_beside_it(cells):
    first, *_ = study_tables.summary(cells)
    assert list(first)[:5] == ["method", "factor", "seeds", "all", "best all"]
    assert (first["all"].mean, first["best all"].mean) == (61.0, 63.0)
    assert first["all"].half == pytest.approx(half_interval([60, 62, 61]))
    assert (first["seeds"], first["minutes"], first["hardware"]) == (3, 2.0, "2 CPUs")
    assert first["feature tail cosine"] is None


def test_differences_are_paired_by_seed(cells):
    rows = study_tables.differences(STUDY, cells)
    assert [(row["method"], row["factor"]) for row in rows] == [
        ("bcl - ce", "10"),
        ("bcl - ce", "100"),
    ]
    assert rows[0]["all"].mean == pytest.approx(4 / 3)
    assert rows[0]["all"].half == pytest.approx(half_interval([1, 1, 2]))
    assert rows[1]["all"].half == pytest.approx(half_interval([-35, -33, -31]))


def test_runs_that_did_not_finish_are_in_no_mean_and_in_no_difference():
    trials = [trial(cell, seed, 50 + seed) for cell in STUDY.cells for seed in range(3)]
    trials[0].status, trials[0].reason = "failed", "loss is not finite"
    cells = study_tables.runs_of_cells(STUDY, trials)
    assert study_tables.summary(cells)[0]["all"].mean == 51.5
    assert study_tables.summary(cells)[0]["seeds"] == 2
    assert study_tables.differences(STUDY, cells)[0]["seeds"] == 2
    assert study_tables.all_runs(cells)[0]["reason"] == "loss is not finite"


def test_one_seed_has_no_interval():
    trials = [trial(cell, seed, 50) for cell in STUDY.cells for seed in range(3)]
    for one in trials:
        one.status = "finished" if one.seed == 0 else "failed"
    rows = study_tables.summary(study_tables.runs_of_cells(STUDY, trials))
    assert rows[0]["all"].text(2) == "50.00"
    assert rows[0]["all"].half is None


def test_csv_has_a_row_per_cell_and_seed_and_intervals_in_columns_of_their_own(cells):
    runs = list(csv.DictReader(io.StringIO(study_tables.as_csv(study_tables.all_runs(cells)))))
    assert len(runs) == 12
    assert (runs[1]["method"], runs[1]["factor"], runs[1]["seed"]) == ("ce", "10", "1")
    assert (runs[1]["all"], runs[1]["best all"], runs[1]["minutes"]) == ("62.0", "64.0", "2.0")
    rows = list(csv.DictReader(io.StringIO(study_tables.as_csv(study_tables.summary(cells)))))
    assert float(rows[0]["all ±"]) == pytest.approx(half_interval([60, 62, 61]), abs=1e-4)
    assert rows[0]["feature tail cosine ±"] == ""
    assert float(rows[2]["feature tail cosine ±"]) > 0


def test_markdown_and_mlflow_have_the_same_cells_as_the_csv(cells):
    rows = study_tables.summary(cells)
    lines = study_tables.markdown(rows).splitlines()
    assert lines[0].startswith("| method | factor | seeds | all | best all |")
    assert "61.00 ± 2.48" in lines[2]
    table = json.loads(study_tables.as_mlflow_table(rows))
    assert len(table["data"]) == 4
    assert {len(row) for row in table["data"]} == {len(table["columns"])}


def test_the_figure_of_cosines_shows_each_cell_beside_the_simplex():
    rows = [
        TailCosines("ce", {"tail cosine": [0.1, 0.2]}, -1 / 9),
        TailCosines("bcl", {"tail cosine": [0.0], "feature tail cosine": [-0.1, 0.3]}, -1 / 9),
    ]
    figure = tail_cosines(rows)
    assert [axis.get_title(loc="left").split(":")[0] for axis in figure.axes] == [
        "Embeddings",
        "Contrastive features",
    ]
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["ce", "bcl"]
    lines = [line.get_xdata() for line in figure.axes[1].lines]
    assert sum(list(x) == [-1 / 9, -1 / 9] for x in lines) == 2
    low, high = figure.axes[1].get_xlim()
    assert -1 <= low < high <= 1
