"""What MODEL names: a run, a registered model, or a checkpoint's folder; and what it leads to."""

import logging
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import torch

from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.overrides import from_yaml
from bcl_ray.machine.errors import UserError
from bcl_ray.method.model import TwoBranch
from bcl_ray.runs import checkpoint, run_folder
from bcl_ray.runs.run_folder import BEST, Run
from bcl_ray.storage import files, paths
from bcl_ray.tracking.registry import resolve


@dataclass(frozen=True)
class OpenModel:
    """A model that can be used: evaluated, asked for predictions, exported.

    Args:
        name: as a table calls it.
        uri: folder of the checkpoint that it is.
        sha256: of the checkpoint's file.
        state: what is in there.
        experiment: with which it was trained.
    """

    name: str
    uri: str
    sha256: str
    state: checkpoint.State
    experiment: Experiment

    @property
    def class_names(self) -> list[str]:
        """(K,)."""
        return self.state.class_names

    @property
    def temperature(self) -> float | None:
        """What calibrates: probabilities are softmax(logits / temperature); None: never fitted."""
        found = [r["calibration/temperature"] for r in self.state.history if _is_calibrated(r)]
        return found[-1] if found else None

    def network(self, device: torch.device) -> TwoBranch:
        """The network that its run evaluated, ready to classify."""
        model = TwoBranch(self.experiment.model, len(self.state.class_names))
        model.load_state_dict(checkpoint.evaluated_weights(self.state))
        model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model.eval()


def open_model(name: str, root: str = "runs", *, last: bool = False) -> OpenModel:
    """Load a model by any of its names.

    Args:
        name: of a run below `root`, or a run's folder or URI: its best checkpoint;
            models:/NAME@ALIAS or models:/NAME/VERSION of MLflow's registry; or a checkpoint's
            folder or URI.
        root: folder or URI that holds runs.
        last: of a run, take the last checkpoint instead of the best.

    Raises:
        ValueError: there is no such model, or a run has no such checkpoint yet.
        OSError: a place or MLflow does not answer.
    """
    uri = find_checkpoint(name, root, last=last)
    return open_checkpoint(uri, _called(name, uri))


def open_checkpoint(uri: str, name: str) -> OpenModel:
    """Load the model of a checkpoint's folder, under a name.

    Raises:
        UnusableCheckpointError: the folder holds none.
    """
    state = checkpoint.load(uri)
    experiment = from_yaml(state.experiment, origin=uri)
    return OpenModel(name, uri, checkpoint.sha256(uri), state, experiment)


def find_checkpoint(name: str, root: str = "runs", *, last: bool = False) -> str:
    """Folder of the checkpoint that a model is; as `open_model`, without reading it."""
    if name.startswith("models:"):
        return resolve(name, root)[1]
    uri = paths.absolute(run_folder.run_uri(name, root))
    if files.exists(files.join(uri, run_folder.RUN_FILE)):
        run = run_folder.open_run(uri)[0]
        return last_checkpoint(run) if last else best_checkpoint(run)
    if files.exists(files.join(uri, checkpoint.FILE)):
        return uri
    raise UserError(
        f"'{name}' is no model: {paths.for_display(uri)} holds neither a run nor a checkpoint; name "
        "a run (--runs is where runs lie), a checkpoint's folder, or models:/NAME@ALIAS"
    )


def load_state(run: Run, *, best: bool = False) -> checkpoint.State:
    """The last checkpoint of a run, or the best that was kept.

    Raises:
        ValueError: the run has none yet.
    """
    return checkpoint.load(best_checkpoint(run) if best else last_checkpoint(run))


def last_state(run: Run) -> checkpoint.State:
    """The last state, for what it says of all epochs: its weights may be the best ones.

    That is so of a trial that lost its search, whose history is kept beside its best checkpoint.

    Raises:
        ValueError: the run has none yet.
    """
    history = run_folder.saved_history(run)
    if history is None:
        return load_state(run)
    return replace(load_state(run, best=True), history=history)


def best_checkpoint(run: Run) -> str:
    """Folder of the checkpoint with the highest accuracy.

    Raises:
        ValueError: nothing has been evaluated yet.
    """
    found = [name for name in files.list_folders(run.uri) if name.startswith(BEST)]
    if not found:
        raise UserError(f"run '{run.name}' in {run.uri} has evaluated no checkpoint yet")
    return files.join(run.uri, found[-1])  # while a better one replaces it, there may be two


def last_checkpoint(run: Run) -> str:
    """Folder of the last checkpoint that Ray Train has noted.

    Raises:
        ValueError: there is none yet, or no more.
    """
    if why := run_folder.why_only_best(run):
        raise UserError(
            f"run '{run.name}' in {run.uri} {why}, and its last checkpoint was removed: use its "
            "best (evaluate and compare --best; predict, export and register without --last)"
        )
    from ray.train import Result  # noqa: PLC0415  seconds that the best checkpoint need not pay

    filesystem, path = files.resolve(run.uri)
    logging.getLogger("ray.train").setLevel(logging.ERROR)  # it tells of every snapshot it finds
    try:
        result: Any = Result.from_path(path, filesystem)
    except RuntimeError:
        result = None
    if result is None or result.checkpoint is None:
        raise UserError(f"run '{run.name}' in {run.uri} has no checkpoint yet")
    return files.join(run.uri, PurePosixPath(result.checkpoint.path).name)


def _called(name: str, uri: str) -> str:
    """A run's name, a registered model's, or a checkpoint's with its run's."""
    if name.startswith("models:"):
        return name
    parts = name.partition("?")[0].rstrip("/").split("/")
    is_checkpoint = parts[-1] == uri.partition("?")[0].rpartition("/")[2]
    return "/".join(parts[-2:] if is_checkpoint else parts[-1:])


def _is_calibrated(record: dict[str, float]) -> bool:
    return "calibration/temperature" in record
