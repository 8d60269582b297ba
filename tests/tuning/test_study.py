"""A small study from the command line to its files, with a driver that is killed in the middle."""

import csv
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import yaml
from mlflow import MlflowClient

from bcl_ray.data.shards import read_manifest
from bcl_ray.machine.errors import UserError
from bcl_ray.machine.versions import CLIENT
from bcl_ray.runs import run_folder
from bcl_ray.tuning.driver import UnfinishedError, check_ended
from bcl_ray.tuning.study import _Study
from bcl_ray.tuning.study_file import parse_study, read_study
from bcl_ray.tuning.study_ledger import check_study
from bcl_ray.tuning.trials import Trial
from tests.e2e.conftest import Command

SMOKE = Path(__file__).parents[2] / "jobs" / "studies" / "smoke.yaml"
CONTENT = {
    "recipe": "digits_lt",
    "axes": {"method": {"ce": ["loss.kind=ce"], "bcl": []}},
    "shards": {"data/digits_lt": "bcl-ray shard digits data/digits_lt"},
    "seeds": 2,
}
NAMES = ["bcl-seed-0", "bcl-seed-1", "ce-seed-0", "ce-seed-1"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    words = ("shard", "digits", "data/digits_lt", "--profile", "exponential")
    assert Command(folder, *words, "--imbalance-factor", "50").wait() == 0
    shutil.copyfile(SMOKE, folder / "smoke.yaml")
    return folder


@pytest.fixture
def there(workplace, monkeypatch):
    monkeypatch.chdir(workplace)


def study(*overrides, **changes):
    return parse_study(CONTENT | changes, "a.yaml", overrides)


def test_missing_data_are_refused_with_the_command_that_makes_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        check_study("a", study())
    assert str(error.value) == (
        "a.yaml: data.path data/digits_lt: no manifest.json there, so it is not a data set; "
        "make it with: bcl-ray shard digits data/digits_lt"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "name", "message"),
    [
        ([], "a/b", "--name 'a/b' must consist of letters, digits, '.', '_' and '-'"),
        (
            ["tracking.run=x"],
            "a",
            "a.yaml: overrides: tracking.run=x cannot be set: runs are named by",
        ),
        (["data.eval_split=val"], "a", "a.yaml: cell ce: data.eval_split is 'val', which"),
        (["data.path=gone"], "a", "gone holds no manifest.json"),
    ],
)
def test_a_study_that_cannot_work_is_refused_before_it_starts(overrides, name, message, there):
    with pytest.raises(UserError, match=re.escape(message)):
        check_study(name, study(*overrides))
    assert not Path("runs/a").exists()


def test_a_study_may_grow_but_no_cell_may_change(there):
    begun = check_study("grown", study()).write()
    assert begun.uid == check_study("grown", study(seeds=5)).write().uid
    wider = {"method": {**CONTENT["axes"]["method"], "scl": ["loss.kind=scl"]}}
    check_study("grown", study(axes=wider)).write()
    check_study("grown", study()).write()
    other = {"method": {"ce": ["loss.kind=ce"], "scl": ["loss.kind=scl", "loss.temperature=1"]}}
    with pytest.raises(UserError, match="study 'grown' has a cell scl with other options"):
        check_study("grown", study(axes=other))


def test_a_changed_cell_is_refused_with_the_option_that_changed(there):
    ledger = check_study("changed", study()).write()
    experiment = ledger.experiment_of(Trial("ce-seed-0", 0, {}, 0))
    manifest = read_manifest(experiment.data.path)
    run_folder.create(ledger.file("ce-seed-0"), experiment, manifest.fingerprint)
    text = r"cell ce with other options \(optim.lr was 0.1, now 0.2\): rename the cell, or give"
    with pytest.raises(UserError, match=text):
        check_study("changed", study("optim.lr=0.2"))
    check_study("changed", study("scale.workers=1"))


@pytest.mark.parametrize("kind", ["search", "run"])
def test_a_folder_with_something_else_is_refused(kind, there):
    Path(f"runs/{kind}").mkdir(parents=True)
    Path(f"runs/{kind}/{kind}.json").write_text("{}")
    with pytest.raises(UserError, match=f"runs/{kind} holds a {kind}: give the study another"):
        check_study(kind, study())


def test_trials_have_the_options_of_their_cell_and_their_seed(there):
    ledger = check_study("fresh", study("scale.workers=1")).write()
    experiment = ledger.experiment_of(Trial("bcl-seed-1", 1, {}, 1))
    assert (experiment.loss.kind, experiment.train.seed, experiment.scale.workers) == ("bcl", 1, 1)
    assert experiment.data.path == str(Path.cwd() / "data/digits_lt")
    assert ledger.resume_command == "study a.yaml scale.workers=1 --name fresh"


def test_a_held_up_trial_in_a_job_is_resumed_with_the_command_that_sent_the_job(there, monkeypatch):
    ledger = check_study("held", study("scale.workers=1")).write()
    held = [Trial("ce-seed-0", 0, {}, 0, status="held up")]
    with pytest.raises(UnfinishedError, match=r"on with: bcl-ray study a\.yaml scale"):
        check_ended(ledger, held)
    job = {"metadata": {"command": "'my studies/a.yaml' scale.workers=1 --name held"}}
    monkeypatch.setenv(CLIENT, "{}")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    told = "not finished: ce-seed-0; go on with: bcl-ray submit study 'my studies/a.yaml' scale.w"
    with pytest.raises(UnfinishedError, match=re.escape(told)):
        check_ended(ledger, held)


