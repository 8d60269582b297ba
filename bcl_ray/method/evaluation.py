"""What a network says of a whole split, over all workers, in plain PyTorch.

Batches as in `loop`, with one view per image. Axes: N images, K classes, E embedding width, D
feature width.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from bcl_ray.data.views.device import normalized
from bcl_ray.data.views.transfer import Sender, Sent
from bcl_ray.experiment.options import Experiment
from bcl_ray.method import metrics
from bcl_ray.method.collectives import gather_rows
from bcl_ray.method.geometry import Sample, geometry, is_sampled, whole_sample
from bcl_ray.method.model import CosineClassifier, TwoBranch
from bcl_ray.method.precision import autocast, wide

Batch = dict[str, np.ndarray]


class Predictions(NamedTuple):
    """What a network says of each image of a split, in the order of ids, on the CPU."""

    ids: Tensor
    """(N,), int64."""
    labels: Tensor
    """(N,), int64 in [0, K)."""
    predicted: Tensor
    """Class of the largest logit, (N,)."""
    second: Tensor
    """Class of the next one, (N,)."""
    confidence: Tensor
    """Probability of the predicted class, before calibration, (N,), float32."""


class Evaluation(NamedTuple):
    """What an evaluation found, over all workers and the same on each."""

    metrics: dict[str, float]
    """By name: those of `metrics.evaluation_metrics`, and images/evaluated."""
    class_accuracy: NDArray[np.float64]
    """Of each class in per cent, (K,); NaN without images."""
    counts: metrics.EvaluationCounts
    predictions: Predictions
    sample: Sample
    """The images that were asked for by `shares`."""


@torch.no_grad()
def evaluate(
    model: TwoBranch,
    batches: Iterable[Batch | Sent],
    *,
    experiment: Experiment,
    class_counts: NDArray[np.int64],
    rows: int,
    device: torch.device,
    shares: NDArray[np.float64] | None = None,
) -> Evaluation:
    """Accuracy, calibration and predictions over all workers, every image counted exactly once.

    Args:
        model: the network to evaluate.
        batches: this worker's part of the split, or what a `Sender` made of it.
        experiment: its views, loss and precision.
        class_counts: training images per class, (K,), which make the shot groups.
        rows: images that the manifest says there are.
        device: where the model is.
        shares: of each class's images to keep in a sample, (K,); None: of no image.

    Raises:
        RuntimeError: the number of images counted is not `rows`, or one was counted twice.
    """
    model.eval()
    counts = metrics.no_counts(len(class_counts), device)
    predictions = [_no_predictions(device)]
    sample = [_no_sample(model, experiment, device)]
    sender = Sender(device, experiment.views)
    for sent, embeddings, logits in _outputs(model, batches, experiment, sender):
        labels, ids = sent.tensors["labels"], sent.tensors["ids"]
        counts += metrics.count_batch(logits, labels, sent.host["ids"])
        probabilities, classes = logits.float().softmax(dim=1).topk(2)
        found = (ids, labels, classes[:, 0], classes[:, 1], probabilities[:, 0])
        predictions.append(Predictions(*found))
        if shares is not None:
            chosen = np.flatnonzero(is_sampled(sent.host["ids"], sent.host["labels"], shares))
            rows_of = sender.arrays({"rows": chosen})["rows"]
            sample.append(
                _sample(model, ids[rows_of], labels[rows_of], embeddings[rows_of], experiment)
            )
    counts, everyone = counts.over_workers(), _whole(predictions)
    counted, different = int(counts.total.sum()), len(np.unique(everyone.ids.numpy()))
    if not counted == different == rows:
        raise RuntimeError(
            f"evaluation counted {counted} images of {rows}, {different} of them different: every "
            "image must be counted once; this is a fault of the stream, not of the data"
        )
    measured = metrics.evaluation_metrics(counts, class_counts)
    return Evaluation(
        {**measured, "images/evaluated": float(counted)},
        metrics.class_accuracy(counts.correct, counts.total).cpu().numpy(),
        counts,
        everyone,
        whole_sample(sample),
    )


@torch.no_grad()
def represent(
    model: TwoBranch,
    batches: Iterable[Batch | Sent],
    *,
    experiment: Experiment,
    device: torch.device,
) -> Sample:
    """What the network makes of all images of all workers' batches; arguments as `evaluate`'s."""
    model.eval()
    parts = [_no_sample(model, experiment, device)]
    sender = Sender(device, experiment.views)
    for sent, embeddings, _ in _outputs(model, batches, experiment, sender):
        labels, ids = sent.tensors["labels"], sent.tensors["ids"]
        parts.append(_sample(model, ids, labels, embeddings, experiment))
    return whole_sample(parts)


@torch.no_grad()
def geometry_metrics(
    model: TwoBranch, sample: Sample, class_counts: NDArray[np.int64], where: str = ""
) -> dict[str, float]:
    """`geometry` of a sample's embeddings, and of its features where the loss contrasts them.

    Named geometry/... and geometry/features/..., or geometry/<where>/... and
    geometry/<where>_features/...; the classifier's rows belong to embeddings, the prototypes to
    features.
    """
    weight = wide(model.classifier.weight).cpu()
    if isinstance(model.classifier, CosineClassifier):  # their length is not used
        weight = functional.normalize(weight)
    found = _named(
        where,
        geometry(sample.embeddings, sample.labels, class_counts, {"classifier": weight}),
    )
    if sample.features.shape[1]:
        prototypes = {"prototype": model.prototypes().cpu()}
        name = f"{where}_features" if where else "features"
        found |= _named(name, geometry(sample.features, sample.labels, class_counts, prototypes))
    return found


def _outputs(
    model: TwoBranch,
    batches: Iterable[Batch | Sent],
    experiment: Experiment,
    sender: Sender,
) -> Iterator[tuple[Sent, Tensor, Tensor]]:
    """Each batch with its embeddings, (N, E), and logits, (N, K)."""
    precision = autocast(experiment.train.precision, sender.device)
    for batch in batches:
        sent = batch if isinstance(batch, Sent) else sender.evaluation([batch])
        images = normalized(sent.arrived()["views"], experiment.views)[0]
        # Eager: batches differ in size, and a compiled network would be compiled for each.
        with precision, torch.compiler.set_stance("force_eager"):
            embeddings = model.embed(images)
            logits = model.classifier(embeddings)
        yield sent, embeddings, logits


def _sample(
    model: TwoBranch, ids: Tensor, labels: Tensor, embeddings: Tensor, experiment: Experiment
) -> Sample:
    """A part of a sample; features only where the loss teaches them."""
    embeddings = wide(embeddings)
    if experiment.loss.is_contrastive:
        return Sample(ids, labels, embeddings, model.project(embeddings))
    return Sample(ids, labels, embeddings, embeddings[:, :0])


def _no_sample(model: TwoBranch, experiment: Experiment, device: torch.device) -> Sample:
    """A part without images, which says how wide those with images are."""
    weight = wide(model.classifier.weight)
    none = torch.empty(0, dtype=torch.int64, device=device)
    width = model.feature_dim if experiment.loss.is_contrastive else 0
    empty = weight.new_empty(0, weight.shape[1])
    return Sample(none, none, empty, weight.new_empty(0, width))


def _no_predictions(device: torch.device) -> Predictions:
    none = torch.empty(0, dtype=torch.int64, device=device)
    return Predictions(none, none, none, none, none.float())


def _whole(parts: list[Predictions]) -> Predictions:
    joined = [gather_rows(torch.cat(column)).cpu() for column in zip(*parts, strict=True)]
    order = joined[0].argsort()
    return Predictions(*(column[order] for column in joined))


def _named(where: str, found: dict[str, float]) -> dict[str, float]:
    prefix = f"geometry/{where}/" if where else "geometry/"
    return {prefix + name: value for name, value in found.items()}
