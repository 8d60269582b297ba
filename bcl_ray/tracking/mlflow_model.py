"""A checkpoint as an MLflow model, from pixels in [0, 1] to logits, that loads without bcl_ray.

Axes: H x W pixels, K classes.
"""

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

from bcl_ray.experiment.overrides import from_stored
from bcl_ray.method.model import Classifier, TwoBranch
from bcl_ray.runs import checkpoint
from bcl_ray.tracking.journal import RefusedError


def log_model(client: MlflowClient, run: Any, folder: str, name: str = "model") -> Any:
    """Log the model of a checkpoint in an MLflow run, or complete an earlier attempt.

    Args:
        client: Client of the server.
        run: MLflow's run, as the server has it now.
        folder: Path or URI of the checkpoint.
        name: Name of the model among those of the run.

    Returns:
        MLflow's logged model.

    Raises:
        RefusedError: No model can be made from this checkpoint.
        OSError: The checkpoint cannot be read now, or the disk is full.
    """
    run_id = run.info.run_id
    with tempfile.TemporaryDirectory() as scratch:
        local, model = Path(scratch) / "model", Model(run_id=run_id)
        try:
            _export(folder, local, model)
        except OSError:  # a store that is down, or a full disk: another attempt may succeed
            raise
        except Exception as error:  # another attempt would fail too
            raise RefusedError(f"model of {folder}: {error}") from error
        logged = _find_or_create(client, run, name)
        model.model_id = model.model_uuid = logged.model_id
        model.save(str(local / "MLmodel"))
        client.log_model_artifacts(logged.model_id, str(local))
    client.finalize_logged_model(logged.model_id, "READY")
    if logged.model_id not in {output.model_id for output in run.outputs.model_outputs}:
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return logged


def _find_or_create(client: MlflowClient, run: Any, name: str) -> Any:
    models = client.search_logged_models(
        [run.info.experiment_id],
        f"source_run_id = '{run.info.run_id}' AND name = '{name}'",
        max_results=1,
    )
    if models:
        return models[0]
    return client.create_logged_model(run.info.experiment_id, name, run.info.run_id)


def _export(source: str, target: Path, mlflow_model: Model) -> None:
    """Save the network of a checkpoint in MLflow's format, with signature and example."""
    state = checkpoint.load(source)
    experiment, num_classes = from_stored(state.experiment), len(state.class_names)
    model = TwoBranch(experiment.model, num_classes)
    model.load_state_dict(checkpoint.evaluated_weights(state))
    classifier = Classifier(model, experiment.views.mean, experiment.views.std).eval()
    image = (3, experiment.views.image_size, experiment.views.image_size)
    float32 = np.dtype(np.float32)
    mlflow.pytorch.save_model(
        classifier,
        str(target),
        mlflow_model=mlflow_model,
        # Two images: from a single one, torch.export concludes that the batch size is always 1.
        input_example=np.zeros((2, *image), float32),
        # Without names: with names, pyfunc passes a dict to the model, which this flavor refuses.
        signature=ModelSignature(
            inputs=Schema([TensorSpec(float32, (-1, *image))]),
            outputs=Schema([TensorSpec(float32, (-1, num_classes))]),
        ),
        # Otherwise MLflow would load the model in another process to find them out.
        pip_requirements=[f"torch=={version('torch').partition('+')[0]}", "numpy"],
        serialization_format="pt2",
    )
