"""The results of a run or an evaluation: its table of classes and its mistakes.

Axes: N images, K classes, H x W pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from bcl_ray.data.decode import decode
from bcl_ray.data.longtail import group_names, shot_groups
from bcl_ray.data.shards import find_images, read_manifest
from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.overrides import from_stored
from bcl_ray.machine.errors import UserError
from bcl_ray.report.figures.mistakes import Mistake
from bcl_ray.report.page import PageTable
from bcl_ray.runs.checkpoint import State
from bcl_ray.runs.findings import Findings
from bcl_ray.runs.findings import read as read_findings
from bcl_ray.runs.run_folder import Run

MAX_MISTAKES = 24  # images in the grid
MAX_OF_CLASS = 4  # images of one class in the grid
MAX_SIDE = 224  # pixels of an image's longer side in the grid


@dataclass(frozen=True)
class Results:
    """The results of a run or an evaluation."""

    name: str
    """Name of the run or model."""
    experiment: Experiment
    """The options that it was trained with."""
    class_names: Sequence[str]
    """Name of each class, (K,)."""
    class_counts: NDArray[np.int64]
    """Training images of each class, (K,)."""
    history: Sequence[Mapping[str, float]]
    """One record of metrics per epoch."""
    findings: Findings | None
    """Those of the last evaluation; None if there is none, as for a run that was stopped."""

    @cached_property
    def groups(self) -> dict[str, NDArray[np.int64]]:
        """The classes of each shot group that has any."""
        return shot_groups(self.class_counts)

    @cached_property
    def group_of(self) -> list[str]:
        """The shot group of each class, (K,)."""
        return group_names(self.class_counts)


def from_state(name: str, state: State, findings: Findings | None) -> Results:
    """The results of a run or model, from its checkpoint and the findings of an evaluation."""
    experiment = from_stored(state.experiment, origin=name)
    counts = np.array(state.class_counts)
    return Results(name, experiment, state.class_names, counts, state.history, findings)


def from_run(run: Run, state: State) -> Results:
    """The results of a run, from its checkpoint and the findings in its folder, if any."""
    try:
        findings = read_findings(run.uri)
    except FileNotFoundError:
        findings = None
    return from_state(run.name, state, findings)


def class_table(results: Results, findings: Findings) -> PageTable:
    """A table with one row per class, from most to fewest training images.

    Columns: class, training images, group, test images, accuracy and mean confidence in per cent,
    the class that it is most often mistaken for and how often in per cent of its images, and the
    number of images of other classes that are mistaken for it. Values in per cent are None for a
    class without test images.
    """
    classes = len(results.class_names)
    labels, predicted = findings.labels, findings.predicted
    hit = labels == predicted
    total = np.bincount(labels, minlength=classes)
    correct = np.bincount(labels[hit], minlength=classes)
    confidence = np.bincount(labels, findings.confidence, minlength=classes)
    mistaken_for_it = np.bincount(predicted[~hit], minlength=classes)
    worst = _most_frequent_mistakes(labels[~hit], predicted[~hit], classes)
    rows = []
    for k in np.argsort(-results.class_counts, kind="stable").tolist():
        count, other = worst.get(k, (0, k))
        n = total[k]
        shares = [100 * float(x / n) if n else None for x in (correct[k], confidence[k], count)]
        size = int(results.class_counts[k])
        row = [results.class_names[k], size, results.group_of[k], int(n), *shares[:2]]
        other_name = results.class_names[other] if count else ""
        rows.append([*row, other_name, shares[2], int(mistaken_for_it[k])])
    columns = ("class", "training images", "group", "test images", "accuracy", "confidence")
    return PageTable((*columns, "taken for", "how often", "others taken for it"), rows)


def _most_frequent_mistakes(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int
) -> dict[int, tuple[int, int]]:
    """By class: how often its most frequent wrong prediction occurs, and which class that is."""
    worst: dict[int, tuple[int, int]] = {}
    pairs = np.unique(labels * classes + predicted, return_counts=True)
    for pair, count in zip(*pairs, strict=True):
        k, other = divmod(int(pair), classes)
        worst[k] = max(worst.get(k, (0, 0)), (int(count), other))
    return worst


def find_mistakes(results: Results, findings: Findings) -> list[Mistake]:
    """The most confident mistakes on classes of the last shot group, at most MAX_OF_CLASS of each.

    Raises:
        OSError: The images cannot be read.
        ValueError: The data has changed since the evaluation.
    """
    tail = list(results.groups.values())[-1]
    labels, confidence = findings.labels, findings.confidence
    wrong = np.flatnonzero(np.isin(labels, tail) & (labels != findings.predicted))
    rows: list[int] = []
    of_class = np.zeros(len(results.class_names), dtype=int)
    for row in wrong[np.argsort(-confidence[wrong], kind="stable")].tolist():
        if of_class[labels[row]] < MAX_OF_CLASS and len(rows) < MAX_MISTAKES:
            of_class[labels[row]] += 1
            rows.append(row)
    data = findings.about["data"]
    manifest = read_manifest(data)
    if manifest.fingerprint != findings.about["fingerprint"]:
        raise UserError(f"the data in {data} has changed since the evaluation")
    split = manifest.splits[findings.about["split"]]
    images = find_images(data, split, findings.ids[rows].tolist())
    return [_mistake(results, findings, row, images[int(findings.ids[row])]) for row in rows]


def _mistake(results: Results, findings: Findings, row: int, image: bytes) -> Mistake:
    label, predicted = int(findings.labels[row]), int(findings.predicted[row])
    return Mistake(
        image=_shrink(decode(image)),
        true_name=results.class_names[label],
        true_group=results.group_of[label],
        predicted_name=results.class_names[predicted],
        predicted_group=results.group_of[predicted],
        confidence=float(findings.confidence[row]),
    )


def _shrink(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image, (H, W, 3), whose longer side is at most MAX_SIDE."""
    scale = MAX_SIDE / max(pixels.shape[:2])
    if scale >= 1:
        return pixels
    small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.asarray(small, dtype=np.uint8)
