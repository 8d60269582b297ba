"""Writes the figures, the table of classes and the report of a run or an evaluation.

<folder>/figures/*.png
<folder>/classes.csv    one row per class
<folder>/classes.json   the same, in the format that MLflow shows as a table
<folder>/report.html    everything in one file
"""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path

from bcl_ray.experiment.metric_names import (
    ACCURACY,
    ECE,
    ECE_CALIBRATED,
    GROUPS,
    TEMPERATURE,
    TITLES,
    accuracy,
)
from bcl_ray.experiment.options import Experiment, by_full_name
from bcl_ray.machine.csv_text import csv_text
from bcl_ray.report.figure_table import FIGURES, draw_figures
from bcl_ray.report.figures.style import png
from bcl_ray.report.page import PageSection, PageTable, page
from bcl_ray.report.results import Results, class_table

TABLE, REPORT = "classes.json", "report.html"
REPORTED = (*map(accuracy, GROUPS), ECE, ECE_CALIBRATED, TEMPERATURE)


def write(results: Results, folder: Path) -> list[Path]:
    """Write everything into a local folder.

    Returns:
        The files that were written.

    Raises:
        OSError: A file cannot be written.
    """
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    images = {name: png(figure) for name, figure in draw_figures(results).items()}
    files = {f"figures/{name}.png": content for name, content in images.items()}
    table = None
    if results.findings is not None:
        table = class_table(results, results.findings)
        files["classes.csv"] = _csv(table).encode()
        rows = {"columns": list(table.columns), "data": [list(row) for row in table.rows]}
        files[TABLE] = json.dumps(rows).encode()
    files[REPORT] = _report(results, images, table).encode()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in files]


def _report(results: Results, images: Mapping[str, bytes], table: PageTable | None) -> str:
    sections = [PageSection("", _summary(results), table=_metrics(results))]
    for section, figures in itertools.groupby(FIGURES, lambda figure: figure.section):
        drawn = [(images[f.name], f.text) for f in figures if f.name in images]
        if drawn:
            text = [section.text] if section.text else []
            sections.append(PageSection(section.title, text, drawn))
    if table is not None:
        text = ['Accuracy, confidence and "how often" are in per cent. Click a heading to sort.']
        sections.append(PageSection("Classes", text, table=table))
    sections.append(PageSection("Options", table=_options(results.experiment)))
    return page(results.name, sections)


def _summary(results: Results) -> list[str]:
    experiment, counts = results.experiment, results.class_counts
    groups = ", ".join(f"{len(classes):,} {name}" for name, classes in results.groups.items())
    lines = [
        f"{len(results.class_names):,} classes ({groups}), {counts.sum():,} training images, "
        f"{counts.max():,} in the largest class and {counts.min():,} in the smallest. "
        f"Loss {experiment.loss.kind}, backbone {experiment.model.backbone}, "
        f"{len(results.history)} of {experiment.train.epochs} epochs."
    ]
    if results.findings is None:
        lines.append("There are no predictions for single images: the run did not reach its end.")
    else:
        about = results.findings.about
        lines.append(
            f"Measured on {len(results.findings.ids):,} images: split {about['split']} of "
            f"{about['data']}."
        )
    return lines


def _metrics(results: Results) -> PageTable | None:
    """The metrics of the last evaluation; None before the first one."""
    if results.findings is not None:
        metrics = results.findings.about["metrics"]
    else:
        metrics = next((r for r in reversed(results.history) if ACCURACY in r), {})
    names = [name for name in REPORTED if name in metrics]
    if not names:
        return None
    return PageTable([TITLES[n] for n in names], [[metrics[n] for n in names]], digits=2)


def _options(experiment: Experiment) -> PageTable:
    content = experiment.model_dump(mode="json", exclude={"name", "plugins"})
    rows = [(name, str(value)) for name, value in by_full_name(content).items()]
    return PageTable(("option", "value"), rows)


def _csv(table: PageTable) -> str:
    head = [name.replace(" ", "_") for name in table.columns]
    rows = ([f"{x:.2f}" if isinstance(x, float) else x for x in row] for row in table.rows)
    return csv_text([head, *rows])
