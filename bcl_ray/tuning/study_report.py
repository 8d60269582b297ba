"""The result of a study as files: tables, figures, and report.html."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bcl_ray.experiment.metric_names import FEATURE_TAIL_COSINE, GROUPS, STUDY_RESULTS, TAIL_COSINE
from bcl_ray.method.sample import MAX_CLASSES
from bcl_ray.report.figures.comparison import Configuration, comparison
from bcl_ray.report.figures.style import png
from bcl_ray.report.figures.tail_cosines import TailCosines, tail_cosines
from bcl_ray.report.page import PageSection, PageTable, page
from bcl_ray.storage import paths
from bcl_ray.tracking.tracker import Tracker
from bcl_ray.tuning import study_tables
from bcl_ray.tuning.reporter import publish
from bcl_ray.tuning.study_ledger import CheckedStudy
from bcl_ray.tuning.study_tables import CellResult, shown
from bcl_ray.tuning.trials import Trial

COSINES = [
    column
    for column, metric in STUDY_RESULTS.items()
    if metric in (TAIL_COSINE, FEATURE_TAIL_COSINE)
]
ABOUT = (
    "Accuracies are means over classes on the evaluation split, in per cent, of the last epoch. "
    "Beside them is the best epoch, which was chosen on the images that it is judged by, and is "
    "therefore too high. ± is half of the 95 % interval of the mean over seeds (t distribution)."
)
ONE_SEED = "A row with one seed has no interval: how much another seed would change is unknown."
PAIRED = "Differences are between runs with the same seed."
TAIL = (
    "Mean cosine between the centred class means of few-shot classes, with its 95 % interval over "
    "seeds. The line is -1/(C - 1), the cosine of a regular simplex of C classes: means of tail "
    "classes that lie to its right are closer together than they should be."
)


def write_report(
    checked: CheckedStudy, trials: Sequence[Trial], tracker: Tracker, folder: Path
) -> dict[str, Any]:
    """Write tables, figures and report to the study's folder, to a local one, and to MLflow.

    Returns:
        The content of the event `result`: `study`, `folder`, rows of `summary` and `differences`
        as text by column, `one_seed` (whether an interval is missing), `failed` (reason by run).
    """
    study = checked.study
    results = study_tables.runs_of_cells(study, trials)
    tables = study_tables.tables(study, results)
    failed = {trial.name: trial.reason for trial in trials if trial.status == "failed"}
    texts = [f"Study {study.file}.", ABOUT, *([ONE_SEED] if _has_one_seed(results) else [])]
    texts += [f"Failed: {name}: {reason}" for name, reason in failed.items()]
    figures = _figures(checked, results)
    sections = [PageSection("", texts, table=_page_table(tables["summary"]))]
    if "differences" in tables:
        sections.append(
            PageSection("Differences", [PAIRED], table=_page_table(tables["differences"]))
        )
    sections += [
        PageSection("Figures", figures=list(figures.values())),
        PageSection("Runs", table=_page_table(tables["runs"])),
    ]
    contents = {
        **{f"{name}.csv": study_tables.as_csv(rows).encode() for name, rows in tables.items()},
        "study.md": _markdown(paths.name(checked.uri), texts, tables).encode(),
        "report.html": page(f"study {paths.name(checked.uri)}", sections).encode(),
        **{f"figures/{name}.png": content for name, (content, _) in figures.items()},
    }
    publish(contents, checked.uri, folder, tracker)
    for name, rows in tables.items():
        tracker.text(f"{name}.json", study_tables.as_mlflow_table(rows))
    listed = [{"path": f"{name}.json", "type": "table"} for name in tables]
    tracker.tags({"mlflow.loggedArtifacts": json.dumps(listed)})  # MLflow finds its tables there
    return {
        "study": paths.name(checked.uri),
        "folder": paths.for_display(checked.uri),
        "summary": [shown(row) for row in tables["summary"]],
        "differences": [shown(row) for row in tables.get("differences", [])],
        "one_seed": _has_one_seed(results),
        "failed": failed,
    }


def _page_table(rows: study_tables.Rows) -> PageTable:
    return PageTable(list(rows[0]), [list(shown(row).values()) for row in rows])


def _has_one_seed(results: Sequence[CellResult]) -> bool:
    return any(len(result.finished) == 1 for result in results)


def _markdown(name: str, texts: Sequence[str], tables: Mapping[str, study_tables.Rows]) -> str:
    parts = [f"# Study {name}", *texts, study_tables.markdown(tables["summary"])]
    if "differences" in tables:
        parts += ["## Differences", PAIRED, study_tables.markdown(tables["differences"])]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _figures(checked: CheckedStudy, results: Sequence[CellResult]) -> dict[str, tuple[bytes, str]]:
    """Figures as PNG by name, each with a description; one of accuracy per choice of other axes."""
    groups: dict[str, list[CellResult]] = {}
    for result in results:
        if result.finished:
            groups.setdefault("-".join(list(result.cell.labels.values())[1:]), []).append(result)
    drawn = {}
    for name, group in groups.items():
        configurations = [
            Configuration(
                next(iter(result.cell.labels.values())),
                {column: list(result.by_seed(column).values()) for column in GROUPS},
                study_tables.curves(result),
            )
            for result in group
        ]
        figure = png(comparison(configurations))
        key, where = (f"accuracy-{name}", f" of {name}") if name else ("accuracy", "")
        drawn[key] = (figure, f"Accuracy by shot group and over epochs{where}")
    rows = [
        TailCosines(
            result.cell.name,
            {column: list(result.by_seed(column).values()) for column in COSINES},
            -1 / (min(len(checked.manifest(result.cell).class_names), MAX_CLASSES) - 1),
        )
        for result in results
        if any(result.by_seed(column) for column in COSINES)
    ]
    if rows:
        drawn["tail_cosines"] = (png(tail_cosines(rows)), TAIL)
    return drawn
