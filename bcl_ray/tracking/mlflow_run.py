"""The MLflow run that a journal is written to: found or made, and filled without repetition.

Only MLflow's client is used: what `mlflow.start_run` and `set_tracking_uri` set would be
everybody's in this process.
"""

import getpass
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, ErrorCode
from mlflow.utils import mlflow_tags

from bcl_ray.tracking.journal import Entry, RefusedError, Subject
from bcl_ray.tracking.mlflow_model import log_model

UID_TAG, PARENT_TAG, MODEL_TAG = "bcl_ray.uid", "bcl_ray.parent", "model.uri"
PARAM_CHARACTERS = 6000  # of a parameter's value, at most
DIGEST_CHARACTERS = 12  # of a data set's digest, as it is shown everywhere; MLflow takes 36
# Without it, MLflow's pages of an experiment are those for language models.
KIND = {"mlflow.experimentKind": "custom_model_development"}
SQLITE = "sqlite:///"
REFUSAL = ErrorCode.Name(INVALID_PARAMETER_VALUE)


class MlflowRun:
    """One MLflow run, which takes a journal's entries.

    Args:
        uri: of the tracking server or database.
        subject: whose tag finds the MLflow run that was made before.
        begun: when the run began, if it must be made; seconds since 1970.
    """

    def __init__(self, uri: str, subject: Subject, begun: float) -> None:
        make_database(uri)
        self.client, self.uri = MlflowClient(uri), uri
        found = find_run(self.client, subject.uid) or self._create(subject, begun)
        info, data = found.info, found.data
        self.run_id = str(info.run_id)
        page = f"{uri.rstrip('/')}/#/experiments/{info.experiment_id}/runs/{info.run_id}"
        self.page = page if uri.startswith("http") else None  # where a person sees it
        self._set_params(subject, data.params)
        self._known: dict[str, set[int]] = {}  # steps that MLflow has, by metric
        joined = mlflow_tags.MLFLOW_PARENT_RUN_ID in data.tags
        self._missing = None if joined else data.tags.get(PARENT_TAG)  # uid of a parent

    def _create(self, subject: Subject, begun: float) -> Any:
        name = subject.experiment
        existing = self.client.get_experiment_by_name(name)
        if existing:
            experiment_id = existing.experiment_id
        elif self.uri.startswith(SQLITE):
            folder = Path(self.uri.removeprefix(SQLITE)).absolute().parent / "mlartifacts"
            experiment_id = self.client.create_experiment(name, folder.as_uri(), KIND)
        else:
            experiment_id = self.client.create_experiment(name, tags=KIND)
        tags = {UID_TAG: subject.uid, mlflow_tags.MLFLOW_USER: _user(), **subject.tags}
        return self.client.create_run(experiment_id, int(1000 * begun), tags, subject.name)

    def _set_params(self, subject: Subject, have: Mapping[str, str]) -> None:
        """Options as parameters, once; a resume may change scale, which parameters cannot."""
        params = [
            Param(name, value[:PARAM_CHARACTERS])
            for name, value in subject.parameters.items()
            if name not in have
        ]
        self.client.log_batch(self.run_id, params=params)

    def write(self, entry: Entry) -> None:
        """Write an entry.

        Raises:
            RefusedError: it can never be written.
        """
        try:
            self._join_parent()
            getattr(self, f"_{entry['kind']}")(entry)
        except MlflowException as error:
            if error.error_code == REFUSAL:
                raise RefusedError(f"{entry['kind']}: {error.message}") from error
            raise

    def _status(self, entry: Entry) -> None:
        if entry["status"] == "RUNNING":
            self.client.update_run(self.run_id, "RUNNING")
            return
        self.client.set_terminated(self.run_id, entry["status"], int(1000 * entry["time"]))
        if self._missing:  # the end is told all the same, and the parent may come yet
            raise ConnectionError(
                f"the run with tag {UID_TAG} = {self._missing}, which is to be the parent of "
                "this one, is not there yet"
            )

    def _parent(self, entry: Entry) -> None:
        self.client.set_tag(self.run_id, PARENT_TAG, entry["uid"])
        self._missing = entry["uid"]
        self._join_parent()

    def _join_parent(self) -> None:
        """Put the run below its parent as soon as MLflow has that one; nothing else waits."""
        parent = find_run(self.client, self._missing) if self._missing else None
        if parent is not None:
            name = mlflow_tags.MLFLOW_PARENT_RUN_ID
            self.client.set_tag(self.run_id, name, parent.info.run_id)
            self._missing = None

    def _tags(self, entry: Entry) -> None:
        tags = [RunTag(name, value) for name, value in entry["tags"].items()]
        self.client.log_batch(self.run_id, tags=tags)

    def _text(self, entry: Entry) -> None:
        self.client.log_text(self.run_id, entry["content"], entry["name"])

    def _artifact(self, entry: Entry) -> None:
        file, folder = Path(entry["path"]), entry["folder"]
        if file.is_file():  # what a later start of the run has drawn takes the place of the earlier
            self.client.log_artifact(self.run_id, str(file), folder or None)
            return
        there = {Path(found.path).name for found in self._listed(folder)}
        if file.name not in there:
            raise RefusedError(f"{file} was gone before MLflow got it")

    def _listed(self, folder: str) -> Any:
        return self.client.list_artifacts(self.run_id, folder or None)

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
        epoch, moment = entry["epoch"], int(1000 * entry["time"])
        new = [
            Metric(name, float(value), moment, epoch)
            for name, value in entry["values"].items()
            if epoch not in self._steps(name)
        ]
        self.client.log_batch(self.run_id, metrics=new)  # in as many requests as it takes
        for metric in new:
            self._known[metric.key].add(epoch)

    def _steps(self, name: str) -> set[int]:
        if name not in self._known:
            history = self.client.get_metric_history(self.run_id, name)
            self._known[name] = {metric.step for metric in history}
        return self._known[name]

    def _model(self, entry: Entry) -> None:
        run = self.client.get_run(self.run_id)
        if MODEL_TAG not in run.data.tags:
            logged = log_model(self.client, run, entry["folder"])
            self.client.set_tag(self.run_id, MODEL_TAG, logged.model_uri)


def make_database(uri: str) -> None:
    """Make an SQLite database that is not there yet, whole: by a process that ends, or by others.

    MLflow (3.17) makes its tables in many steps and without a lock. A process that is killed
    meanwhile, or another one that does so at the same time, leaves a database that no MLflow opens.
    """
    name, question, options = uri.removeprefix(SQLITE).partition("?")
    file = Path(name)
    if not uri.startswith(SQLITE) or file.exists():
        return
    new = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        MlflowClient(f"{SQLITE}{new}{question}{options}").search_experiments(max_results=1)
        file.hardlink_to(new)
    except FileExistsError:  # another process was faster
        pass
    except OSError:  # no hard links here
        if not file.exists():
            new.rename(file)
    finally:
        new.unlink(missing_ok=True)


def find_run(client: MlflowClient, uid: str) -> Any:
    """The MLflow run with a uid's tag, or None."""
    token, first = None, True
    while token or first:  # all experiments, page by page: a resume may name another one
        page = client.search_experiments(page_token=token)
        ids = [found.experiment_id for found in page]
        found = client.search_runs(ids, f"tags.`{UID_TAG}` = '{uid}'", max_results=1)
        if found:
            return found[0]
        token, first = page.token, False
    return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"
