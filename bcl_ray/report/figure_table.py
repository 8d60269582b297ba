"""The figures of a report, in the order in which it shows them."""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from bcl_ray.experiment.metric_names import ACCURACY, TEMPERATURE
from bcl_ray.report.figures.calibration import reliability
from bcl_ray.report.figures.classes import accuracy_by_class
from bcl_ray.report.figures.confusion import confusion
from bcl_ray.report.figures.curves import (
    SPACES,
    Space,
    accuracy_over_epochs,
    geometry_over_epochs,
)
from bcl_ray.report.figures.mistakes import mistake_grid
from bcl_ray.report.figures.representation import class_cosines
from bcl_ray.report.results import Results, find_mistakes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReportSection:
    """A part of a report that shows figures."""

    title: str
    text: str = ""


ACCURACIES = ReportSection(
    "Accuracy",
    "Many-shot classes have more than 100 training images, few-shot classes fewer than 20. Means "
    "are over classes, not over images.",
)
MISTAKES = ReportSection("Mistakes")
CALIBRATION = ReportSection(
    "Calibration",
    "A calibrated model is correct as often as its confidence says. After calibration, logits are "
    "divided by a temperature that was fitted to one half of these images and is judged on the "
    "other half.",
)
REPRESENTATION = ReportSection(
    "Representation",
    "Class means are measured relative to their unweighted mean, on the same sample of images at "
    "every epoch. If every image lies at its class mean and all classes are equally far apart, "
    "the cosine similarities are those of a regular simplex, -1/(C - 1) for C classes, uniformity "
    "is minimal, and the other measures are 0.",
)


@dataclass(frozen=True)
class ReportFigure:
    """A figure of a report."""

    name: str
    text: str
    """One line that describes it to people who cannot see it."""
    section: ReportSection
    draw: Callable[[Results], Figure | None]
    """Returns None if there is nothing to show."""


def draw_figures(results: Results) -> dict[str, Figure]:
    """Draw all figures for which there is something to show, by name."""
    drawn = {figure.name: figure.draw(results) for figure in FIGURES}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _classes(results: Results) -> Figure | None:
    findings = results.findings
    if findings is None:
        return None
    total = np.bincount(findings.labels, minlength=len(results.class_names))
    hits = findings.labels[findings.labels == findings.predicted]
    correct = np.bincount(hits, minlength=len(results.class_names))
    with np.errstate(invalid="ignore"):
        accuracy = 100 * correct / total
    return accuracy_by_class(accuracy, results.class_counts, results.class_names)


def _epochs(results: Results) -> Figure | None:
    return accuracy_over_epochs(results.history) if _has_curve(results) else None


def _has_curve(results: Results) -> bool:
    """Whether there are at least two evaluations, which a line can connect."""
    return sum(ACCURACY in record for record in results.history) > 1


def _confusion(results: Results) -> Figure | None:
    findings = results.findings
    if findings is None:
        return None
    return confusion(findings.labels, findings.predicted, results.class_counts, results.class_names)


def _mistakes(results: Results) -> Figure | None:
    if results.findings is None:
        return None
    try:
        mistakes = find_mistakes(results, results.findings)
    except (OSError, ValueError) as error:  # the images may have been moved since
        logger.warning("the report has no grid of mistakes: %s", error)
        return None
    return mistake_grid(mistakes) if mistakes else None


def _reliability(results: Results) -> Figure | None:
    if results.findings is None:
        return None
    about = results.findings.about
    return reliability(about["bins"], about["calibrated_bins"], about["metrics"][TEMPERATURE])


def _cosines(space: Space, results: Results) -> Figure | None:
    findings = results.findings
    if findings is None:
        return None
    means = {"feature": findings.features, "embedding": findings.embeddings}[space]
    if not means.shape[1] or len(means) < 2:
        return None
    return class_cosines(
        means,
        results.class_counts[findings.classes],
        [results.class_names[k] for k in findings.classes],
        vectors=f"{space}s of {findings.about['split']} images",
    )


def _geometry(space: Space, results: Results) -> Figure | None:
    metric = f"{SPACES[space].evaluation}/nc1"
    measured = any(metric in record for record in results.history)
    if not measured or not _has_curve(results):
        return None
    findings = results.findings
    classes = len(results.class_names if findings is None else findings.classes)
    return geometry_over_epochs(results.history, classes, space=space)


FIGURES = (
    ReportFigure(
        "classes", "Accuracy of each class by number of training images", ACCURACIES, _classes
    ),
    ReportFigure(
        "epochs", "Accuracy of many-, medium- and few-shot classes over epochs", ACCURACIES, _epochs
    ),
    ReportFigure(
        "confusion",
        "Predictions for the images of each shot group, and classes that absorb few-shot mistakes",
        MISTAKES,
        _confusion,
    ),
    ReportFigure("mistakes", "Most confident mistakes on few-shot classes", MISTAKES, _mistakes),
    ReportFigure(
        "reliability",
        "Accuracy by confidence, before and after calibration",
        CALIBRATION,
        _reliability,
    ),
    ReportFigure(
        "feature_cosines",
        "Cosine similarities of class means of contrastive features",
        REPRESENTATION,
        functools.partial(_cosines, "feature"),
    ),
    ReportFigure(
        "embedding_cosines",
        "Cosine similarities of class means of embeddings",
        REPRESENTATION,
        functools.partial(_cosines, "embedding"),
    ),
    ReportFigure(
        "feature_geometry",
        "Geometry of contrastive features over epochs",
        REPRESENTATION,
        functools.partial(_geometry, "feature"),
    ),
    ReportFigure(
        "embedding_geometry",
        "Geometry of embeddings over epochs",
        REPRESENTATION,
        functools.partial(_geometry, "embedding"),
    ),
)
