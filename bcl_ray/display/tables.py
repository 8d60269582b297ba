"""Tables on the terminal, and a plot of characters."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.markup import escape
from rich.table import Table

from bcl_ray.experiment.metric_names import RESULTS
from bcl_ray.report.seeds import spread

if TYPE_CHECKING:
    from bcl_ray.use.compare import Row
    from bcl_ray.use.predict.outputs import Summary

ACCURACY_TITLE = "accuracy in per cent, means over classes"
PLOT_WIDTH, PLOT_HEIGHT = 60, 6  # characters, of the plot of a long tail
BLOCKS = " ▁▂▃▄▅▆▇█"


def build_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    text: Collection[str],
    title: str | None = None,
    header: bool = True,
    wrap: bool = True,
) -> Table:
    """A table with a frame if it has a title, and without one otherwise.

    Args:
        columns: Names of the columns.
        rows: Cells of each row; rich markup in them is shown as it is.
        text: Columns that hold text, which is aligned left; numbers are aligned right.
        title: Title of the table.
        header: Whether the columns' names are shown.
        wrap: Whether a row may take several lines if the terminal is narrow.
    """
    if title is None:
        table = Table(box=None, pad_edge=False, header_style="", show_header=header)
    else:
        table = Table(title=escape(title), title_justify="left", show_header=header)
    for column in columns:
        table.add_column(
            column,
            justify="left" if column in text else "right",
            no_wrap=not wrap,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def accuracy_table(rows: Sequence[tuple[str, str, Mapping[str, float]]]) -> Table:
    """Accuracies of runs: all, many, medium, few, and the calibration error, in per cent.

    Args:
        rows: Name of the run, its method, and its metrics.
    """
    columns = {
        column: metric
        for column, metric in RESULTS.items()
        if any(metric in metrics for _, _, metrics in rows)
    }

    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f}"

    return build_table(
        ("run", "method", *columns),
        [
            (name, label, *(cell(metrics.get(metric)) for metric in columns.values()))
            for name, label, metrics in rows
        ],
        text=("run", "method"),
        title=ACCURACY_TITLE,
    )


def comparison_table(rows: "Sequence[Row]") -> Table:
    """Accuracies of configurations, with mean and standard deviation over their seeds.

    The epochs are a column if they differ.
    """
    metrics = {
        column: metric
        for column, metric in RESULTS.items()
        if any(row.values(metric) for row in rows)
    }
    epochs = [
        ", ".join(sorted({f"{record['epoch'] + 1:.0f}" for record in row.records})) for row in rows
    ]
    epoch_column = ("epoch",) if len(set(epochs)) > 1 else ()

    def cell(summary: tuple[float, float | None] | None) -> str:
        return "-" if summary is None else spread(*summary, 1)

    return build_table(
        ("runs", "options", *epoch_column, *metrics),
        [
            (
                "\n".join(row.names),
                row.label.replace(", ", "\n"),
                *([epoch] if epoch_column else []),
                *(cell(row.mean_and_deviation(metric)) for metric in metrics.values()),
            )
            for row, epoch in zip(rows, epochs, strict=True)
        ],
        text=("runs", "options"),
        title=ACCURACY_TITLE,
    )


def prediction_table(summary: "Summary") -> Table:
    """Labelled images by the shot group of their predicted class."""
    labelled = summary.images - summary.unreadable
    rows = [
        (
            group,
            f"{images:,}",
            f"{100 * images / labelled:.1f} %",
            f"{100 * summary.confidence[group] / images:.1f} %",
        )
        for group, images in summary.groups.items()
    ]
    if summary.unreadable:
        rows.append(("unreadable", f"{summary.unreadable:,}", "", ""))
    columns = ("group", "images", "share", "mean probability")
    return build_table(columns, rows, text=("group",), title="predicted classes, by shot group")


def draw_long_tail(class_counts: Sequence[int]) -> list[str]:
    """Lines of a plot: training images of each class, from the largest class to the smallest.

    A column is a class, or the mean of as many as fit; a class with images is always to be seen.

    Args:
        class_counts: Training images of each class, (K,).
    """
    counts = np.sort(np.asarray(class_counts))[::-1]
    columns = [part.mean() for part in np.array_split(counts, min(PLOT_WIDTH, len(counts)))]
    heights = np.ceil(np.array(columns) / max(counts.max(), 1) * 8 * PLOT_HEIGHT).astype(int)
    heights = np.repeat(heights, max(1, PLOT_WIDTH // 2 // len(columns)))
    scale = [f"{counts.max():,}", *[""] * (PLOT_HEIGHT - 2), "0"]
    margin = max(map(len, scale))
    lines = []
    for row, label in enumerate(scale):
        filled = np.clip(heights - 8 * (PLOT_HEIGHT - 1 - row), 0, 8)
        blocks = "".join(BLOCKS[eighths] for eighths in filled)
        lines.append(f"{label:>{margin}} │{blocks}".rstrip())
    return [*lines, f"{'':{margin}} └ {len(counts):,} classes, from the largest to the smallest"]
