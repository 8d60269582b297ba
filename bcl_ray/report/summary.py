"""What a run or an evaluation leaves to be looked at: figures, a table of classes, a report.

<folder>/figures/*.png
<folder>/classes.csv    one row per class
<folder>/classes.json   the same, as MLflow shows tables
<folder>/report.html    all of it in one file

Axes: N images, K classes, C classes of the sample.
"""

import csv
import io
import itertools
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bcl_ray.experiment.options import Experiment
from bcl_ray.report.figures import png
from bcl_ray.report.page import PageSection, PageTable, page
from bcl_ray.report.pictures import PICTURES, draw
from bcl_ray.report.results import Results, class_table

logger = logging.getLogger(__name__)

TABLE, REPORT = "classes.json", "report.html"
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


def report(results: Results, drawn: Mapping[str, bytes], table: PageTable | None) -> str:
    """The page."""
    sections = [PageSection("", _about(results), table=_results(results))]
    for title, kinds in itertools.groupby(PICTURES, lambda kind: kind.section):
        shown = [(drawn[kind.name], kind.text) for kind in kinds if kind.name in drawn]
        if shown:
            text = [TEXTS[title]] if title in TEXTS else []
            sections.append(PageSection(title, text, shown))
    if table is not None:
        text = ["Accuracy, confidence and how often are in per cent; click a heading to sort."]
        sections.append(PageSection("classes", text, table=table))
    sections.append(PageSection("options", table=_options(results.experiment)))
    return page(results.name, sections)


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


def _results(results: Results) -> PageTable | None:
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
    return PageTable(columns, [row], digits=2) if row else None


def _options(experiment: Experiment) -> PageTable:
    rows = [
        (f"{section}.{name}", str(value))
        for section, options in experiment.model_dump(mode="json").items()
        if isinstance(options, dict)
        for name, value in options.items()
    ]
    return PageTable(("option", "value"), rows)


def _csv(table: PageTable) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(name.replace(" ", "_") for name in table.columns)
    writer.writerows(
        [f"{value:.2f}" if isinstance(value, float) else value for value in row]
        for row in table.rows
    )
    return text.getvalue()
