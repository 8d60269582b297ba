"""The figures of a report: which there are, in which section each stands, and what it shows."""

import functools
import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bcl_ray.experiment.choices import Choice, Code, Table, code
from bcl_ray.report import figures
from bcl_ray.report.figures import Figure
from bcl_ray.report.results import Results, mistakes

logger = logging.getLogger(__name__)

Space = Literal["feature", "embedding"]


@dataclass(frozen=True)
class Picture(Choice):
    """A figure; its text describes it to those who cannot see it."""

    section: str
    """Heading that it stands under; pictures of one section stand together."""
    draw: Code
    """Called with Results, it returns a Figure, or None where there is nothing to show."""


def draw(results: Results) -> dict[str, Figure]:
    """All figures for which there is something to show, by name."""
    drawn = {picture.name: code(picture.draw)(results) for picture in PICTURES}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def classes(results: Results) -> Figure | None:
    """Accuracy of each class."""
    if results.found is None:
        return None
    labels, predicted = results.found.labels, results.found.predicted
    total = np.bincount(labels, minlength=len(results.class_names))
    hit = np.bincount(labels[labels == predicted], minlength=len(results.class_names))
    with np.errstate(invalid="ignore"):
        accuracy = 100 * hit / total
    return figures.accuracy_by_class(accuracy, results.class_counts, results.class_names)


def epochs(results: Results) -> Figure | None:
    """Accuracy over epochs."""
    return figures.accuracy_over_epochs(results.history) if _is_curve(results) else None


def _is_curve(results: Results) -> bool:
    """Whether there are two evaluations at least to draw a line through."""
    return sum("accuracy/all" in record for record in results.history) > 1


def confusion(results: Results) -> Figure | None:
    """What images of each shot group are taken for."""
    if results.found is None:
        return None
    labels, predicted = results.found.labels, results.found.predicted
    return figures.confusion(labels, predicted, results.class_counts, results.class_names)


def mistaken(results: Results) -> Figure | None:
    """Mistakes on the tail."""
    if results.found is None:
        return None
    try:
        wrong = mistakes(results, results.found)
    except (OSError, ValueError) as error:  # the images may have been moved since
        logger.warning("the grid of mistakes is left out: %s", error)
        return None
    return figures.mistake_grid(wrong) if wrong else None


def reliability(results: Results) -> Figure | None:
    """Accuracy against confidence."""
    if results.found is None:
        return None
    about = results.found.about
    temperature = about["metrics"]["calibration/temperature"]
    return figures.reliability(about["bins"], about["calibrated_bins"], temperature)


def cosines(space: Space, results: Results) -> Figure | None:
    """Cosines between class means."""
    found = results.found
    if found is None:
        return None
    means = {"feature": found.features, "embedding": found.embeddings}[space]
    if not means.shape[1] or len(means) < 2:
        return None
    return figures.class_cosines(
        means,
        results.class_counts[found.classes],
        [results.class_names[k] for k in found.classes],
        of=f"{space}s of {found.about['split']} images",
    )


def geometry(space: Space, results: Results) -> Figure | None:
    """Geometry over epochs."""
    prefix = {"feature": "geometry/features", "embedding": "geometry"}[space]
    measured = any(f"{prefix}/nc1" in record for record in results.history)
    if not measured or not _is_curve(results):
        return None
    found = results.found
    sampled = len(results.class_names if found is None else found.classes)
    return figures.geometry_over_epochs(results.history, sampled, features=space == "feature")


ACCURACY, CONFUSION = "accuracy", "who is taken for whom"
CONFIDENCE, REPRESENTATION = "confidence", "representation"
PICTURES = Table(
    "figure",
    Picture("classes", "Accuracy of each class beside its training images", ACCURACY, classes),
    Picture(
        "epochs", "Accuracy of many-, medium- and few-shot classes over epochs", ACCURACY, epochs
    ),
    Picture(
        "confusion",
        "What becomes of each group's images, and which classes take the tail's",
        CONFUSION,
        confusion,
    ),
    Picture(
        "mistakes",
        "Images of the tail that are wrong with the most confidence",
        CONFUSION,
        mistaken,
    ),
    Picture("reliability", "Accuracy against confidence", CONFIDENCE, reliability),
    Picture(
        "feature_cosines",
        "Cosines between class means of contrastive features",
        REPRESENTATION,
        functools.partial(cosines, "feature"),
    ),
    Picture(
        "embedding_cosines",
        "Cosines between class means of embeddings",
        REPRESENTATION,
        functools.partial(cosines, "embedding"),
    ),
    Picture(
        "feature_geometry",
        "Geometry of contrastive features over epochs",
        REPRESENTATION,
        functools.partial(geometry, "feature"),
    ),
    Picture(
        "embedding_geometry",
        "Geometry of embeddings over epochs",
        REPRESENTATION,
        functools.partial(geometry, "embedding"),
    ),
)
