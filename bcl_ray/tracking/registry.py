"""MLflow's model registry, in which a checkpoint of a run gets a name and can be found again.

The tags of a version name the run, the checkpoint, and the metric by which versions are compared.
"""

import json
import re
from typing import TYPE_CHECKING, Any

from bcl_ray.data.shards.holdout import selected_on
from bcl_ray.experiment import metric_names
from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.options.section import NAME
from bcl_ray.experiment.overrides import from_stored
from bcl_ray.machine.errors import UserError
from bcl_ray.runs import run_folder
from bcl_ray.runs.checkpoint import State
from bcl_ray.runs.run_folder import Run
from bcl_ray.storage import paths
from bcl_ray.tracking.connection import mlflow_client, mlflow_errors, mlflow_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN_TAG, CHECKPOINT_TAG = "bcl_ray.run", "bcl_ray.checkpoint"  # folders, as paths or URIs
METRIC, VALUE = "metric.name", "metric.value"
SPLIT, DATA = "metric.split", "data.fingerprint"  # that the metric was measured on
CHAMPION = "champion"
OPTIMISTIC = (
    "versions are compared on '{}': if that is also your test split, the best of them looks better "
    "than it is; train with data.validation_split"
)
# MLflow calls an unknown alias an invalid value.
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
URI = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>\d+))")


def resolve(uri: str, root: str = "runs") -> tuple[str, str]:
    """The folder of the run and the folder of the checkpoint of a registered model.

    Args:
        uri: models:/NAME@ALIAS or models:/NAME/VERSION.
        root: Folder or URI of runs. MLflow's database is beside them unless MLFLOW_TRACKING_URI
            names another.

    Raises:
        ValueError: The URI has another form, or there is no such model; the message lists the
            existing ones.
        OSError: MLflow does not answer.
    """
    match = URI.fullmatch(uri)
    if match is None:
        raise UserError(f"'{uri}' must be models:/NAME@ALIAS or models:/NAME/VERSION")
    client = mlflow_client(mlflow_uri(None, paths.absolute(root)))
    from mlflow.exceptions import MlflowException  # noqa: PLC0415  as in mlflow_client

    try:
        if match["alias"]:
            version = client.get_model_version_by_alias(match["name"], match["alias"])
        else:
            version = client.get_model_version(match["name"], match["version"])
    except MlflowException as error:
        if error.error_code not in ABSENT:
            raise OSError(f"MLflow at {client.tracking_uri}: {error.message}") from None
        existing = _existing(client, match["name"])
        raise UserError(f"MLflow at {client.tracking_uri} has no {uri}: {existing}") from None
    if CHECKPOINT_TAG not in version.tags:
        raise UserError(
            f"{uri} in MLflow at {client.tracking_uri} was not registered by `bcl-ray register`: "
            f"it has no tag {CHECKPOINT_TAG}; name its run instead"
        )
    return str(version.tags[RUN_TAG]), str(version.tags[CHECKPOINT_TAG])


def _existing(client: "MlflowClient", name: str) -> str:
    """The versions and aliases of a model; if it does not exist, the names of all models."""
    for model in client.search_registered_models(f"name = '{name}'"):
        versions = client.search_model_versions(f"name = '{name}'")
        numbers = sorted(int(version.version) for version in versions)
        references = [*(f"@{alias}" for alias in sorted(model.aliases)), *map(str, numbers)]
        return f"{name} has {', '.join(references)}"
    models = client.search_registered_models()
    names = ", ".join(sorted(model.name for model in models)) or "no model yet"
    return f"there is {names}; `bcl-ray register RUN --as {name}` registers it"


