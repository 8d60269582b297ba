"""Evaluation of a network on a whole split, over all workers.

Batches are as in `bcl_ray.method.loop`, with one view per image.

Axes: N images, K classes, E embedding width, D feature width.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from bcl_ray.data.views.device import normalise
from bcl_ray.data.views.transfer import Batch, DeviceBatch, Sender
from bcl_ray.experiment.metric_names import GEOMETRY
from bcl_ray.experiment.options import Experiment
from bcl_ray.method import metrics
from bcl_ray.method.collectives import gather_rows
from bcl_ray.method.geometry import geometry
from bcl_ray.method.model import CosineClassifier, TwoBranch
from bcl_ray.method.precision import at_least_float32, set_up_precision
from bcl_ray.method.sample import Sample, gather_sample, is_sampled


class Predictions(NamedTuple):
    """The predictions for a split, in the order of ids, on the CPU."""

    ids: Tensor
    """Stable numbers of the images, (N,), int64."""
    labels: Tensor
    """True class of each image, (N,), int64 in [0, K)."""
    predicted: Tensor
    """Class with the largest logit, (N,)."""
    second: Tensor
    """Class with the second-largest logit, (N,)."""
    confidence: Tensor
    """Probability of the predicted class before calibration, (N,), float32 in [0, 1]."""


class Evaluation(NamedTuple):
    """The results of an evaluation by all workers together; each of them gets the same."""

    metrics: dict[str, float]
    """By name: those of `metrics.evaluation_metrics`, and images/evaluated."""
    class_accuracy: NDArray[np.float64]
    """Accuracy of each class in per cent, (K,); NaN for a class without images."""
    counts: metrics.EvaluationCounts
    predictions: Predictions
    sample: Sample
    """The images selected by `shares`."""


@torch.no_grad()
def evaluate(
    model: TwoBranch,
    batches: Iterable[Batch | DeviceBatch],
    *,
    experiment: Experiment,
    class_counts: NDArray[np.int64],
    rows: int,
    device: torch.device,
    shares: NDArray[np.float64] | None = None,
) -> Evaluation:
    """Accuracy, calibration and predictions over all workers; every image counts exactly once.

    Args:
        model: The network to evaluate.
        batches: This worker's part of the split; a `Sender` may have copied it to the device.
        experiment: Provides the options of views, loss and precision.
        class_counts: Training images of each class, (K,), which determine the shot groups.
        rows: Number of images in the split, from the manifest.
        device: Where the model is.
        shares: Share of each class's images to keep in a sample, (K,), in [0, 1]; None for an
            empty sample.

    Raises:
        RuntimeError: The number of images is not `rows`, or an image occurs twice.
    """
    model.eval()
    counts = metrics.empty_counts(len(class_counts), device)
    no_ids, no_labels, no_embeddings = _no_images(model, device)
    predictions = [_predict(no_ids, no_labels, model.classifier(no_embeddings))]
    sample = [_sample_part(model, no_ids, no_labels, no_embeddings, experiment)]
    sender = Sender(device, experiment.views)
    for device_batch, embeddings, logits in _outputs(model, batches, experiment, sender):
        labels, ids = device_batch.tensors["labels"], device_batch.tensors["ids"]
        host = device_batch.host
        counts += metrics.count_batch(logits, labels, host["ids"])
        predictions.append(_predict(ids, labels, logits))
        if shares is not None:
            chosen = np.flatnonzero(is_sampled(host["ids"], host["labels"], shares))
            positions = sender.send_arrays({"rows": chosen})["rows"]
            columns = (ids[positions], labels[positions], embeddings[positions])
            sample.append(_sample_part(model, *columns, experiment))
    counts, all_predictions = counts.over_workers(), _gather_predictions(predictions)
    _check_number_of_images(counts, all_predictions, rows)
    return Evaluation(
        {**metrics.evaluation_metrics(counts, class_counts), "images/evaluated": float(rows)},
        metrics.class_accuracy(counts.correct, counts.total).cpu().numpy(),
        counts,
        all_predictions,
        gather_sample(sample),
    )


@torch.no_grad()
def collect_sample(
    model: TwoBranch,
    batches: Iterable[Batch | DeviceBatch],
    *,
    experiment: Experiment,
    device: torch.device,
) -> Sample:
    """A sample of all images in all workers' batches.

    Args:
        model: The network that represents the images.
        batches: This worker's batches; a `Sender` may have copied them to the device.
        experiment: Provides the options of views, loss and precision.
        device: Where the model is.
    """
    model.eval()
    parts = [_sample_part(model, *_no_images(model, device), experiment)]
    sender = Sender(device, experiment.views)
    for device_batch, embeddings, _ in _outputs(model, batches, experiment, sender):
        labels, ids = device_batch.tensors["labels"], device_batch.tensors["ids"]
        parts.append(_sample_part(model, ids, labels, embeddings, experiment))
    return gather_sample(parts)


@torch.no_grad()
def geometry_metrics(
    model: TwoBranch, sample: Sample, class_counts: NDArray[np.int64], where: str = ""
) -> dict[str, float]:
    """`geometry` of a sample's embeddings, and of its features if it has any.

    Embeddings are compared with the classifier's weights, features with the prototypes.

    Args:
        model: The network that represented the sample.
        sample: The sample, on the CPU.
        class_counts: Training images of each class, (K,).
        where: Name of the split in the metrics' names; empty for the evaluation split.

    Returns:
        Metrics named geometry/... and geometry/features/...; with `where`, geometry/<where>/... and
        geometry/<where>_features/....
    """
    weight = at_least_float32(model.classifier.weight).cpu()
    if isinstance(model.classifier, CosineClassifier):  # it ignores the length of its weights
        weight = functional.normalize(weight)
    values = geometry(sample.embeddings, sample.labels, class_counts, {"classifier": weight})
    named = _with_prefix(where, values)
    if sample.features.shape[1]:
        prototypes = {"prototype": model.prototypes().cpu()}
        values = geometry(sample.features, sample.labels, class_counts, prototypes)
        named |= _with_prefix(f"{where}_features" if where else "features", values)
    return named


def _outputs(
    model: TwoBranch,
    batches: Iterable[Batch | DeviceBatch],
    experiment: Experiment,
    sender: Sender,
) -> Iterator[tuple[DeviceBatch, Tensor, Tensor]]:
    """Each batch with its embeddings, (N, E), and logits, (N, K)."""
    precision = set_up_precision(experiment.train.precision, sender.device)
    for batch in batches:
        device_batch = batch if isinstance(batch, DeviceBatch) else sender.send_evaluation([batch])
        images = normalise(device_batch.arrived()["views"], experiment.views)[0]
        # Without compilation: batches differ in size, and each size would be compiled.
        with precision, torch.compiler.set_stance("force_eager"):
            embeddings = model.embed(images)
            logits = model.classifier(embeddings)
        yield device_batch, embeddings, logits


def _predict(ids: Tensor, labels: Tensor, logits: Tensor) -> Predictions:
    probabilities, classes = logits.float().softmax(dim=1).topk(2)
    return Predictions(ids, labels, classes[:, 0], classes[:, 1], probabilities[:, 0])


def _no_images(model: TwoBranch, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Empty ids, labels and embeddings, so that a worker without batches has these columns too."""
    no_ids = torch.empty(0, dtype=torch.int64, device=device)
    weight = at_least_float32(model.classifier.weight)
    return no_ids, no_ids, weight.new_empty(0, weight.shape[1])