def test_the_text_that_ran_is_recorded_though_the_file_has_changed_since(there):
    file = Path("edited.yaml")
    file.write_text(yaml.safe_dump(CONTENT))
    sweep = _Study(check_study("edited", read_study(file)), None)
    file.unlink()
    recorded = {}
    sweep.record_start(SimpleNamespace(text=recorded.__setitem__, dataset=lambda *_: None))
    assert recorded == {"study.yaml": yaml.safe_dump(CONTENT)}


def test_cells_are_evaluated_on_test_data_though_their_recipe_selects_on_others(there):
    ledger = check_study("tested", study("data.validation_split=validation")).write()
    experiment = ledger.experiment_of(Trial("bcl-seed-1", 1, {}, 1))
    assert experiment.data.monitored_split == "test"


def trials(folder):
    files = sorted(folder.glob("*/trial.json"))
    return {file.parent.name: json.loads(file.read_text()) for file in files}


def files_of(folder):
    """All files of a run, with the time of their last change."""
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def studied(workplace):
    """The study `smoke`, whose driver was killed after its first run had ended."""
    folder = workplace / "runs" / "smoke"
    words = ("study", "smoke.yaml", "--max-concurrent", "1")

    def ended():
        return [name for name, t in trials(folder).items() if t["status"] == "finished"]

    command = Command(workplace, *words)
    try:
        command.wait_for(lambda: ended() and len(trials(folder)) > 1, 500)
        processes = [command.process, *command.children()]
    finally:
        command.process.kill()
    psutil.wait_procs(processes, timeout=60)  # Ray ends with its driver
    finished = ended()
    before = {name: files_of(folder / name) for name in finished}
    again = Command(workplace, *words)
    assert again.wait(600) == 0, again.output
    return folder, finished, before, again.output


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1200)
class TestStudy:
    def test_a_killed_study_goes_on_and_trains_no_finished_run_again(self, studied):
        folder, finished, before, output = studied
        assert 1 <= len(finished) < len(NAMES)
        assert {name: files_of(folder / name) for name in finished} == before
        assert {name: t["status"] for name, t in trials(folder).items()} == dict.fromkeys(
            NAMES, "finished"
        )
        for name in NAMES:  # those of this process alone are lines
            assert (f"{name}  finished" in output) == (name not in finished)

    def test_the_first_seed_of_all_cells_comes_first(self, studied):
        _, finished, *_ = studied
        assert finished[0].endswith("seed-0")

    def test_every_run_is_trained_and_evaluated_on_the_whole_splits(self, studied):
        folder, *_ = studied
        for name in NAMES:
            _, experiment = run_folder.open_run(str(folder / name))
            assert experiment.data.path.endswith("data/digits_lt")
            assert (experiment.data.train_split, experiment.data.eval_split) == ("train", "test")
            assert str(experiment.train.seed) == name[-1]
            assert (experiment.loss.kind, experiment.train.epochs) == (name.split("-")[0], 2)

    def test_tables_are_those_of_the_runs(self, studied):
        folder, _, _, output = studied
        runs = list(csv.DictReader((folder / "runs.csv").open()))
        assert [f"{row['method']}-seed-{row['seed']}" for row in runs] == [
            "ce-seed-0",
            "ce-seed-1",
            "bcl-seed-0",
            "bcl-seed-1",
        ]
        by_name = trials(folder)
        for row in runs:
            metrics = by_name[f"{row['method']}-seed-{row['seed']}"]["metrics"]
            assert float(row["all"]) == pytest.approx(metrics["accuracy/all"], abs=1e-4)
            assert row["hardware"]
        summary = list(csv.DictReader((folder / "summary.csv").open()))
        mean = sum(float(row["all"]) for row in runs[:2]) / 2
        assert float(summary[0]["all"]) == pytest.approx(mean, abs=1e-4)
        assert "feature tail cosine" in summary[1]
        assert [row["method"] for row in csv.DictReader((folder / "differences.csv").open())] == [
            "bcl - ce"
        ]
        assert "differences, paired by seed" in output
        assert (folder / "study.md").read_text().startswith("# Study smoke")

    def test_the_report_needs_no_server(self, studied):
        folder, *_ = studied
        page = (folder / "report.html").read_text()
        assert page.count("data:image/png;base64,") == 2
        assert (folder / "figures" / "tail_cosines.png").read_bytes().startswith(b"\x89PNG")

    def test_mlflow_has_one_parent_with_a_child_per_run_and_the_tables(self, studied, tmp_path):
        folder, *_ = studied
        client = MlflowClient(f"sqlite:///{folder.parent}/mlflow.db")
        experiment = client.get_experiment_by_name("bcl-ray")
        runs = client.search_runs([experiment.experiment_id])
        (parent,) = [run for run in runs if run.info.run_name == "smoke"]
        children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        assert sorted(run.info.run_name for run in children) == NAMES
        assert {run.info.status for run in [parent, *children]} == {"FINISHED"}
        artifacts = {file.path for file in client.list_artifacts(parent.info.run_id)}
        for listed in json.loads(parent.data.tags["mlflow.loggedArtifacts"]):
            assert listed["type"] == "table"
            file = client.download_artifacts(parent.info.run_id, listed["path"], tmp_path)
            table = json.loads(Path(file).read_text())
            assert table["columns"][0] == "method"
            assert {len(row) for row in table["data"]} == {len(table["columns"])}
        assert {"report.html", "summary.csv", "runs.csv", "study.yaml", "figures"} <= artifacts


def test_the_file_of_the_smoke_study_is_what_the_tests_expect():
    assert [cell.name for cell in read_study(SMOKE).cells] == ["ce", "bcl"]
