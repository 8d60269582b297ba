"""The MLflow run that a journal is written to: found or created, and filled without duplicates.

It uses MLflow's client alone, because `mlflow.start_run` and `set_tracking_uri` change the state of
the whole process.
"""

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, ErrorCode
from mlflow.utils import mlflow_tags

from bcl_ray.machine import user
from bcl_ray.tracking.connection import sqlite_file, sqlite_uri
from bcl_ray.tracking.journal import BlockedError, Entry, RefusedError, Subject
from bcl_ray.tracking.mlflow_model import log_model

UID_TAG, PARENT_TAG, MODEL_TAG = "bcl_ray.uid", "bcl_ray.parent", "model.uri"
PARAM_CHARACTERS = 6000  # the most that MLflow stores of a parameter's value
DIGEST_CHARACTERS = 12  # of a data set, as shown elsewhere; MLflow stores up to 36
# Without this tag, MLflow shows an experiment with the pages for language models.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
DELETED = "deleted"  # MLflow's word for what is in its trash
REFUSAL = ErrorCode.Name(INVALID_PARAMETER_VALUE)


class MlflowRun:
    """One MLflow run, to which the entries of a journal are written.

    Args:
        uri: URI of the tracking server or database.
        subject: What the run is about; its uid is in a tag by which an existing run is found.
        start_time: When the run began, in seconds since 1970, in case it must be created.
    """

    def __init__(self, uri: str, subject: Subject, start_time: float) -> None:
        create_database(uri)
        self.client, self.uri = MlflowClient(uri), uri
        run = find_run(self.client, subject.uid) or self._create(subject, start_time)
        info, data = run.info, run.data
        self.run_id = str(info.run_id)
        if info.lifecycle_stage == DELETED:
            raise self._in_the_trash()
        page = f"{uri.rstrip('/')}/#/experiments/{info.experiment_id}/runs/{info.run_id}"
        self.page = page if uri.startswith("http") else None  # the run's web page
        self._set_params(subject, data.params)
        self._logged_steps: dict[str, set[int]] = {}  # by metric
        has_parent = mlflow_tags.MLFLOW_PARENT_RUN_ID in data.tags
        # The uid of a parent that MLflow does not have yet.
        self._missing_parent = None if has_parent else data.tags.get(PARENT_TAG)

    def _in_the_trash(self) -> BlockedError:
        return BlockedError(
            "the run is in MLflow's trash, perhaps with its experiment: restore it (mlflow runs "
            f"restore --run-id {self.run_id})"
        )

    def _create(self, subject: Subject, start_time: float) -> Any:
        tags = {UID_TAG: subject.uid, mlflow_tags.MLFLOW_USER: user.name(), **subject.tags}
        try:
            experiment_id = self._experiment_id(subject.experiment)
            return self.client.create_run(experiment_id, int(1000 * start_time), tags, subject.name)
        except MlflowException as error:
            if error.error_code == REFUSAL:
                raise BlockedError(f"MLflow refuses the run: {error.message}") from error
            raise

    def _experiment_id(self, name: str) -> str:
        """The id of an experiment, which is created if there is none."""
        existing = self.client.get_experiment_by_name(name)
        if existing and existing.lifecycle_stage == DELETED:
            raise BlockedError(
                f"MLflow's experiment '{name}' is in the trash: restore it (mlflow experiments "
                f"restore --experiment-id {existing.experiment_id}), or name another one "
                "(tracking.experiment=NAME)"
            )
        if existing:
            return str(existing.experiment_id)
        file = sqlite_file(self.uri)
        folder = file.absolute().parent / "mlartifacts" if file else None
        location = folder.as_uri() if folder else None
        return str(self.client.create_experiment(name, location, EXPERIMENT_TAGS))

    def _set_params(self, subject: Subject, existing: Mapping[str, str]) -> None:
        """Set the parameters that are missing: MLflow cannot change one, but a resume can."""
        params = [
            Param(name, value[:PARAM_CHARACTERS])
            for name, value in subject.parameters.items()
            if name not in existing
        ]
        self.client.log_batch(self.run_id, params=params)

    def write(self, entry: Entry) -> None:
        """Write an entry.

        Raises:
            RefusedError: MLflow will never accept the entry.
            BlockedError: The run is in the trash.
        """
        try:
            self._link_parent()
            getattr(self, f"_{entry['kind']}")(entry)
        except MlflowException as error:
            if error.error_code == REFUSAL:
                if self.client.get_run(self.run_id).info.lifecycle_stage == DELETED:
                    raise self._in_the_trash() from error
                raise RefusedError(f"{entry['kind']}: {error.message}") from error
            raise

    def _status(self, entry: Entry) -> None:
        if entry["status"] == "RUNNING":
            self.client.update_run(self.run_id, "RUNNING")
            return
        self.client.set_terminated(self.run_id, entry["status"], int(1000 * entry["time"]))
        if self._missing_parent:  # try again later: the parent may still come
            raise ConnectionError(
                f"MLflow does not have the parent of this run yet, which has tag {UID_TAG} = "
                f"{self._missing_parent}"
            )

    def _parent(self, entry: Entry) -> None:
        self.client.set_tag(self.run_id, PARENT_TAG, entry["uid"])
        self._missing_parent = entry["uid"]
        self._link_parent()

    def _link_parent(self) -> None:
        """Link the run to its parent if MLflow has that now; other entries do not wait for it."""
        missing = self._missing_parent
        parent = find_run(self.client, missing) if missing else None
        if parent is not None:
            name = mlflow_tags.MLFLOW_PARENT_RUN_ID
            self.client.set_tag(self.run_id, name, parent.info.run_id)
            self._missing_parent = None

    def _tags(self, entry: Entry) -> None:
        tags = [RunTag(name, value) for name, value in entry["tags"].items()]
        self.client.log_batch(self.run_id, tags=tags)

    def _text(self, entry: Entry) -> None:
        self.client.log_text(self.run_id, entry["content"], entry["name"])

    def _artifact(self, entry: Entry) -> None:
        file, folder = Path(entry["path"]), entry["folder"] or None
        if file.is_file():  # replaces the file of an earlier start of the run
            self.client.log_artifact(self.run_id, str(file), folder)
            return
        logged = self.client.list_artifacts(self.run_id, folder)
        if file.name not in {Path(artifact.path).name for artifact in logged}:
            raise RefusedError(f"{file} was deleted before MLflow got it")

    def _dataset(self, entry: Entry) -> None:
        uri = entry["source"]
        dataset = Dataset(
            name=entry["name"],
            digest=entry["digest"][:DIGEST_CHARACTERS],
            source_type="s3" if uri.startswith("s3://") else "local",
            source=json.dumps({"uri": uri}),
            schema=json.dumps({"mlflow_colspec": entry["columns"]}),
            profile=json.dumps(entry["profile"]),
        )
        context = InputTag(mlflow_tags.MLFLOW_DATASET_CONTEXT, entry["context"])
        self.client.log_inputs(self.run_id, datasets=[DatasetInput(dataset, [context])])

    def _metrics(self, entry: Entry) -> None:
        epoch, milliseconds = entry["epoch"], int(1000 * entry["time"])
        new = [
            Metric(name, float(value), milliseconds, epoch)
            for name, value in entry["values"].items()
            if epoch not in self._steps(name)
        ]
        self.client.log_batch(self.run_id, metrics=new)  # in as many requests as necessary
        for metric in new:
            self._logged_steps[metric.key].add(epoch)

    def _steps(self, name: str) -> set[int]:
        """The steps for which MLflow has a metric."""
        if name not in self._logged_steps:
            history = self.client.get_metric_history(self.run_id, name)
            self._logged_steps[name] = {metric.step for metric in history}
        return self._logged_steps[name]

    def _model(self, entry: Entry) -> None:
        run = self.client.get_run(self.run_id)
        if MODEL_TAG not in run.data.tags:
            logged = log_model(self.client, run, entry["folder"])
            self.client.set_tag(self.run_id, MODEL_TAG, logged.model_uri)


