"""Evaluate models from their checkpoints, one after the other, in this process."""

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
from bcl_ray.data.views.transfer import Batch
from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.machine.errors import UserError
from bcl_ray.ray_runtime.connection import connected, one_line, root_cause
from bcl_ray.runs import findings
from bcl_ray.storage.retry import TransientError
from bcl_ray.training.deliveries import Assignment
from bcl_ray.training.evaluator import Evaluator
from bcl_ray.training.stream import SupplierClient, evaluation_batches
from bcl_ray.training.supplier_placement import own_supplier
from bcl_ray.use.models import OpenModel

MAX_NAMES = 10  # of unknown classes in an error message


def evaluate_models(
    models: Sequence[OpenModel],
    names: Sequence[str],
    *,
    data: str | None = None,
    split: str | None = None,
    out: Path | None = None,
) -> list[tuple[OpenModel, dict[str, float]]]:
    """Evaluate each model on its own data or on other shards, and return their metrics.

    Args:
        models: The models.
        names: How the user named each, which tells models of one name apart.
        data: Folder or URI of shards to evaluate on instead of the models' own. Their classes must
            be the model's, or some of them, in any order.
        split: Split to evaluate on, instead of the data.eval_split of the model's run.
        out: Folder for predictions, figures, a table of classes and a report. With several models,
            each has a folder in it.

    Raises:
        ValueError: A model is named twice, or has other classes than the data; nothing was
            evaluated yet. Or an image does not decode.
        OSError: `out` cannot be written.
        TransientError: Ray failed, for example because a node was lost.
    """
    with connected():
        models = _with_unique_names(models, names)
        inputs = [_evaluation_data(model, data, split) for model in models]
        folders = [_folder(out, model, several=len(models) > 1) for model in models]
        try:
            return [
                (model, _evaluate(model, *model_inputs, folder))
                for model, model_inputs, folder in zip(models, inputs, folders, strict=True)
            ]
        except RayError as error:
            is_mistake = isinstance(root_cause(error), ValueError)  # an image that does not decode
            raise (UserError if is_mistake else TransientError)(one_line(error)) from error


def label_map(
    model_names: Sequence[str], data_names: Sequence[str], *, where: str
) -> NDArray[np.int64]:
    """The model's label of each class of a data set, matched by name.

    Args:
        model_names: Names of the model's classes, (K,).
        data_names: Names of the data set's classes, which may be fewer, and in another order.
        where: Beginning of error messages.

    Returns:
        One label per class of the data set, int64 in [0, K).

    Raises:
        ValueError: The model has not learned a class, or the lists differ and a name occurs twice.
    """
    if list(model_names) == list(data_names):
        return np.arange(len(model_names))
    label_of = {name: label for label, name in enumerate(model_names)}
    unknown = [name for name in data_names if name not in label_of]
    if unknown:
        shown = ", ".join(unknown[:MAX_NAMES]) + (", ..." if len(unknown) > MAX_NAMES else "")
        raise UserError(
            f"{where}: {len(unknown)} of the data's {len(data_names)} classes are not among the "
            f"model's {len(model_names)}: {shown}"
        )
    for names in (model_names, data_names):
        if len(set(names)) < len(names):
            duplicate = next(name for name in names if list(names).count(name) > 1)
            raise UserError(
                f"{where}: the class lists differ, and '{duplicate}' occurs twice in one of them, "
                "so that classes cannot be matched by name"
            )
    return np.array([label_of[name] for name in data_names])


def _with_unique_names(models: Sequence[OpenModel], names: Sequence[str]) -> list[OpenModel]:
    """Models with unique names: those that share one are called as on the command line.

    Raises:
        ValueError: Two of them are the same checkpoint.
    """
    counts = Counter(model.name for model in models)
    renamed = [
        replace(model, name=name) if counts[model.name] > 1 else model
        for model, name in zip(models, names, strict=True)
    ]
    name_of: dict[str, str] = {}  # by the checkpoint's URI
    for model in renamed:
        if model.uri in name_of:
            raise UserError(
                f"'{name_of[model.uri]}' and '{model.name}' are one checkpoint, {model.uri}: name "
                "each model once"
            )
        name_of[model.uri] = model.name
    return renamed


def _evaluation_data(
    model: OpenModel, data: str | None, split: str | None
) -> tuple[Experiment, Manifest, NDArray[np.int64]]:
    """The experiment that names the data, its manifest, and the model's label of each class."""
    overrides = {"data.path": data, "data.eval_split": split}
    changes = [f"{name}={value}" for name, value in overrides.items() if value is not None]
    changes.append("data.validation_split=null")  # the split for results is wanted
    experiment = with_overrides(model.experiment, changes)
    manifest = read_manifest(experiment.data.path)
    if experiment.data.eval_split not in manifest.splits:
        raise UserError(
            f"--split '{experiment.data.eval_split}' is not in {experiment.data.path}: there is "
            f"{', '.join(manifest.splits)}"
        )
    where = f"'{model.name}' cannot be evaluated on {experiment.data.path}"
    return experiment, manifest, label_map(model.class_names, manifest.class_names, where=where)


def _folder(out: Path | None, model: OpenModel, *, several: bool) -> Path | None:
    """The folder for a model's files."""
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
    evaluator = Evaluator(experiment, manifest, np.array(model.state.class_counts), device)
    assignment = Assignment(
        experiment, manifest, range(1), 1, frozenset(("evaluation",)), evaluate_first=True
    )
    client = SupplierClient(own_supplier(assignment), rank=0)
    batches = evaluation_batches(experiment, manifest, client, world_size=1)
    evaluation = evaluator.evaluate(
        model.network(device), _relabelled(batches, labels), labels=labels, trained=False
    )
    if folder is not None:
        # The import of matplotlib takes a second, which other evaluations need not wait for.
        from bcl_ray.report import results, summary  # noqa: PLC0415

        evaluation_findings = evaluator.findings(evaluation)
        findings.write(evaluation_findings, str(folder))
        summary.write(results.from_state(model.name, model.state, evaluation_findings), folder)
    return evaluation.metrics


def _relabelled(batches: Iterable[Batch], labels: NDArray[np.int64]) -> Iterator[Batch]:
    """The same batches with the model's labels instead of the data's."""
    for batch in batches:
        yield {**batch, "labels": labels[batch["labels"]]}
