"""What a run or an evaluation leaves to be looked at: figures, a table of classes, a report.

<folder>/figures/*.png
<folder>/classes.csv    one row per class
<folder>/classes.json   the same, as MLflow shows tables
<folder>/report.html    all of it in one file

Axes: N images, K classes, C classes of the sample.
"""

import csv
import io
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bcl_ray import figures, findings
from bcl_ray.checkpoint import State
from bcl_ray.config import Experiment
from bcl_ray.figures import Figure, Mistake, png
from bcl_ray.findings import Findings
from bcl_ray.longtail import shot_groups
from bcl_ray.parse import from_yaml
from bcl_ray.pixels import decode
from bcl_ray.report import Section, Table, page
from bcl_ray.runs import Run
from bcl_ray.shards import find_images, read_manifest

logger = logging.getLogger(__name__)

TABLE, REPORT = "classes.json", "report.html"
MISTAKES = 24  # images in the grid
OF_ONE_CLASS = 4  # of them, at most
SIDE = 224  # pixels of an image's longer side in the grid, at most
PICTURES = {  # of the report: the figures of each section, and what they say
    "accuracy": (
        ("classes", "Accuracy of each class beside its training images"),
        ("epochs", "Accuracy of many-, medium- and few-shot classes over epochs"),
    ),
    "who is taken for whom": (
        ("confusion", "What becomes of each group's images, and which classes take the tail's"),
        ("mistakes", "Images of the tail that are wrong with the most confidence"),
    ),
    "confidence": (("reliability", "Accuracy against confidence"),),
    "representation": (
        ("feature_cosines", "Cosines between class means of contrastive features"),
        ("embedding_cosines", "Cosines between class means of embeddings"),
        ("feature_geometry", "Geometry of contrastive features over epochs"),
        ("embedding_geometry", "Geometry of embeddings over epochs"),
    ),
}
TEXTS = {
    "accuracy": "Classes with more than 100 training images are many-shot, with fewer than 20 "
    "few-shot. Means are over classes, not over images.",
    "confidence": "A model that can be trusted is right as often as it is confident. For the "
    "calibrated curve, logits are divided by a temperature that was fitted to one half of these "
    "images and is judged by the other.",
    "representation": "Class means are measured from the unweighted mean of all of them, on the "
    "same sample of images at every epoch. Where classes are equally far apart, all cosines "
    "are those of a regular simplex, -1/(C - 1), and the other measures but uniformity are 0.",
}


