"""Open a model by its name: a run, a registered model, or the folder of a checkpoint."""

import logging
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import torch

from bcl_ray.data.shards.holdout import selected_on
from bcl_ray.experiment.metric_names import TEMPERATURE
from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.overrides import from_stored
from bcl_ray.machine.errors import UserError
from bcl_ray.machine.messages import notify
from bcl_ray.method.model import TwoBranch
from bcl_ray.runs import checkpoint, run_folder
from bcl_ray.runs.run_folder import BEST, Run
from bcl_ray.storage import files, paths
from bcl_ray.tracking.registry import resolve


@dataclass(frozen=True)
class OpenModel:
    """A trained model with its checkpoint in memory."""

    name: str  # in tables and messages
    uri: str  # folder of the checkpoint
    sha256: str  # of the checkpoint's file
    state: checkpoint.State  # content of the checkpoint
    experiment: Experiment  # with which the model was trained

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, (K,)."""
        return self.state.class_names

    @property
    def temperature(self) -> float | None:
        """Divisor of the logits for calibrated probabilities; None if it was never fitted."""
        fitted = [record[TEMPERATURE] for record in self.state.history if TEMPERATURE in record]
        return fitted[-1] if fitted else None

    def network(self, device: torch.device) -> TwoBranch:
        """The network with the weights that its run evaluated, in evaluation mode."""
        model = TwoBranch(self.experiment.model, len(self.state.class_names))
        model.load_state_dict(checkpoint.evaluated_weights(self.state))
        model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model.eval()


def open_model(name: str, root: str = "runs", *, last: bool | None = None) -> OpenModel:
    """Load a model by any of its names.

    Args:
        name: A run below `root`, or the folder or URI of a run; models:/NAME@ALIAS or
            models:/NAME/VERSION of MLflow's registry; or the folder or URI of a checkpoint.
        root: Folder or URI that holds runs.
        last: Whether to take the last checkpoint of a run, or its best. None: the best if it was
            selected on validation data or is the only one left, otherwise the last, with a notice.

    Raises:
        ValueError: There is no such model, or the run has no such checkpoint yet.
        OSError: A storage location or MLflow does not respond.
    """
    uri = find_checkpoint(name, root, last=last)
    return open_checkpoint(uri, _display_name(name, uri))


def open_checkpoint(uri: str, name: str) -> OpenModel:
    """Load the model from the folder of a checkpoint.

    Args:
        uri: Folder of the checkpoint.
        name: Name that the model gets in tables and messages.

    Raises:
        UnusableCheckpointError: The folder holds no usable checkpoint.
    """
    state = checkpoint.load(uri)
    experiment = from_stored(state.experiment, origin=uri)
    return OpenModel(name, uri, checkpoint.sha256(uri), state, experiment)


def find_checkpoint(name: str, root: str = "runs", *, last: bool | None = None) -> str:
    """The folder of a model's checkpoint, found like `open_model` finds it, but not read."""
    if name.startswith("models:"):
        return resolve(name, root)[1]
    uri = paths.absolute(run_folder.run_uri(name, root))
    if run_folder.holds_run(uri):
        run, experiment = run_folder.open_run(uri)
        if last is None and (last := _uses_last(run, experiment)):
            notify(
                f"the last checkpoint of '{run.name}', not its best: the run was evaluated on "
                f"'{experiment.data.eval_split}' alone, and what is selected there looks better "
                "than it is; --best takes the best, and data.validation_split selects it on other "
                "images"
            )
        return last_checkpoint(run) if last else best_checkpoint(run)
    if files.exists(files.join(uri, checkpoint.FILE)):
        return uri
    raise UserError(
        f"'{name}' is no model: {paths.for_display(uri)} holds neither a run nor a checkpoint; "
        "name a run (--runs is where runs lie), a checkpoint's folder, or models:/NAME@ALIAS"
    )


def _uses_last(run: Run, experiment: Experiment) -> bool:
    """Whether a run kept its last checkpoint, and its best was not selected on validation data."""
    return selected_on(experiment) is None and not run_folder.why_only_best(run)


def last_state(run: Run) -> checkpoint.State:
    """The last checkpoint of a run, which has the history of all epochs.

    A trial that lost its search keeps only its best checkpoint, and its history in a file. The
    state then has the weights of the best checkpoint, with the whole history.

    Raises:
        ValueError: The run has no checkpoint yet.
    """
    history = run_folder.saved_history(run)
    if history is None:
        return checkpoint.load(last_checkpoint(run))
    return replace(checkpoint.load(best_checkpoint(run)), history=history)


def best_checkpoint(run: Run) -> str:
    """The folder of the checkpoint with the highest accuracy.

    Raises:
        ValueError: The run has evaluated no checkpoint yet.
    """
    names = [name for name in files.list_folders(run.uri) if name.startswith(BEST)]
    # While a better one replaces the old one, there are two, and the newer one may be incomplete.
    for folder in [files.join(run.uri, name) for name in reversed(names)]:
        if checkpoint.is_complete(folder):
            return folder
    raise UserError(f"run '{run.name}' in {run.uri} has evaluated no checkpoint yet")


def last_checkpoint(run: Run) -> str:
    """The folder of the last checkpoint that Ray Train has recorded.

    Raises:
        ValueError: The run has no checkpoint yet, or its last one was removed.
    """
    if why := run_folder.why_only_best(run):
        raise UserError(
            f"run '{run.name}' in {run.uri} {why}, and its last checkpoint was removed: use its "
            "best (--best)"
        )
    from ray.train import Result  # noqa: PLC0415  takes seconds; only needed here

    filesystem, path = files.resolve(run.uri)
    logging.getLogger("ray.train").setLevel(logging.ERROR)  # it logs every snapshot that it reads
    try:
        result: Any = Result.from_path(path, filesystem)
    except RuntimeError:
        result = None
    if result is None or result.checkpoint is None:
        raise UserError(f"run '{run.name}' in {run.uri} has no checkpoint yet")
    return files.join(run.uri, PurePosixPath(result.checkpoint.path).name)


def _display_name(name: str, uri: str) -> str:
    """The name of a run or of a registered model, or RUN/CHECKPOINT for a checkpoint's folder."""
    if name.startswith("models:"):
        return name
    parts = name.partition("?")[0].rstrip("/").split("/")
    is_checkpoint = parts[-1] == uri.partition("?")[0].rpartition("/")[2]
    return "/".join(parts[-2:] if is_checkpoint else parts[-1:])
