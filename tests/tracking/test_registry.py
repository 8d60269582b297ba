import json
import re
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.runs import checkpoint, run_folder
from bcl_ray.tracking import mlflow_model
from bcl_ray.tracking.connection import tracking_uri
from bcl_ray.tracking.registry import OPTIMISTIC, register, resolve
from tests.tracked import PATIENCE, begin, experiment_in, final_checkpoint, start, tracker_of


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Exporting a network takes seconds, and is tested elsewhere."""
    monkeypatch.setattr(mlflow_model, "_export", lambda source, target, about: target.mkdir())
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def trained(experiment, name, **metrics):
    """A run in MLflow with one checkpoint and its metrics: arguments of `register`."""
    run = begin(experiment, name)
    record = {f"accuracy/{group}": value for group, value in metrics.items()}
    folder, _ = final_checkpoint(Path(run.uri) / "best_00000012", experiment, [record])
    with tracker_of(run, experiment) as tracker:
        start(tracker, experiment)
        assert tracker.finish("FINISHED", PATIENCE), tracker.problem
    return run, str(folder), checkpoint.load(folder)


def refusal(*arguments, **options):
    with pytest.raises(ValueError, match=r".") as error:
        register(*arguments, **options)
    return str(error.value)


def test_a_registered_name_leads_back_to_the_run_and_its_checkpoint(sqlite):
    run, folder, state = trained(sqlite, "first", all=70.0, few=50.0)
    said = register(run, folder, state, "digits", alias="champion")
    assert said == [
        f"digits: version 1 with accuracy/all 70.00 on 'test', in MLflow at {tracking_uri(sqlite)}",
        OPTIMISTIC.format("test"),
        "champion is version 1: models:/digits@champion",
    ]
    for uri in ("models:/digits@champion", "models:/digits/1"):
        assert resolve(uri, sqlite.tracking.runs) == (run.uri, folder)
    client = MlflowClient(tracking_uri(sqlite))
    version = client.get_model_version("digits", "1")
    assert version.status == "READY"
    assert version.tags["recipe"] == "digits_lt"
    assert client.get_run(version.run_id).info.run_name == "first"
    experiment = client.get_run(version.run_id).info.experiment_id
    (logged,) = client.search_logged_models([experiment])
    assert (logged.source_run_id, logged.name) == (version.run_id, "best_00000012")
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": "digits", "version": 1}]


def test_runs_in_a_folder_whose_name_is_no_url_are_registered(tmp_path, database):
    root = tmp_path / "why? x%41#"
    root.mkdir()
    shutil.copy(database, root / "mlflow.db")
    run, folder, state = trained(experiment_in(root), "first", all=70.0)
    register(run, folder, state, "digits", alias="champion")
    assert resolve("models:/digits@champion", str(root)) == (run.uri, folder)
    assert {path.name for path in root.iterdir()} == {"first", "mlartifacts", "mlflow.db"}


def test_the_champion_moves_only_to_a_better_run(sqlite):
    first = trained(sqlite, "first", all=70.0)
    worse = trained(with_overrides(sqlite, ["train.seed=1"]), "worse", all=69.9)
    better = trained(with_overrides(sqlite, ["train.seed=2"]), "better", all=70.1)
    at = f", in MLflow at {tracking_uri(sqlite)}"
    register(*first, "digits", alias="champion")
    assert register(*worse, "digits", alias="champion") == [
        f"digits: version 2 with accuracy/all 69.90 on 'test'{at}",
        OPTIMISTIC.format("test"),
        "champion stays version 1 with accuracy/all 70.00 on 'test'; --force moves it",
    ]
    assert resolve("models:/digits@champion", sqlite.tracking.runs)[0] == first[0].uri
    assert register(*better, "digits", alias="champion") == [
        f"digits: version 3 with accuracy/all 70.10 on 'test'{at}",
        OPTIMISTIC.format("test"),
        "champion was version 1 with accuracy/all 70.00 on 'test'",
        "champion is version 3: models:/digits@champion",
    ]
    assert resolve("models:/digits@champion", sqlite.tracking.runs)[0] == better[0].uri
    register(*worse, "digits", alias="champion", force=True)
    assert resolve("models:/digits@champion", sqlite.tracking.runs)[0] == worse[0].uri


def test_registering_again_makes_no_second_version_and_other_aliases_move_freely(sqlite):
    first = trained(sqlite, "first", all=70.0)
    for _ in range(2):
        assert register(*first, "digits", alias="candidate")[-1].startswith(
            "candidate is version 1"
        )
    register(*first, "digits", alias="champion")
    client = MlflowClient(tracking_uri(sqlite))
    assert len(client.search_model_versions("name = 'digits'")) == 1
    aliases = client.get_registered_model("digits").aliases
    assert {alias: int(version) for alias, version in aliases.items()} == {
        "candidate": 1,
        "champion": 1,
    }


@pytest.mark.parametrize(
    ("change", "metric", "message"),
    [
        (
            "data.eval_split=train",
            "accuracy/all",
            "on the split 'test', and this version on the split",
        ),
        ("train.seed=1", "accuracy/few", "by 'accuracy/all', and this version by 'accuracy/few'"),
    ],
)
def test_what_was_measured_otherwise_is_not_compared(sqlite, change, metric, message):
    first = trained(sqlite, "first", all=70.0, few=50.0)
    register(*first, "digits", alias="champion")
    other = trained(with_overrides(sqlite, [change]), "other", all=99.0, few=99.0)
    told = refusal(*other, "digits", alias="champion", metric=metric)
    assert message in told
    assert "--force moves champion in any case" in told
    client = MlflowClient(tracking_uri(sqlite))
    assert len(client.search_model_versions("name = 'digits'")) == 1, "nothing was registered"


def test_other_mistakes_are_told_with_what_to_do(sqlite):
    run, folder, state = trained(sqlite, "first", all=70.0)
    assert "--as 'a/b' must begin with a letter" in refusal(run, folder, state, "a/b")
    assert "--alias '@x' must begin" in refusal(run, folder, state, "digits", alias="@x")
    told = refusal(run, folder, state, "digits", metric="accuracy/tail")
    assert re.search(r"--metric accuracy/tail was not measured for .*: it has accuracy/all", told)
    unknown = begin(sqlite, "unknown")
    told = refusal(unknown, folder, state, "digits")
    assert (
        f"has no run 'unknown': deliver it with `bcl-ray sync {run_folder.reference(unknown)}`"
        in told
    )


def test_a_model_is_found_among_more_models_than_mlflow_lists_at_once(sqlite):
    register(*trained(sqlite, "first", all=70.0), "zebra")
    client = MlflowClient(tracking_uri(sqlite))
    for number in range(100):
        client.create_registered_model(f"model-{number:03d}")
    with pytest.raises(ValueError, match=r"has no models:/zebra/2: zebra has 1$"):
        resolve("models:/zebra/2", sqlite.tracking.runs)


def test_names_that_are_not_there_are_told_with_those_that_are(sqlite):
    def told(uri):
        with pytest.raises(ValueError, match=re.escape(uri)) as error:
            resolve(uri, sqlite.tracking.runs)
        return str(error.value)

    assert "must be models:/NAME@ALIAS or models:/NAME/VERSION" in told("models:/digits")
    assert "there is no model yet; `bcl-ray register RUN --as digits`" in told("models:/digits@x")
    register(*trained(sqlite, "first", all=70.0), "digits", alias="candidate")
    for uri in ("models:/digits@champion", "models:/digits/7"):
        assert "digits has @candidate, 1" in told(uri)
    assert "there is digits; `bcl-ray register RUN --as numbers`" in told("models:/numbers/1")
