"""A checkpoint as an MLflow model, which needs no bcl_ray to load: pixels in [0, 1] to logits."""

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow.pytorch
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec

from bcl_ray.experiment.overrides import from_yaml
from bcl_ray.method.model import Classifier, TwoBranch
from bcl_ray.runs import checkpoint
from bcl_ray.tracking.journal import RefusedError


def log_model(client: MlflowClient, run: Any, folder: str, name: str = "model") -> Any:
    """Give an MLflow run the model of a checkpoint, also where an earlier attempt began it.

    Args:
        client: of the server.
        run: MLflow's, that has been read just now.
        folder: path or URI of the checkpoint.
        name: of the model among those of the run.

    Raises:
        RefusedError: there is no model to be had from this checkpoint.
        OSError: it cannot be read now, or there is no room for the model on its way.
    """
    run_id = run.info.run_id
    with tempfile.TemporaryDirectory() as scratch:
        local, about = Path(scratch) / "model", Model(run_id=run_id)
        try:
            _export(folder, local, about)
        except OSError:  # a store that is down, or a full disk: it may be had later
            raise
        except Exception as error:  # it would fail again
            raise RefusedError(f"model of {folder}: {error}") from error
        logged = _begun(client, run, name)
        about.model_id = about.model_uuid = logged.model_id
        about.save(str(local / "MLmodel"))
        client.log_model_artifacts(logged.model_id, str(local))
    client.finalize_logged_model(logged.model_id, "READY")
    if logged.model_id not in {output.model_id for output in run.outputs.model_outputs}:
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return logged


def _begun(client: MlflowClient, run: Any, name: str) -> Any:
    found = client.search_logged_models(
        [run.info.experiment_id],
        f"source_run_id = '{run.info.run_id}' AND name = '{name}'",
        max_results=1,
    )
    if found:
        return found[0]
    return client.create_logged_model(run.info.experiment_id, name, run.info.run_id)


def _export(source: str, target: Path, about: Model) -> None:
    """Save a checkpoint's network as a folder of MLflow's, with signature and example."""
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
        # Without names: with them, pyfunc would pass a dict on, which this flavor refuses.
        signature=ModelSignature(
            inputs=Schema([TensorSpec(float32, (-1, *image))]),
            outputs=Schema([TensorSpec(float32, (-1, num_classes))]),
        ),
        # Stated, so that MLflow does not find out by loading the model in another process.
        pip_requirements=[f"torch=={version('torch').partition('+')[0]}", "numpy"],
        serialization_format="pt2",
    )