def create_database(uri: str) -> None:
    """Create an SQLite database if it does not exist, so that it appears only once it is complete.

    MLflow 3.17 creates its tables in many steps and without a lock. If a process is killed
    meanwhile, or two processes do so at the same time, MLflow cannot open the database any more.

    Args:
        uri: sqlite:///FILE; nothing is done for any other URI.
    """
    file = sqlite_file(uri)
    if file is None or file.exists():
        return
    new = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    _, question, options = uri.partition("?")
    try:
        MlflowClient(f"{sqlite_uri(new)}{question}{options}").search_experiments(max_results=1)
        file.hardlink_to(new)
    except FileExistsError:  # another process was faster
        pass
    except OSError:  # a file system without hard links
        if not file.exists():
            new.rename(file)
    finally:
        new.unlink(missing_ok=True)


def find_run(client: MlflowClient, uid: str) -> Any:
    """The MLflow run whose tag has this uid, be it in the trash; None if there is none."""
    token, first = None, True
    while token or first:  # in all experiments, because a resume may name another one
        page = client.search_experiments(page_token=token)
        ids = [experiment.experiment_id for experiment in page]
        runs = client.search_runs(ids, f"tags.`{UID_TAG}` = '{uid}'", ViewType.ALL)
        if runs:  # one that is in use before one in the trash
            return min(runs, key=lambda run: run.info.lifecycle_stage == DELETED)
        token, first = page.token, False
    return None
