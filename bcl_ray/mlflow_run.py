"""The MLflow run that a journal is written to: found or made, and filled without repetition.

Only MLflow's client is used: what `mlflow.start_run` and `set_tracking_uri` set would be
everybody's in this process.
"""

import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow.pytorch
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, ErrorCode
from mlflow.types import Schema, TensorSpec

from bcl_ray import checkpoint
from bcl_ray.config import Experiment
from bcl_ray.journal import Entry, RefusedError
from bcl_ray.model import Classifier, TwoBranch
from bcl_ray.parse import from_yaml
from bcl_ray.runs import Run

UID_TAG, MODEL_TAG = "bcl_ray.uid", "model.uri"
PARAM_CHARACTERS = 6000  # of a parameter's value, at most
REFUSAL = ErrorCode.Name(INVALID_PARAMETER_VALUE)


class MlflowRun:
    """One MLflow run, which takes a journal's entries.

    Args:
        uri: of the tracking server or database.
        run: whose tag finds the MLflow run that was made before.
        experiment: its options become parameters.
        begun: when the run began, if it must be made; seconds since 1970.
    """

    def __init__(self, uri: str, run: Run, experiment: Experiment, begun: float) -> None:
        self.client, self.uri = MlflowClient(uri), uri
        info = self._find(run.uid) or self._create(run, experiment, begun)
        self.run_id = str(info.run_id)
        page = f"{uri.rstrip('/')}/#/experiments/{info.experiment_id}/runs/{info.run_id}"
        self.page = page if uri.startswith("http") else None  # where a person sees it
        self._set_params(experiment)
        self._known: dict[str, set[int]] = {}  # steps that MLflow has, by metric

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

    def _create(self, run: Run, experiment: Experiment, begun: float) -> Any:
        name = experiment.tracking.experiment
        existing = self.client.get_experiment_by_name(name)
        if existing:
            experiment_id = existing.experiment_id
        elif self.uri.startswith("sqlite:///"):
            folder = Path(self.uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts"
            experiment_id = self.client.create_experiment(name, folder.as_uri())
        else:
            experiment_id = self.client.create_experiment(name)
        tags = {UID_TAG: run.uid, "recipe": experiment.name, "digest": run.digest}
        return self.client.create_run(experiment_id, int(1000 * begun), tags, run.name).info

    def _set_params(self, experiment: Experiment) -> None:
        """Options as parameters, once; a resume may change scale, which parameters cannot."""
        have = self.client.get_run(self.run_id).data.params
        params = [
            Param(f"{section}.{name}", str(value)[:PARAM_CHARACTERS])
            for section, options in experiment.model_dump(mode="json").items()
            if isinstance(options, dict)
            for name, value in options.items()
            if f"{section}.{name}" not in have
        ]
        self.client.log_batch(self.run_id, params=params)

    def write(self, entry: Entry) -> None:
        """Write an entry.

        Raises:
            RefusedError: it can never be written.
        """
        try:
            getattr(self, f"_{entry['kind']}")(entry)
        except MlflowException as error:
            if error.error_code == REFUSAL:
                raise RefusedError(f"{entry['kind']}: {error.message}") from error
            raise

    def _status(self, entry: Entry) -> None:
        if entry["status"] == "RUNNING":
            self.client.update_run(self.run_id, "RUNNING")
        else:
            self.client.set_terminated(self.run_id, entry["status"], int(1000 * entry["time"]))

    def _tags(self, entry: Entry) -> None:
        tags = [RunTag(name, value) for name, value in entry["tags"].items()]
        self.client.log_batch(self.run_id, tags=tags)

    def _text(self, entry: Entry) -> None:
        self.client.log_text(self.run_id, entry["content"], entry["name"])

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
