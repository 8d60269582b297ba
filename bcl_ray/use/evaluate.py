"""Evaluate models again from their checkpoints, side by side, in one process."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from ray.exceptions import RayError

from bcl_ray.data.shards import Manifest, read_manifest
from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.machine.errors import UserError
from bcl_ray.method.evaluation import Batch
from bcl_ray.ray_runtime.connection import connected, one_line, root_cause
from bcl_ray.runs import findings
from bcl_ray.storage.retry import TransientError
from bcl_ray.training.probe import Probe
from bcl_ray.training.stream import evaluation_batches
from bcl_ray.use.models import OpenModel, open_model

Evaluated = tuple[OpenModel, dict[str, float]]


def evaluate_models(
    names: Sequence[str],
    root: str,
    *,
    best: bool = False,
    data: str | None = None,
    split: str | None = None,
    out: Path | None = None,
) -> list[Evaluated]:
    """Metrics of each model on its own data or on other shards.

    Args:
        names: as `open_model` takes them.
        root: folder or URI that holds runs.
        best: of a run, take the best checkpoint that was kept instead of the last.
        data: folder or URI of shards instead of the models' own. Their classes must be the
            model's, or some of them, in any order.
        split: of the data, instead of the one that the model's run evaluated on.
        out: folder for predictions, figures, a table of classes and a report; with several models
            for a folder of each.

    Raises:
        ValueError: no such model, one named twice, a run without a checkpoint, or other classes;
            before the first evaluation. Or an image that does not decode.
        OSError: `out` cannot be written.
        TransientError: Ray did not carry it out, as where a node was lost.
    """
    with connected():
        opened = _told_apart([open_model(name, root, last=not best) for name in names], names)
        checked = [_checked(model, data, split) for model in opened]
        folders = [_folder(out, model, len(opened) > 1) for model in opened]
        try:
            return [
                (model, _evaluate(model, *on, folder))
                for model, on, folder in zip(opened, checked, folders, strict=True)
            ]
        except RayError as error:
            is_mistake = isinstance(root_cause(error), ValueError)  # an image that does not decode
            raise (UserError if is_mistake else TransientError)(one_line(error)) from error


def label_map(
    model_names: Sequence[str], data_names: Sequence[str], *, where: str
) -> NDArray[np.int64]:
    """The model's label of each class of a data set, found by name.

    Args:
        model_names: the model's classes, (K,).
        data_names: the data set's, which may be fewer, and in another order.
        where: what the two are, for the error.

    Returns:
        (data's classes,), int64 in [0, K).

    Raises:
        ValueError: a class that the model has not learned, or names that occur twice, which tell
            nothing.
    """
    if list(model_names) == list(data_names):
        return np.arange(len(model_names))
    label_of = {name: label for label, name in enumerate(model_names)}
    unknown = [name for name in data_names if name not in label_of]
    if unknown:
        shown = ", ".join(unknown[:10]) + (", ..." if len(unknown) > 10 else "")
        raise UserError(
            f"{where}: {len(unknown)} of the data's {len(data_names)} classes are not among the "
            f"model's {len(model_names)}: {shown}"
        )
    for names in (model_names, data_names):
        if len(set(names)) < len(names):
            twice = next(name for name in names if list(names).count(name) > 1)
            raise UserError(
                f"{where}: the class lists differ, and '{twice}' occurs twice in one of them, so "
                "that classes cannot be told apart by name"
            )
    return np.array([label_of[name] for name in data_names])


def _told_apart(models: Sequence[OpenModel], names: Sequence[str]) -> list[OpenModel]:
    """Models of one name, runs of two folders say, are called as the command names them."""
    times = Counter(model.name for model in models)
    called = [
        replace(model, name=name) if times[model.name] > 1 else model
        for model, name in zip(models, names, strict=True)
    ]
    for number, model in enumerate(called):
        for other in called[:number]:
            if other.uri == model.uri:
                raise UserError(
                    f"'{other.name}' and '{model.name}' are one checkpoint, {model.uri}: name "
                    "each model once"
                )
    return called


def _checked(
    model: OpenModel, data: str | None, split: str | None
) -> tuple[Experiment, Manifest, NDArray[np.int64]]:
    given = {"data.path": data, "data.eval_split": split}
    changes = [f"{name}={value}" for name, value in given.items() if value is not None]
    experiment = with_overrides(model.experiment, changes)
    manifest = read_manifest(experiment.data.path)
    if experiment.data.eval_split not in manifest.splits:
        raise UserError(
            f"--split '{experiment.data.eval_split}' is not in {experiment.data.path}: there is "
            f"{', '.join(manifest.splits)}"
        )
    where = f"'{model.name}' cannot be evaluated on {experiment.data.path}"
    return experiment, manifest, label_map(model.class_names, manifest.class_names, where=where)


def _folder(out: Path | None, model: OpenModel, several: bool) -> Path | None:
    """Where a model's files go."""
    if out is None or not several:
        return out
    return out / re.sub(r"[^A-Za-z0-9._-]+", "_", model.name)


def _evaluate(
    model: OpenModel,
    experiment: Experiment,
    manifest: Manifest,
    labels: NDArray[np.int64],
    folder: Path | None,
) -> dict[str, float]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    probe = Probe(experiment, manifest, np.array(model.state.class_counts), device)
    batches = evaluation_batches(experiment, manifest, rank=0, world_size=1)
    evaluation = probe.evaluate(
        model.network(device), _relabelled(batches, labels), labels=labels, trained=False
    )
    if folder is not None:
        # matplotlib takes a second to import, which other evaluations need not wait for.
        from bcl_ray.report import results, summary  # noqa: PLC0415

        found = probe.findings(evaluation)
        findings.write(found, str(folder))
        summary.write(results.of_state(model.name, model.state, found), folder)
    return evaluation.metrics


def _relabelled(batches: Iterable[Batch], labels: NDArray[np.int64]) -> Iterator[Batch]:
    """The same batches, with the model's labels instead of the data's."""
    for batch in batches:
        yield {**batch, "labels": labels[batch["labels"]]}
