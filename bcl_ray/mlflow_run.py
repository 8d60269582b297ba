"""The MLflow run that a journal is written to: found or made, and filled without repetition.

Only MLflow's client is used: what `mlflow.start_run` and `set_tracking_uri` set would be
everybody's in this process.
"""

import getpass
import json
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow.pytorch
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    Metric,
    Param,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, ErrorCode
from mlflow.types import Schema, TensorSpec
from mlflow.utils import mlflow_tags

from bcl_ray import checkpoint
from bcl_ray.journal import Entry, RefusedError, Subject
from bcl_ray.model import Classifier, TwoBranch
from bcl_ray.parse import from_yaml

UID_TAG, PARENT_TAG, MODEL_TAG = "bcl_ray.uid", "bcl_ray.parent", "model.uri"
PARAM_CHARACTERS = 6000  # of a parameter's value, at most
DIGEST_CHARACTERS = 36  # of a data set's digest, at most
REFUSAL = ErrorCode.Name(INVALID_PARAMETER_VALUE)


class MlflowRun:
    """One MLflow run, which takes a journal's entries.

    Args:
        uri: of the tracking server or database.
        subject: whose tag finds the MLflow run that was made before.
        begun: when the run began, if it must be made; seconds since 1970.
    """

    def __init__(self, uri: str, subject: Subject, begun: float) -> None:
        self.client, self.uri = MlflowClient(uri), uri
        info = self._find(subject.uid) or self._create(subject, begun)
        self.run_id = str(info.run_id)
        page = f"{uri.rstrip('/')}/#/experiments/{info.experiment_id}/runs/{info.run_id}"
        self.page = page if uri.startswith("http") else None  # where a person sees it
        data = self.client.get_run(self.run_id).data
        self._set_params(subject, data.params)
        self._known: dict[str, set[int]] = {}  # steps that MLflow has, by metric
        joined = mlflow_tags.MLFLOW_PARENT_RUN_ID in data.tags
        self._missing = None if joined else data.tags.get(PARENT_TAG)  # uid of a parent

    def _find(self, uid: str) -> Any:
        for experiments in self._experiments():
            found = self.client.search_runs(
                experiments, f"tags.`{UID_TAG}` = '{uid}'", max_results=1
            )
            if found:
                return found[0].info
        return None

    def _experiments(self) -> Iterator[list[str]]:
        """Ids of all MLflow experiments, page by page: a resume may name another one."""
        token, first = None, True
        while token or first:
            page = self.client.search_experiments(page_token=token)
            yield [found.experiment_id for found in page]
            token, first = page.token, False

    def _create(self, subject: Subject, begun: float) -> Any:
        name = subject.experiment
        existing = self.client.get_experiment_by_name(name)
        if existing:
            experiment_id = existing.experiment_id
        elif self.uri.startswith("sqlite:///"):
            folder = Path(self.uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts"
            experiment_id = self.client.create_experiment(name, folder.as_uri())
        else:
            experiment_id = self.client.create_experiment(name)
        tags = {UID_TAG: subject.uid, mlflow_tags.MLFLOW_USER: _user(), **subject.tags}
        return self.client.create_run(experiment_id, int(1000 * begun), tags, subject.name).info

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
        parent = self._find(self._missing) if self._missing else None
        if parent is not None:
            self.client.set_tag(self.run_id, mlflow_tags.MLFLOW_PARENT_RUN_ID, parent.run_id)
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
        if MODEL_TAG in run.data.tags:
            return
        with tempfile.TemporaryDirectory() as scratch:
            folder, about = Path(scratch) / "model", Model(run_id=self.run_id)
            try:
                _export(Path(entry["folder"]), folder, about)
            except Exception as error:  # it would fail again
                raise RefusedError(f"model of {entry['folder']}: {error}") from error
            logged = self._logged_model(run.info.experiment_id)
            about.model_id = about.model_uuid = logged.model_id
            about.save(str(folder / "MLmodel"))
            self.client.log_model_artifacts(logged.model_id, str(folder))
        self.client.finalize_logged_model(logged.model_id, "READY")
        if not run.outputs.model_outputs:
            self.client.log_outputs(self.run_id, [LoggedModelOutput(logged.model_id, step=0)])
        self.client.set_tag(self.run_id, MODEL_TAG, logged.model_uri)

    def _logged_model(self, experiment_id: str) -> Any:
        """The run's model, also where an earlier attempt began it."""
        begun = self.client.search_logged_models(
            [experiment_id], f"source_run_id = '{self.run_id}'", max_results=1
        )
        if begun:
            return begun[0]
        return self.client.create_logged_model(experiment_id, "model", self.run_id)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"


def _export(source: Path, target: Path, about: Model) -> None:
    """Save a checkpoint's network as an MLflow model: pixels in [0, 1] to logits."""
    state = checkpoint.load(source)
    experiment, num_classes = from_yaml(state.experiment), len(state.class_names)
    model = TwoBranch(experiment.model, num_classes)
    model.load_state_dict(checkpoint.evaluated_weights(state))
    classifier = Classifier(model, experiment.views.mean, experiment.views.std).eval()
    image = (3, experiment.views.image_size, experiment.views.image_size)
    float32 = np.dtype(np.float32)
    mlflow.pytorch.save_model(
        classifier,
        str(target),
        mlflow_model=about,
        # Two images: torch.export would take a batch of one for a batch that is always one.
        input_example=np.zeros((2, *image), float32),
        signature=ModelSignature(
            inputs=Schema([TensorSpec(float32, (-1, *image), "images")]),
            outputs=Schema([TensorSpec(float32, (-1, num_classes), "logits")]),
        ),
        # Stated, so that MLflow does not find out by loading the model in another process.
        pip_requirements=[f"torch=={version('torch').partition('+')[0]}", "numpy"],
        serialization_format="pt2",
    )
