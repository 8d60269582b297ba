"""Evaluate runs again from their checkpoints, side by side, in one process."""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import ray.train
import torch
from ray.exceptions import RayError

from bcl_ray import checkpoint, runs, storage
from bcl_ray.cluster import connected, one_line
from bcl_ray.config import Experiment
from bcl_ray.data import evaluation_batches
from bcl_ray.loop import evaluate
from bcl_ray.model import TwoBranch
from bcl_ray.parse import from_yaml, with_overrides
from bcl_ray.runs import Run
from bcl_ray.shards import Manifest, read_manifest
from bcl_ray.worker import BEST

Evaluated = tuple[Run, Experiment, dict[str, float]]


def evaluate_runs(
    names: Sequence[str], root: str, *, best: bool = False, data: str | None = None
) -> list[Evaluated]:
    """Metrics of each run's last checkpoint, on its own data or on other shards.

    Args:
        names: runs, by name below `root` or by folder or URI.
        root: folder or URI that holds runs.
        best: take the best checkpoint that was kept instead of the last.
        data: folder or URI of shards with the same classes, instead of the runs' own.

    Raises:
        ValueError: no such run, a run without a checkpoint, or other classes; before the first
            evaluation. Or an image that does not decode.
    """
    with connected():
        found = [(run, *_checked(run, state, data)) for run, state in _states(names, root, best)]
        try:
            return [
                (run, experiment, _evaluate(state, experiment, manifest))
                for run, state, experiment, manifest in found
            ]
        except RayError as error:
            raise ValueError(one_line(error)) from error


def load_state(run: Run, *, best: bool = False) -> checkpoint.State:
    """The last checkpoint of a run, or the best that was kept.

    Raises:
        ValueError: the run has none yet.
    """
    return checkpoint.load(best_checkpoint(run) if best else last_checkpoint(run))


def best_checkpoint(run: Run) -> str:
    """Folder of the checkpoint with the highest accuracy.

    Raises:
        ValueError: nothing has been evaluated yet.
    """
    found = [name for name in storage.list_folders(run.uri) if name.startswith(BEST)]
    if not found:
        raise ValueError(f"run '{run.name}' in {run.uri} has evaluated no checkpoint yet")
    return storage.join(run.uri, found[-1])  # while a better one replaces it, there may be two


def last_checkpoint(run: Run) -> str:
    """Folder of the last checkpoint that Ray Train has noted.

    Raises:
        ValueError: there is none yet.
    """
    filesystem, path = storage.resolve(run.uri)
    try:
        result: Any = ray.train.Result.from_path(path, filesystem)
    except RuntimeError:
        result = None
    if result is None or result.checkpoint is None:
        raise ValueError(f"run '{run.name}' in {run.uri} has no checkpoint yet")
    return storage.join(run.uri, PurePosixPath(result.checkpoint.path).name)


def _states(names: Sequence[str], root: str, best: bool) -> list[tuple[Run, checkpoint.State]]:
    opened = [runs.open_run(runs.run_uri(name, root))[0] for name in names]
    return [(run, load_state(run, best=best)) for run in opened]


def _checked(
    run: Run, state: checkpoint.State, data: str | None
) -> tuple[checkpoint.State, Experiment, Manifest]:
    experiment = from_yaml(state.experiment, origin=run.uri)
    if data is not None:
        experiment = with_overrides(experiment, [f"data.path={data}"])
    manifest = read_manifest(experiment.data.path)
    differing = set(manifest.class_names).symmetric_difference(state.class_names)
    if list(manifest.class_names) != state.class_names:
        shown = ", ".join(sorted(differing)[:10]) or "the same names in another order"
        raise ValueError(
            f"run '{run.name}' learned other classes than {experiment.data.path} has: {shown}"
        )
    return state, experiment, manifest


def _evaluate(
    state: checkpoint.State, experiment: Experiment, manifest: Manifest
) -> dict[str, float]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = TwoBranch(experiment.model, len(state.class_names))
    model.load_state_dict(checkpoint.evaluated_weights(state))
    metrics, _ = evaluate(
        model.to(device, memory_format=torch.channels_last),  # type: ignore[call-overload]
        evaluation_batches(experiment, manifest, rank=0, world_size=1),
        experiment=experiment,
        class_counts=np.array(state.class_counts),
        rows=manifest.splits[experiment.data.eval_split].rows,
        device=device,
    )
    return metrics
