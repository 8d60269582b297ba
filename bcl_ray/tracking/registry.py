"""MLflow's registry: a run's best checkpoint gets a name there, and the name leads back to it.

What a version is, is in its tags: the run, the checkpoint, and the metric that it is compared by.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcl_ray.data.shards.holdout import VALIDATION
from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.overrides import from_yaml
from bcl_ray.machine.errors import UserError
from bcl_ray.runs import run_folder
from bcl_ray.runs.checkpoint import State
from bcl_ray.runs.run_folder import Run
from bcl_ray.storage import paths
from bcl_ray.tracking.tracker import SETTINGS, store

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN_TAG, CHECKPOINT_TAG = "bcl_ray.run", "bcl_ray.checkpoint"  # folders, as paths or URIs
METRIC, VALUE = "metric.name", "metric.value"
SPLIT, DATA = "metric.split", "data.fingerprint"  # on which it was measured
CHAMPION = "champion"
FLATTERED = (
    "its checkpoint was chosen, and is compared, on '{}', which flatters it if that is what you "
    "test on: train with a validation split as data.eval_split"
)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# An alias that is not there is an invalid value to MLflow.
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
URI = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>\d+))")


@contextlib.contextmanager
def answered() -> Iterator[None]:
    """Make MLflow's errors those of a file that cannot be read.

    Raises:
        OSError: MLflow does not answer, or refuses.
    """
    try:
        yield
    except Exception as error:
        if type(error).__module__ != "mlflow.exceptions":  # which takes seconds to import
            raise
        text = str(error).strip().splitlines()[0]
        raise OSError(f"MLflow: {text}: see MLFLOW_TRACKING_URI, and its log") from error


def resolve(uri: str, root: str = "runs") -> tuple[str, str]:
    """The folders of the run and of the checkpoint that a registered model is.

    Args:
        uri: models:/NAME@ALIAS or models:/NAME/VERSION.
        root: folder or URI of runs, beside which MLflow's database is looked for where
            MLFLOW_TRACKING_URI names none.

    Raises:
        ValueError: another form, or no such model; with those that there are.
        OSError: MLflow does not answer.
    """
    match = URI.fullmatch(uri)
    if match is None:
        raise UserError(f"'{uri}' must be models:/NAME@ALIAS or models:/NAME/VERSION")
    client = mlflow_client(store(None, paths.absolute(root)))
    from mlflow.exceptions import MlflowException  # noqa: PLC0415  as in mlflow_client

    try:
        if match["alias"]:
            version = client.get_model_version_by_alias(match["name"], match["alias"])
        else:
            version = client.get_model_version(match["name"], match["version"])
    except MlflowException as error:
        if error.error_code not in ABSENT:
            raise OSError(f"MLflow at {client.tracking_uri}: {error.message}") from None
        why = _there_is(client, match["name"])
        raise UserError(f"MLflow at {client.tracking_uri} has no {uri}: {why}") from None
    if CHECKPOINT_TAG not in version.tags:
        raise UserError(
            f"{uri} in MLflow at {client.tracking_uri} was not registered by `bcl-ray register`: "
            f"it has no tag {CHECKPOINT_TAG}; name its run instead"
        )
    return str(version.tags[RUN_TAG]), str(version.tags[CHECKPOINT_TAG])


@answered()
def register(
    run: Run,
    folder: str,
    state: State,
    name: str,
    *,
    alias: str | None = None,
    metric: str = "accuracy/all",
    force: bool = False,
) -> list[str]:
    """Register a checkpoint of a run as a model; the same one is registered once.

    Args:
        run: of MLflow too.
        folder: of the checkpoint.
        state: what is in there.
        name: of the model in the registry.
        alias: what this version shall be called. `champion` moves only to a better one.
        metric: that says which is better: the higher.
        force: move `champion` all the same.

    Returns:
        What was done, and what was compared, a line each.

    Raises:
        ValueError: a name that MLflow does not take, a run that MLflow has not, a checkpoint
            without the metric, or a champion that it cannot be compared with.
        OSError: MLflow does not answer, or refuses.
    """
    _check_name("--as", name)
    if alias is not None:
        _check_name("--alias", alias)
    experiment = from_yaml(state.experiment, origin=folder)
    tags = _tags(run, folder, state, experiment, metric)
    client = mlflow_client(store(experiment.tracking.uri, paths.parent(run.uri)))
    champion = _aliased(client, name, CHAMPION) if alias == CHAMPION else None
    if champion is not None and not force:
        _check_comparable(champion, tags)
    version = _find(client, name, tags) or _create(client, run, folder, name, tags)
    notes = [f"{name}: {_measured(version)}, in MLflow at {client.tracking_uri}"]
    if tags[SPLIT] not in VALIDATION:
        notes.append(FLATTERED.format(tags[SPLIT]))
    if champion is not None and champion.version != version.version:
        better = float(tags[VALUE]) > float(champion.tags.get(VALUE, "-inf"))
        if not better and not force:
            return [*notes, f"{CHAMPION} stays {_measured(champion)}; --force moves it"]
        notes.append(f"{CHAMPION} was {_measured(champion)}")
    if alias is not None:
        client.set_registered_model_alias(name, alias, version.version)
        notes.append(f"{alias} is version {version.version}: models:/{name}@{alias}")
    return notes


def mlflow_client(uri: str) -> "MlflowClient":
    """MLflow, asked once.

    Raises:
        ValueError: an SQLite file that is not there, which MLflow would make.
    """
    file = uri.removeprefix("sqlite:///")
    if file != uri and not Path(file).exists():
        raise UserError(f"there is no {file}: train first, or say where runs are with --runs")
    for setting, value in SETTINGS.items():
        os.environ.setdefault(setting, value)
    from mlflow import MlflowClient  # noqa: PLC0415  seconds that who names a run need not pay

    return MlflowClient(uri)


def _check_name(option: str, name: str) -> None:
    if not NAME.fullmatch(name):
        raise UserError(
            f"{option} '{name}' must begin with a letter or a digit, and have only letters, "
            "digits, '.', '_' and '-'"
        )


def _tags(
    run: Run, folder: str, state: State, experiment: Experiment, metric: str
) -> dict[str, str]:
    record = state.history[-1] if state.history else {}
    if metric not in record:
        known = ", ".join(name for name in record if name.startswith("accuracy/"))
        raise UserError(
            f"--metric {metric} was not measured for {paths.for_display(folder)}: "
            + (f"it has {known}" if known else "nothing was evaluated there yet")
        )
    return {
        RUN_TAG: paths.absolute(run.uri),
        CHECKPOINT_TAG: paths.absolute(folder),
        "recipe": experiment.name,
        METRIC: metric,
        VALUE: repr(record[metric]),
        SPLIT: experiment.data.eval_split,
        DATA: state.fingerprint,
    }


def _check_comparable(champion: Any, tags: dict[str, str]) -> None:
    """Refuse to compare with a champion that was measured in another way, or on other images."""
    how = {"recipe": "of recipe", METRIC: "by", SPLIT: "on the split", DATA: "on the data"}
    for tag, what in how.items():
        theirs = champion.tags.get(tag)
        if theirs != tags[tag]:
            raise UserError(
                f"the champion of {champion.name}, {_measured(champion)}, was measured {what} "
                f"'{str(theirs)[:12]}', and this one {what} '{tags[tag][:12]}': they cannot be "
                "compared; --force moves champion all the same"
            )


def _measured(version: Any) -> str:
    """A version with what it is compared by."""
    tags = version.tags
    value = float(tags.get(VALUE, "nan"))
    name = f"version {version.version}"
    return f"{name} with {tags.get(METRIC)} {value:.2f} on '{tags.get(SPLIT)}'"


def _aliased(client: "MlflowClient", name: str, alias: str) -> Any:
    """The version with an alias, or None; a list says whether there is one, an error might lie."""
    for model in client.search_registered_models(f"name = '{name}'"):
        if alias in model.aliases:
            return client.get_model_version(name, str(model.aliases[alias]))
    return None


def _find(client: "MlflowClient", name: str, tags: dict[str, str]) -> Any:
    """The version that was made of the same checkpoint, with the same metric; or None."""
    same = (CHECKPOINT_TAG, METRIC, VALUE)
    for version in client.search_model_versions(f"name = '{name}'"):
        if all(version.tags.get(tag) == tags[tag] for tag in same):
            return version
    return None


def _create(client: "MlflowClient", run: Run, folder: str, name: str, tags: dict[str, str]) -> Any:
    from mlflow.utils import mlflow_tags  # noqa: PLC0415  as in mlflow_client

    from bcl_ray.tracking.mlflow_model import log_model  # noqa: PLC0415  imports MLflow and torch
    from bcl_ray.tracking.mlflow_run import find_run  # noqa: PLC0415

    found = find_run(client, run.uid)
    if found is None:
        raise UserError(
            f"MLflow at {client.tracking_uri} has no run '{run.name}': hand it in with `bcl-ray "
            f"sync {run_folder.reference(run)}`"
        )
    logged = log_model(client, found, folder, folder.rstrip("/").rpartition("/")[2])
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    # A server looks a model's address up; without one, MLflow would ask its default database.
    local = client.tracking_uri.startswith("sqlite:")
    source = logged.artifact_location if local else logged.model_uri
    version = client.create_model_version(
        name, source, found.info.run_id, tags, model_id=logged.model_id
    )
    # By which MLflow's page of the model leads to its versions.
    link = json.dumps([{"name": name, "version": int(version.version)}])
    client.set_logged_model_tags(logged.model_id, {mlflow_tags.MLFLOW_MODEL_VERSIONS: link})
    return version


def _there_is(client: "MlflowClient", name: str) -> str:
    """What there is in the place of a model that there is not."""
    models = client.search_registered_models()
    for model in models:
        if model.name == name:
            versions = client.search_model_versions(f"name = '{name}'")
            numbers = sorted(int(version.version) for version in versions)
            there = [*(f"@{alias}" for alias in sorted(model.aliases)), *map(str, numbers)]
            return f"of {name} there is {', '.join(there)}"
    names = ", ".join(sorted(model.name for model in models)) or "no model yet"
    return f"there is {names}; `bcl-ray register RUN --as {name}` makes it"
