"""A small search, from the command line to its files; drills: tests/faults/test_search.py."""

import json
import re

import pytest
import yaml
from mlflow import MlflowClient

from bcl_ray.api.searches import resolve_search, search_exists
from bcl_ray.cli.search import api_arguments, parse_confirm
from bcl_ray.experiment.overrides import from_file
from bcl_ray.experiment.recipes import digits_lt
from bcl_ray.tuning.settings import Extent, Settings
from tests.e2e.conftest import Command

OPTIONS = ("recipe", "overrides", "name", "resume", "restartable", "trials", "workers_per_trial")
OPTIONS += ("gpus_per_worker", "max_concurrent", "space", "searcher", "scheduler", "metric")
OPTIONS += ("validation", "seed", "confirm")


def search_request(**options):
    """The search that the command starts with these options."""
    experiment, arguments = api_arguments(dict.fromkeys(OPTIONS) | options)
    return resolve_search(experiment, **arguments)


def test_options_that_are_not_given_have_defaults():
    search = search_request(recipe="digits_lt", name="a")
    assert (search.name, search.experiment) == ("a", digits_lt())
    assert (search.settings, search.extent, search.resume) == (Settings(), Extent(), False)


def test_a_search_without_a_name_is_called_by_its_recipe_and_the_time():
    assert re.fullmatch(r"search-digits_lt-\d{4}-\d{6}", search_request(recipe="digits_lt").name)


def test_options_reach_their_places(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text("loss.tau: {uniform: [0, 1]}")
    options = {"recipe": "digits_lt", "name": "a", "overrides": ["optim.lr=0.2"], "trials": 7}
    options |= {"space": file, "searcher": "tpe", "confirm": "2,3", "workers_per_trial": 4}
    search = search_request(**options)
    assert search.experiment.optim.lr == 0.2
    assert search.settings == Settings(space=file.read_text(), searcher="tpe")
    assert search.extent == Extent(trials=7, workers=4, confirm=(2, 3))


def test_a_restartable_search_is_found_by_its_name(tmp_path):
    assert not search_exists("a", str(tmp_path))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "search.json").write_text("{}")
    assert search_exists("a", str(tmp_path))
    with pytest.raises(ValueError, match="--restartable needs a recipe, and --name"):
        search_request(recipe="digits_lt", restartable=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "search needs a recipe's name or a YAML file; or --resume NAME"),
        ({"name": "a"}, "search needs a recipe's name"),
        ({"name": "a", "resume": "b"}, "--name and --resume exclude each other"),
        ({"resume": "gone"}, "gone holds no search"),
    ],
)
def test_options_that_are_missing_or_too_many(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        search_request(**options)


@pytest.mark.parametrize("text", ["3", "0,2", "a,b", "1,2,3", "1,-2", ""])
def test_a_confirmation_is_two_numbers(text):
    with pytest.raises(ValueError, match=r"--confirm .* must be K,N: two positive integers"):
        parse_confirm(text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trials", "2", "tracking.run=mine"], "tracking.run cannot be set: the search is named"),
        (["--metric", "accuracy/most"], "--metric accuracy/most: there is no 'accuracy/most' with"),
        (["--name", "a/b"], "--name 'a/b' must consist of letters, digits, '.', '_' and '-'"),
        (["--metric", "best"], "--metric 'best' must be a metric's name, or a mix"),
        (["--validation", "1.5"], "--validation (1.5) must be above 0 and below 1"),
        (["--workers-per-trial", "3"], "must be divisible by scale.workers (3)"),
        (["--gpus-per-worker", "0"], "scale.gpus_per_worker=0.0: input should be greater than 0"),
        (["--space", "gone.yaml"], "--space gone.yaml: no such file or directory"),
        (["--space", "{picture}"], "--space {picture} is not UTF-8 text: name a YAML file"),
        (["loss.kind=ce"], "loss.kind 'ce' has no options to search"),
    ],
)
def test_a_mistake_is_one_line_before_anything_starts(bcl_ray, workplace, tmp_path, words, message):
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG\xff\xd8")
    words = [word.format(picture=picture) for word in words]
    status, out, err = bcl_ray("search", "digits_lt", "--name", "wrong", *words)
    assert (status, out) == (2, "")
    assert message.format(picture=picture) in err
    assert err.count("\n") == 1
    assert not (workplace / "runs" / "wrong").exists()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    words = ("shard", "digits", "data/digits_lt", "--profile", "exponential")
    assert Command(folder, *words, "--imbalance-factor", "50").wait() == 0
    return folder


