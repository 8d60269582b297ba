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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bcl_ray.experiment.options import Experiment
from bcl_ray.report import figures
from bcl_ray.report.figures import Figure, png
from bcl_ray.report.page import Section, Table, page
from bcl_ray.report.results import Results, class_table, mistakes
from bcl_ray.runs.findings import Findings

logger = logging.getLogger(__name__)

TABLE, REPORT = "classes.json", "report.html"
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
    "same sample of images at every epoch. Where all images lie on their class's mean and all "
    "classes are equally far apart, cosines are those of a regular simplex, -1/(C - 1), and the "
    "other measures but uniformity are 0.",
}


def write(results: Results, folder: Path) -> list[Path]:
    """Draw everything into a folder; returns the files.

    Raises:
        OSError: a file cannot be written.
    """
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    files: dict[str, bytes] = {}
    drawn = {name: png(figure) for name, figure in draw(results).items()}
    files |= {f"figures/{name}.png": content for name, content in drawn.items()}
    table = None
    if results.found is not None:
        table = class_table(results, results.found)
        files["classes.csv"] = _csv(table).encode()
        shown = {"columns": list(table.columns), "data": [list(row) for row in table.rows]}
        files[TABLE] = json.dumps(shown).encode()
    files[REPORT] = report(results, drawn, table).encode()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in files]


def draw(results: Results) -> dict[str, Figure]:
    """All figures for which there is something to show, by name."""
    drawn = {}
    if sum("accuracy/all" in record for record in results.history) > 1:
        drawn["epochs"] = figures.accuracy_over_epochs(results.history)
        for space, prefix in (("feature", "geometry/features"), ("embedding", "geometry")):
            if any(f"{prefix}/nc1" in record for record in results.history):
                drawn[f"{space}_geometry"] = figures.geometry_over_epochs(
                    results.history, _sampled(results), features=space == "feature"
                )
    if results.found is not None:
        drawn |= _of_findings(results, results.found)
    return drawn


def report(results: Results, drawn: Mapping[str, bytes], table: Table | None) -> str:
    """The page."""
    sections = [Section("", _about(results), table=_results(results))]
    for title, pictures in PICTURES.items():
        shown = [(drawn[name], text) for name, text in pictures if name in drawn]
        if shown:
            text = [TEXTS[title]] if title in TEXTS else []
            sections.append(Section(title, text, shown))
    if table is not None:
        text = ["Accuracy, confidence and how often are in per cent; click a heading to sort."]
        sections.append(Section("classes", text, table=table))
    sections.append(Section("options", table=_options(results.experiment)))
    return page(results.name, sections)


def _of_findings(results: Results, found: Findings) -> dict[str, Figure]:
    counts, names = results.class_counts, results.class_names
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
        if wrong := mistakes(results, found):
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


def _sampled(results: Results) -> int:
    """C, of the sample."""
    found = results.found
    return len(found.classes) if found is not None else len(results.class_names)


def _about(results: Results) -> list[str]:
    experiment, groups = results.experiment, results.groups
    sizes = ", ".join(f"{len(classes):,} {name}" for name, classes in groups.items())
    images = int(results.class_counts.sum())
    lines = [
        f"{len(results.class_names):,} classes ({sizes}), {images:,} training images, "
        f"{results.class_counts.max():,} in the largest class and {results.class_counts.min():,} "
        f"in the smallest. Loss {experiment.loss.kind}, backbone {experiment.model.backbone}, "
        f"{len(results.history)} of {experiment.train.epochs} epochs."
    ]
    if results.found is None:
        lines.append("No evaluation of single images was kept: the run did not reach its end.")
    else:
        about = results.found.about
        lines.append(
            f"Measured on {len(results.found.ids):,} images of {about['data']}, split "
            f"{about['split']}."
        )
    return lines


def _results(results: Results) -> Table | None:
    """Accuracy and calibration, in per cent."""
    if results.found is not None:
        metrics = results.found.about["metrics"]
    else:
        metrics = next((r for r in reversed(results.history) if "accuracy/all" in r), {})
    names = [name for name in ("all", *results.groups) if f"accuracy/{name}" in metrics]
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
