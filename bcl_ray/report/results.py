"""What a run or an evaluation found, ready to be shown: its classes, its mistakes.

Axes: N images, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from bcl_ray.data.decode import decode
from bcl_ray.data.longtail import shot_groups
from bcl_ray.data.shards import find_images, read_manifest
from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.overrides import from_yaml
from bcl_ray.machine.errors import UserError
from bcl_ray.report.figures import Mistake
from bcl_ray.report.page import PageTable
from bcl_ray.runs import findings
from bcl_ray.runs.checkpoint import State
from bcl_ray.runs.findings import Findings
from bcl_ray.runs.run_folder import Run

MISTAKES = 24  # images in the grid
OF_ONE_CLASS = 4  # of them, at most
SIDE = 224  # pixels of an image's longer side in the grid, at most


@dataclass(frozen=True)
class Results:
    """What a run or an evaluation found.

    Args:
        name: of the run or model.
        experiment: with which it was trained.
        class_names: (K,).
        class_counts: training images by class, (K,).
        history: a record of metrics per epoch.
        found: in the last evaluation; None where there was none, as in a run that was stopped.
    """

    name: str
    experiment: Experiment
    class_names: Sequence[str]
    class_counts: NDArray[np.int64]
    history: Sequence[Mapping[str, float]]
    found: Findings | None

    @cached_property
    def groups(self) -> dict[str, NDArray[np.int64]]:
        """Classes of each shot group that is there."""
        return shot_groups(self.class_counts)

    @cached_property
    def group_of(self) -> list[str]:
        """The shot group of each class, (K,)."""
        found = [""] * len(self.class_names)
        for name, classes in self.groups.items():
            for k in classes:
                found[k] = name
        return found


def of_state(name: str, state: State, found: Findings | None) -> Results:
    """What a checkpoint and its last evaluation say of a run or model."""
    experiment = from_yaml(state.experiment, origin=name)
    counts = np.array(state.class_counts)
    return Results(name, experiment, state.class_names, counts, state.history, found)


def of_run(run: Run, state: State) -> Results:
    """The same of a run, with the findings that lie in its folder, if it came to its end."""
    try:
        found = findings.read(run.uri)
    except FileNotFoundError:
        found = None
    return of_state(run.name, state, found)


def class_table(results: Results, found: Findings) -> PageTable:
    """One row per class, from the largest to the smallest.

    Columns: class, training images, group, test images, accuracy in per cent, mean confidence in
    per cent, what it is most often taken for and how often in per cent of its images, and images
    of other classes that are taken for it. None where a class has no test image.
    """
    classes = len(results.class_names)
    hit = found.labels == found.predicted
    total = np.bincount(found.labels, minlength=classes)
    right = np.bincount(found.labels[hit], minlength=classes)
    confidence = np.bincount(found.labels, found.confidence, minlength=classes)
    taken = np.bincount(found.predicted[~hit], minlength=classes)
    pairs = found.labels[~hit] * classes + found.predicted[~hit]
    worst: dict[int, tuple[int, int]] = {}  # by class: how often, and for which
    for pair, count in zip(*np.unique(pairs, return_counts=True), strict=True):
        k, other = divmod(int(pair), classes)
        worst[k] = max(worst.get(k, (0, 0)), (int(count), other))
    rows = []
    for k in np.argsort(-results.class_counts, kind="stable").tolist():
        often, other = worst.get(k, (0, k))
        n = total[k]
        share = [100 * float(x / n) if n else None for x in (right[k], confidence[k], often)]
        mistaken = results.class_names[other] if often else ""
        about = [results.class_names[k], int(results.class_counts[k]), results.group_of[k], int(n)]
        rows.append([*about, *share[:2], mistaken, share[2], int(taken[k])])
    columns = ("class", "training images", "group", "test images", "accuracy", "confidence")
    return PageTable((*columns, "taken for", "how often", "others taken for it"), rows)


def mistakes(results: Results, found: Findings) -> list[Mistake]:
    """The most confident mistakes on the smallest classes, at most four of one class.

    Raises:
        OSError, ValueError: the images cannot be read, or are others than were evaluated.
    """
    tail = list(results.groups.values())[-1]
    wrong = np.flatnonzero(np.isin(found.labels, tail) & (found.labels != found.predicted))
    chosen: list[int] = []
    of_class = np.zeros(len(results.class_names), dtype=int)
    for row in wrong[np.argsort(-found.confidence[wrong], kind="stable")]:
        if of_class[found.labels[row]] < OF_ONE_CLASS and len(chosen) < MISTAKES:
            of_class[found.labels[row]] += 1
            chosen.append(int(row))
    data = found.about["data"]
    manifest = read_manifest(data)
    if manifest.fingerprint != found.about["fingerprint"]:
        raise UserError(f"{data} holds other data than was evaluated")
    split = manifest.splits[found.about["split"]]
    images = find_images(data, split, found.ids[chosen].tolist())
    return [_mistake(results, found, row, images[int(found.ids[row])]) for row in chosen]


def _mistake(results: Results, found: Findings, row: int, image: bytes) -> Mistake:
    label, predicted = int(found.labels[row]), int(found.predicted[row])
    return Mistake(
        image=_small(decode(image)),
        true_name=results.class_names[label],
        true_group=results.group_of[label],
        predicted_name=results.class_names[predicted],
        predicted_group=results.group_of[predicted],
        confidence=float(found.confidence[row]),
    )


def _small(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    scale = SIDE / max(pixels.shape[:2])
    if scale >= 1:
        return pixels
    small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.asarray(small, dtype=np.uint8)