@dataclass(frozen=True)
class Subject:
    """What is summed up.

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


def of_state(name: str, state: State, found: Findings | None) -> Subject:
    """What a checkpoint and its last evaluation say of a run or model."""
    experiment = from_yaml(state.experiment, origin=name)
    counts = np.array(state.class_counts)
    return Subject(name, experiment, state.class_names, counts, state.history, found)


def of_run(run: Run, state: State) -> Subject:
    """The same of a run, with the findings that lie in its folder, if it came to its end."""
    try:
        found = findings.read(run.uri)
    except FileNotFoundError:
        found = None
    return of_state(run.name, state, found)


def write(subject: Subject, folder: Path) -> list[Path]:
    """Draw everything into a folder; returns the files.

    Raises:
        OSError: a file cannot be written.
    """
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    files: dict[str, bytes] = {}
    drawn = {name: png(figure) for name, figure in draw(subject).items()}
    files |= {f"figures/{name}.png": content for name, content in drawn.items()}
    table = None
    if subject.found is not None:
        table = class_table(subject, subject.found)
        files["classes.csv"] = _csv(table).encode()
        shown = {"columns": list(table.columns), "data": [list(row) for row in table.rows]}
        files[TABLE] = json.dumps(shown).encode()
    files[REPORT] = report(subject, drawn, table).encode()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in files]


def draw(subject: Subject) -> dict[str, Figure]:
    """All figures for which there is something to show, by name."""
    drawn = {}
    if sum("accuracy/all" in record for record in subject.history) > 1:
        drawn["epochs"] = figures.accuracy_over_epochs(subject.history)
        for space, prefix in (("feature", "geometry/features"), ("embedding", "geometry")):
            if any(f"{prefix}/nc1" in record for record in subject.history):
                drawn[f"{space}_geometry"] = figures.geometry_over_epochs(
                    subject.history, _sampled(subject), features=space == "feature"
                )
    if subject.found is not None:
        drawn |= _of_findings(subject, subject.found)
    return drawn


def class_table(subject: Subject, found: Findings) -> Table:
    """One row per class, from the largest to the smallest.

    Columns: class, training images, group, test images, accuracy in per cent, mean confidence in
    per cent, what it is most often taken for and how often in per cent of its images, and images
    of other classes that are taken for it. None where a class has no test image.
    """
    classes = len(subject.class_names)
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
    for k in np.argsort(-subject.class_counts, kind="stable").tolist():
        often, other = worst.get(k, (0, k))
        n = total[k]
        share = [100 * float(x / n) if n else None for x in (right[k], confidence[k], often)]
        mistaken = subject.class_names[other] if often else ""
        about = [subject.class_names[k], int(subject.class_counts[k]), subject.group_of[k], int(n)]
        rows.append([*about, *share[:2], mistaken, share[2], int(taken[k])])
    columns = ("class", "training images", "group", "test images", "accuracy", "confidence")
    return Table((*columns, "taken for", "how often", "others taken for it"), rows)


def report(subject: Subject, drawn: Mapping[str, bytes], table: Table | None) -> str:
    """The page."""
    sections = [Section("", _about(subject), table=_results(subject))]
    for title, pictures in PICTURES.items():
        shown = [(drawn[name], text) for name, text in pictures if name in drawn]
        if shown:
            text = [TEXTS[title]] if title in TEXTS else []
            sections.append(Section(title, text, shown))
    if table is not None:
        text = ["Accuracy, confidence and how often are in per cent; click a heading to sort."]
        sections.append(Section("classes", text, table=table))
    sections.append(Section("options", table=_options(subject.experiment)))
    return page(subject.name, sections)


def mistakes(subject: Subject, found: Findings) -> list[Mistake]:
    """The most confident mistakes on the smallest classes, at most four of one class.

    Raises:
        OSError, ValueError: the images cannot be read, or are others than were evaluated.
    """
    tail = list(subject.groups.values())[-1]
    wrong = np.flatnonzero(np.isin(found.labels, tail) & (found.labels != found.predicted))
    chosen: list[int] = []
    of_class = np.zeros(len(subject.class_names), dtype=int)
    for row in wrong[np.argsort(-found.confidence[wrong], kind="stable")]:
        if of_class[found.labels[row]] < OF_ONE_CLASS and len(chosen) < MISTAKES:
            of_class[found.labels[row]] += 1
            chosen.append(int(row))
    data = found.about["data"]
    manifest = read_manifest(data)
    if manifest.fingerprint != found.about["fingerprint"]:
        raise ValueError(f"{data} holds other data than was evaluated")
    split = manifest.splits[found.about["split"]]
    images = find_images(data, split, found.ids[chosen].tolist())
    return [_mistake(subject, found, row, images[int(found.ids[row])]) for row in chosen]


def _mistake(subject: Subject, found: Findings, row: int, image: bytes) -> Mistake:
    label, predicted = int(found.labels[row]), int(found.predicted[row])
    return Mistake(
        image=_small(decode(image)),
        true_name=subject.class_names[label],
        true_group=subject.group_of[label],
        predicted_name=subject.class_names[predicted],
        predicted_group=subject.group_of[predicted],
        confidence=float(found.confidence[row]),
    )


def _small(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    scale = SIDE / max(pixels.shape[:2])
    if scale >= 1:
        return pixels
    small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.asarray(small, dtype=np.uint8)


def _of_findings(subject: Subject, found: Findings) -> dict[str, Figure]:
    counts, names = subject.class_counts, subject.class_names
    total = np.bincount(found.labels, minlength=len(names))
    hit = found.labels[found.labels == found.predicted]
    with np.errstate(invalid="ignore"):
        accuracy = 100 * np.bincount(hit, minlength=len(names)) / total
    about = found.about
    drawn = {
        "classes": figures.accuracy_by_class(accuracy, counts, names),
        "confusion": figures.confusion(found.labels, found.predicted, counts, names),
        "reliability": figures.reliability(
            about["bins"], about["calibrated_bins"], about["metrics"]["calibration/temperature"]
        ),
    }
    try:
        if wrong := mistakes(subject, found):
            drawn["mistakes"] = figures.mistake_grid(wrong)
    except (OSError, ValueError) as error:  # the images may have been moved since
        logger.warning("the grid of mistakes is left out: %s", error)
    for space, means in (("feature", found.features), ("embedding", found.embeddings)):
        if means.shape[1] and len(means) > 1:
            drawn[f"{space}_cosines"] = figures.class_cosines(
                means,
                counts[found.classes],
                [names[k] for k in found.classes],
                of=f"{space}s of {about['split']} images",
            )
    return drawn


def _sampled(subject: Subject) -> int:
    """C, of the sample."""
    found = subject.found
    return len(found.classes) if found is not None else len(subject.class_names)


def _about(subject: Subject) -> list[str]:
    experiment, groups = subject.experiment, subject.groups
    sizes = ", ".join(f"{len(classes):,} {name}" for name, classes in groups.items())
    images = int(subject.class_counts.sum())
    lines = [
        f"{len(subject.class_names):,} classes ({sizes}), {images:,} training images, "
        f"{subject.class_counts.max():,} in the largest class and {subject.class_counts.min():,} "
        f"in the smallest. Loss {experiment.loss.kind}, backbone {experiment.model.backbone}, "
        f"{len(subject.history)} of {experiment.train.epochs} epochs."
    ]
    if subject.found is None:
        lines.append("No evaluation of single images was kept: the run did not reach its end.")
    else:
        about = subject.found.about
        lines.append(
            f"Measured on {len(subject.found.ids):,} images of {about['data']}, split "
            f"{about['split']}."
        )
    return lines


def _results(subject: Subject) -> Table | None:
    """Accuracy and calibration, in per cent."""
    if subject.found is not None:
        metrics = subject.found.about["metrics"]
    else:
        metrics = next((r for r in reversed(subject.history) if "accuracy/all" in r), {})
    names = [name for name in ("all", *subject.groups) if f"accuracy/{name}" in metrics]
    columns = [f"accuracy {name} (%)" for name in names]
    row: list[Any] = [metrics[f"accuracy/{name}"] for name in names]
    for name, title in (
        ("calibration/ece", "calibration error (%)"),
        ("calibration/ece_calibrated", "calibrated (%)"),
        ("calibration/temperature", "temperature"),
    ):
        if name in metrics:
            columns.append(title)
            row.append(metrics[name])
    return Table(columns, [row], digits=2) if row else None


def _options(experiment: Experiment) -> Table:
    rows = [
        (f"{section}.{name}", str(value))
        for section, options in experiment.model_dump(mode="json").items()
        if isinstance(options, dict)
        for name, value in options.items()
    ]
    return Table(("option", "value"), rows)


def _csv(table: Table) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(name.replace(" ", "_") for name in table.columns)
    writer.writerows(
        [f"{value:.2f}" if isinstance(value, float) else value for value in row]
        for row in table.rows
    )
    return text.getvalue()