@mlflow_errors()
def register(
    run: Run,
    folder: str,
    state: State,
    name: str,
    *,
    alias: str | None = None,
    metric: str = metric_names.ACCURACY,
    force: bool = False,
) -> list[str]:
    """Register a checkpoint of a run as a version of a model; the same checkpoint only once.

    Args:
        run: The run, which MLflow must have too.
        folder: Folder or URI of the checkpoint.
        state: Content of the checkpoint.
        name: Name of the model in the registry.
        alias: Alias for this version. `champion` moves only to a version with a higher metric.
        metric: Name of the metric by which versions are compared.
        force: Move `champion` in any case.

    Returns:
        Lines that say what was done and compared.

    Raises:
        ValueError: The name or the alias has characters that are not allowed, MLflow does not have
            the run, the checkpoint lacks the metric, or the champion cannot be compared with it.
        OSError: MLflow does not answer, or refuses.
    """
    _check_name("--as", name)
    if alias is not None:
        _check_name("--alias", alias)
    experiment = from_stored(state.experiment, origin=folder)
    tags = _tags(run, folder, state, experiment, metric)
    client = mlflow_client(mlflow_uri(experiment.tracking.uri, paths.parent(run.uri)))
    champion = _version_with_alias(client, name, CHAMPION) if alias == CHAMPION else None
    if champion is not None and not force:
        _check_comparable(champion, tags)
    version = _version_of(client, name, tags) or _create_version(client, run, folder, name, tags)
    notes = [f"{name}: {_describe(version)}, in MLflow at {client.tracking_uri}"]
    if selected_on(experiment) is None:
        notes.append(OPTIMISTIC.format(tags[SPLIT]))
    if champion is not None and champion.version != version.version:
        better = float(tags[VALUE]) > float(champion.tags.get(VALUE, "-inf"))
        if not better and not force:
            return [*notes, f"{CHAMPION} stays {_describe(champion)}; --force moves it"]
        notes.append(f"{CHAMPION} was {_describe(champion)}")
    if alias is not None:
        client.set_registered_model_alias(name, alias, version.version)
        notes.append(f"{alias} is version {version.version}: models:/{name}@{alias}")
    return notes


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
        measured = ", ".join(name for name in record if name.startswith(metric_names.accuracy("")))
        raise UserError(
            f"--metric {metric} was not measured for {paths.for_display(folder)}: "
            + (f"it has {measured}" if measured else "nothing was evaluated there yet")
        )
    return {
        RUN_TAG: paths.absolute(run.uri),
        CHECKPOINT_TAG: paths.absolute(folder),
        "recipe": experiment.name,
        METRIC: metric,
        VALUE: repr(record[metric]),
        SPLIT: experiment.data.monitored_split,
        DATA: state.fingerprint,
    }


def _check_comparable(champion: Any, tags: dict[str, str]) -> None:
    """Refuse to compare with a champion that was measured in another way or on other images."""
    aspects = {"recipe": "of recipe", METRIC: "by", SPLIT: "on the split", DATA: "on the data"}
    for tag, aspect in aspects.items():
        champion_value = champion.tags.get(tag)
        if champion_value != tags[tag]:
            raise UserError(
                f"the champion of {champion.name}, {_describe(champion)}, was measured {aspect} "
                f"'{str(champion_value)[:12]}', and this version {aspect} '{tags[tag][:12]}': they "
                "cannot be compared; --force moves champion in any case"
            )


def _describe(version: Any) -> str:
    """A version with its metric."""
    tags = version.tags
    value = float(tags.get(VALUE, "nan"))
    name = f"version {version.version}"
    return f"{name} with {tags.get(METRIC)} {value:.2f} on '{tags.get(SPLIT)}'"


def _version_with_alias(client: "MlflowClient", name: str, alias: str) -> Any:
    """The version with an alias, or None.

    Searches the list of models: MLflow has the same error for an unknown alias and for other
    invalid values.
    """
    for model in client.search_registered_models(f"name = '{name}'"):
        if alias in model.aliases:
            return client.get_model_version(name, str(model.aliases[alias]))
    return None


def _version_of(client: "MlflowClient", name: str, tags: dict[str, str]) -> Any:
    """The version of the same checkpoint and metric, or None."""
    same = (CHECKPOINT_TAG, METRIC, VALUE)
    for version in client.search_model_versions(f"name = '{name}'"):
        if all(version.tags.get(tag) == tags[tag] for tag in same):
            return version
    return None


def _create_version(
    client: "MlflowClient", run: Run, folder: str, name: str, tags: dict[str, str]
) -> Any:
    from mlflow.utils import mlflow_tags  # noqa: PLC0415  as in mlflow_client

    from bcl_ray.tracking.mlflow_model import log_model  # noqa: PLC0415  imports MLflow and torch
    from bcl_ray.tracking.mlflow_run import find_run  # noqa: PLC0415

    mlflow_run = find_run(client, run.uid)
    if mlflow_run is None:
        raise UserError(
            f"MLflow at {client.tracking_uri} has no run '{run.name}': deliver it with `bcl-ray "
            f"sync {run_folder.reference(run)}`"
        )
    logged = log_model(client, mlflow_run, folder, folder.rstrip("/").rpartition("/")[2])
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    # A server resolves the model's URI. Without one, MLflow would look in its default database.
    is_file = client.tracking_uri.startswith("sqlite:")
    source = logged.artifact_location if is_file else logged.model_uri
    version = client.create_model_version(
        name, source, mlflow_run.info.run_id, tags, model_id=logged.model_id
    )
    # The tag by which MLflow's page of the logged model links to its versions.
    link = json.dumps([{"name": name, "version": int(version.version)}])
    client.set_logged_model_tags(logged.model_id, {mlflow_tags.MLFLOW_MODEL_VERSIONS: link})
    return version
