import json
import statistics
from pathlib import Path
from types import SimpleNamespace

import pytest

from bcl_ray import cli
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.report.figures.comparison import Configuration, comparison
from bcl_ray.runs import run_folder
from bcl_ray.use import compare
from tests.tracked import PATIENCE, begin, start, tracker_of


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def trained(experiment, name, *accuracies, tell=True):
    """A run, its accuracy over all classes epoch by epoch; None: not evaluated."""
    run = begin(experiment, name)
    with tracker_of(run, experiment) as tracker:
        start(tracker, experiment)
        for epoch, accuracy in enumerate(accuracies):
            groups = {"all": accuracy, "many": 90.0, "few": (accuracy or 0) - 10}
            record = {f"accuracy/{group}": value for group, value in groups.items()}
            tracker.metrics({"loss/total": 1.0, **(record if accuracy else {})}, epoch)
        if tell:
            assert tracker.finish("FINISHED", PATIENCE), tracker.problem
    return run


def seeds(experiment, name, accuracies):
    for seed, accuracy in enumerate(accuracies):
        changed = with_overrides(experiment, [f"train.seed={seed}"])
        trained(changed, f"{name}-{seed}", 10.0, None, accuracy)


@pytest.fixture
def six(sqlite):
    seeds(sqlite, "bcl", (70.0, 72.0, 74.0))
    seeds(with_overrides(sqlite, ["loss.kind=ce"]), "ce", (60.0, 61.0, 62.0))
    return [f"{kind}-{seed}" for kind in ("ce", "bcl") for seed in range(3)], sqlite.tracking.runs


def test_seeds_of_a_configuration_are_one_row_with_mean_and_deviation(six):
    names, root = six
    first, second = compare.compare(names, root)
    assert first.names == ("bcl-0", "bcl-1", "bcl-2")
    assert (first.label, second.label) == ("loss.kind=bcl", "loss.kind=ce")
    assert first.mean_and_deviation("accuracy/all") == (72.0, statistics.stdev([70, 72, 74]))
    assert first.mean_and_deviation("accuracy/few") == (62.0, 2.0)
    assert first.mean_and_deviation("accuracy/medium") is None
    assert second.curves[0] == {0: 10.0, 2: 60.0}


def test_mlflow_tells_the_same_as_the_folders(six, tmp_path):
    """A machine that has no folder of a run asks MLflow; a search is its trials."""
    names, root = six
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mlflow.db").symlink_to(Path(root) / "mlflow.db")
    assert compare.compare(names, str(elsewhere)) == compare.compare(names, root)


def test_the_best_epoch_is_taken_on_request(sqlite):
    trained(sqlite, "first", 70.0, 80.0, 75.0)
    root = sqlite.tracking.runs
    assert compare.compare(["first"], root)[0].values("accuracy/all") == [75.0]
    assert compare.compare(["first"], root, best=True)[0].values("accuracy/all") == [80.0]


def test_where_and_with_how_many_workers_a_run_was_makes_no_other_row(sqlite):
    changes = (["scale.workers=1"], ["tracking.experiment=other"], ["data.path=s3://other/digits"])
    for number, change in enumerate(changes):
        trained(with_overrides(sqlite, change), str(number), 70.0)
    (row,) = compare.compare(["0", "1", "2"], sqlite.tracking.runs)
    assert (row.names, row.label) == (("0", "1", "2"), "")


def test_other_data_are_another_row(sqlite):
    same = {"loss.kind": "bcl"}
    two = [
        compare.ComparedRun(
            name, name, {**same, "data": name}, ({"epoch": 0, "accuracy/all": 1.0},)
        )
        for name in ("1b31c220", "ffffffff")
    ]
    assert [row.label for row in compare.group_runs(two)] == ["data=1b31c220", "data=ffffffff"]


def test_runs_that_cannot_be_compared_are_named(sqlite):
    trained(sqlite, "young", None)
    root = sqlite.tracking.runs
    with pytest.raises(ValueError, match="run 'young' has evaluated nothing yet: wait for its"):
        compare.compare(["young"], root)
    with pytest.raises(ValueError, match=r"'gone' is no run: there is none in .*, and none in ML"):
        compare.compare(["gone"], root)
    with pytest.raises(ValueError, match="a/b holds no run: name one that"):
        compare.compare(["a/b"], root)


def test_the_command_prints_a_table_and_draws_a_figure(six, tmp_path, capsys, monkeypatch):
    names, root = six
    figure = tmp_path / "figures" / "comparison.png"
    command = ["compare", *names, "--runs", root, "--figure", str(figure)]
    monkeypatch.setattr("sys.argv", ["bcl-ray", *command])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr().out
    assert ended.value.code == 0
    assert "72.0 ± 2.0" in printed
    assert "61.0 ± 1.0" in printed
    assert "differences under 0.5" not in printed, "there are three seeds of each"
    assert figure.read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr("sys.argv", ["bcl-ray", *command, "--json"])
    with pytest.raises(SystemExit):
        cli.main()
    first, _ = json.loads(capsys.readouterr().out)
    assert first["metrics"]["accuracy/all"] == [70.0, 72.0, 74.0]


def test_the_figure_has_a_mark_for_each_group_and_a_line_for_each_configuration():
    lines = [
        Configuration(
            "bcl", {"all": [70.0, 72.0], "few": [50.0, 54.0]}, [{0: 10, 4: 70}, {0: 12, 4: 72}]
        ),
        Configuration("ce", {"all": [60.0], "few": [30.0]}, [{0: 9.0, 4: 60.0}]),
    ]
    figure = comparison(lines)
    groups, curves = figure.axes
    assert [text.get_text() for text in groups.get_yticklabels()] == ["bcl  (2 seeds)", "ce"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["all", "few"]
    drawn = {line.get_label(): line for line in curves.get_lines()}
    assert list(drawn["bcl"].get_xdata()) == [1, 5]
    assert list(drawn["bcl"].get_ydata()) == [11, 71]


def test_a_run_without_a_journal_here_is_read_from_its_checkpoint(sqlite, monkeypatch):
    run = trained(sqlite, "first", 70.0)
    (run_folder.local_folder(run) / "journal.jsonl").unlink()
    state = SimpleNamespace(history=[{"epoch": 0.0, "accuracy/all": 71.0}])
    monkeypatch.setattr(compare, "last_state", lambda run: state)
    assert compare.compare(["first"], sqlite.tracking.runs)[0].values("accuracy/all") == [71.0]