@pytest.fixture
def bcl_ray(workplace, monkeypatch, capfd):
    from bcl_ray.cli import main

    def call(*words):
        monkeypatch.setattr("sys.argv", ["bcl-ray", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        return (int(stop.value.code or 0), *capfd.readouterr())

    monkeypatch.chdir(workplace)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return call


@pytest.fixture(scope="module")
def searched(workplace):
    """A search of two trials, one of which must fail, and its output."""
    (workplace / "space.yaml").write_text("optim.lr: {choice: [1.0e+20]}")
    words = ["search", "digits_lt", "train.epochs=2", "--name", "two", "--trials", "9"]
    words += ["--space", "space.yaml", "--searcher", "grid"]
    command = Command(workplace, *words)
    try:
        assert command.wait(200) == 0, command.output
    finally:
        if command.process.poll() is None:
            for process in [*command.children(), command.process]:
                process.kill()
    return workplace / "runs" / "two", command.output


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
class TestSearch:
    def test_a_failing_trial_is_kept_with_its_reason_and_stops_nothing(self, searched):
        folder, output = searched
        trials = [json.loads(file.read_text()) for file in sorted(folder.glob("*/trial.json"))]
        assert [trial["status"] for trial in trials] == ["finished", "failed"]
        assert "is not finite" in trials[1]["reason"]
        assert "trial-001  failed" in output
        assert "is not finite" in output

    def test_the_winner_is_a_recipe_for_the_whole_data(self, searched):
        folder, output = searched
        recipe = from_file(folder / "winner.yaml")
        assert recipe.loss == digits_lt().loss
        assert recipe.data.path.endswith("data/digits_lt")
        assert (recipe.data.eval_split, recipe.scale) == ("test", digits_lt().scale)
        assert "next     bcl-ray train runs/two/winner.yaml" in output

    def test_trials_learn_from_the_rest_and_are_compared_on_what_was_cut(self, searched):
        folder, _ = searched
        data = yaml.safe_load((folder / "trial-000" / "experiment.yaml").read_text())["data"]
        assert data["path"] == str(folder / "data")
        assert data["eval_split"] == "validation"

    def test_the_test_split_is_evaluated_once(self, searched):
        folder, output = searched
        content = json.loads((folder / "winner.json").read_text())
        assert (content["runs"], content["split"]) == (["trial-000"], "test")
        mean, deviation = content["test"]["accuracy/all"]
        assert f"test     accuracy all {mean:.1f}  " in output
        assert deviation == 0

    def test_the_same_command_goes_on_if_it_is_restartable(self, searched, workplace):
        folder, output = searched
        before = {file: file.read_bytes() for file in folder.glob("*/trial.json")}
        words = ("search", "digits_lt", "train.epochs=2", "--name", "two", "--trials", "9")
        words += ("--space", "space.yaml", "--searcher", "grid")
        refused = Command(workplace, *words)
        assert refused.wait(100) == 2
        assert "go on with --resume two" in refused.output
        again = Command(workplace, *words, "--restartable")
        assert again.wait(200) == 0, again.output
        assert {file: file.read_bytes() for file in folder.glob("*/trial.json")} == before
        assert "winner   trial-000" in output
        assert "winner   trial-000" in again.output

    def test_mlflow_has_the_trials_below_their_search(self, searched):
        folder, _ = searched
        client = MlflowClient(f"sqlite:///{folder.parent}/mlflow.db")
        experiment = client.get_experiment_by_name("bcl-ray")
        runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
        assert set(runs) == {"two", "trial-000", "trial-001"}
        parent = runs["two"].info.run_id
        for name, status in (("trial-000", "FINISHED"), ("trial-001", "FAILED")):
            assert runs[name].data.tags["mlflow.parentRunId"] == parent
            assert runs[name].info.status == status
        assert runs["two"].info.status == "FINISHED"
        assert runs["two"].data.tags["winner"] == "trial-000"
        assert runs["two"].data.metrics["trials/ended"] == 2
        assert 0 < runs["two"].data.metrics["test/accuracy/all"] <= 100
        artifacts = {file.path for file in client.list_artifacts(parent)}
        assert {"report.html", "trials.csv", "winner.yaml", "figures"} <= artifacts

    def test_the_report_needs_no_server(self, searched):
        folder, _ = searched
        page = (folder / "report.html").read_text()
        assert "data:image/png;base64," in page
        assert "trial-000" in page, "the winner"
        assert ">failed<" in page
        assert (folder / "figures" / "parameters.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / "trials.csv").read_text().startswith("trial,status,epochs,accuracy/all,")