def _gather_predictions(parts: list[Predictions]) -> Predictions:
    columns = [gather_rows(torch.cat(column)).cpu() for column in zip(*parts, strict=True)]
    order = columns[0].argsort()
    return Predictions(*(column[order] for column in columns))


def _check_number_of_images(
    counts: metrics.EvaluationCounts, predictions: Predictions, rows: int
) -> None:
    counted, different = int(counts.total.sum()), len(np.unique(predictions.ids.numpy()))
    if not counted == different == rows:
        raise RuntimeError(
            f"evaluation counted {counted} images, {different} of them different, but the split "
            f"has {rows}: every image must count exactly once. This is an error in the stream of "
            "batches, not in the data"
        )


def _sample_part(
    model: TwoBranch, ids: Tensor, labels: Tensor, embeddings: Tensor, experiment: Experiment
) -> Sample:
    """A part of a sample; it has features only if the loss trains them."""
    embeddings = at_least_float32(embeddings)
    if experiment.loss.is_contrastive:
        return Sample(ids, labels, embeddings, model.project(embeddings))
    return Sample(ids, labels, embeddings, embeddings[:, :0])


def _with_prefix(where: str, values: dict[str, float]) -> dict[str, float]:
    prefix = f"{GEOMETRY}{where}/" if where else GEOMETRY
    return {prefix + name: value for name, value in values.items()}
