import dataclasses
import shutil

import pytest
import torch
from mlflow import MlflowClient

from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import digits_lt
from bcl_ray.runs import checkpoint, run_folder
from bcl_ray.runs.checkpoint import State
from bcl_ray.tracking.registry import CHECKPOINT_TAG, RUN_TAG
from bcl_ray.use import models

EXPERIMENT = with_overrides(digits_lt(), ["data.validation_split=validation"])


def state(step: int, **changes) -> State:
    text, names, counts = EXPERIMENT.to_yaml(), [str(n) for n in range(10)], [5] * 10
    base = State(step, {}, {}, None, torch.zeros(3), [], text, "f", names, counts, "0" * 32)
    return dataclasses.replace(base, **changes)


@pytest.fixture
def root(tmp_path):
    """Runs: `first`, with a best checkpoint, and `new`, without any."""
    root = tmp_path / "runs"
    run_folder.create(str(root / "first"), EXPERIMENT, "f")
    run_folder.create(str(root / "new"), EXPERIMENT, "f")
    checkpoint.save(state(12), root / "first" / "best_00000012")
    return root


def test_a_run_is_named_by_its_name_or_its_folder(root):
    for name in ("first", f"{root}/first", f"file://{root}/first"):
        opened = models.open_model(name, str(root))
        assert (opened.name, opened.state.step) == ("first", 12)
        assert opened.uri.endswith(f"{root}/first/best_00000012")
        assert opened.experiment == EXPERIMENT


def test_a_checkpoint_is_named_by_its_folder(root):
    opened = models.open_model(f"{root}/first/best_00000012", "elsewhere")
    assert (opened.name, opened.state.step) == ("first/best_00000012", 12)


@pytest.fixture
def registered(root, database, monkeypatch):
    """A registry with a version that was registered by us, and one that was not."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(database, root / "mlflow.db")
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    client.create_registered_model("digits")
    ours = {RUN_TAG: f"{root}/first", CHECKPOINT_TAG: f"{root}/first/best_00000012"}
    for tags in (ours, {}):
        client.create_model_version("digits", str(root), tags=tags)
    client.set_registered_model_alias("digits", "champion", "1")


@pytest.mark.usefixtures("registered")
def test_a_registered_model_is_named_by_its_alias_or_version(root):
    for name in ("models:/digits@champion", "models:/digits/1"):
        opened = models.open_model(name, str(root))
        assert (opened.name, opened.state.step) == (name, 12)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("models:/digits", "'models:/digits' must be models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("models:/digits@best", r"MLflow at sqlite:.*mlflow.db has no models:/digits@best: "),
        (
            "models:/digits/2",
            r"models:/digits/2 in MLflow at .* was not registered by `bcl-ray reg",
        ),
        ("gone", r"'gone' is no model: .*runs/gone holds neither a run nor a checkpoint; name a"),
        ("new", r"run 'new' in .* has evaluated no checkpoint yet"),
    ],
)
def test_what_is_no_model_is_refused_with_what_would_be(root, name, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        models.open_model(name, str(root))


@pytest.mark.parametrize(
    ("options", "last"),
    [
        (["data.validation_split=validation"], False),
        (["data.eval_split=val"], False),  # a trial's, or a run's from before validation_split
        ([], True),
    ],
)
def test_the_best_checkpoint_is_taken_only_if_it_was_selected_on_validation_data(
    options, last, tmp_path, monkeypatch, capsys
):
    run = run_folder.create(f"{tmp_path}/run", with_overrides(digits_lt(), options), "f")
    checkpoint.save(state(12), tmp_path / "run" / "best_00000012")
    monkeypatch.setattr(models, "last_checkpoint", lambda run: f"{run.uri}/last")
    best = f"{run.uri}/best_00000012"
    assert models.find_checkpoint("run", str(tmp_path)) == (f"{run.uri}/last" if last else best)
    assert ("evaluated on 'test' alone" in capsys.readouterr().err) == last
    assert models.find_checkpoint("run", str(tmp_path), last=False) == best
    run_folder.keep_only_best(run, "lost its search, loss", [])
    assert models.find_checkpoint("run", str(tmp_path)) == best, "there is no other"


def test_a_run_without_a_checkpoint_says_so(root):
    with pytest.raises(ValueError, match=r"^run 'new' in .* has no checkpoint yet$"):
        models.open_model("new", str(root), last=True)


def test_the_temperature_is_the_latest_that_was_fitted(root):
    opened = models.open_model("first", str(root))
    assert opened.temperature is None
    fitted = {"calibration/temperature": 1.5}
    history = [{"calibration/temperature": 3.0}, fitted, {"epoch": 2.0}]
    later = dataclasses.replace(opened, state=state(12, history=history))
    assert later.temperature == 1.5


def test_a_trial_that_lost_has_its_best_checkpoint_and_all_of_its_history(root):
    run = run_folder.open_run(str(root / "first"))[0]
    history = [{"epoch": 0.0}, {"epoch": 1.0}]
    run_folder.keep_only_best(run, "lost its search, loss", history)
    last = models.last_state(run)
    assert (last.step, last.history) == (12, history)
    assert models.open_model("first", str(root)).state.step == 12
    with pytest.raises(
        ValueError, match=r"^run 'first' in .* lost its search, loss, and its last c"
    ):
        models.open_model("first", str(root), last=True)
