"""Compare configurations over several seeds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bcl_ray.display.study import StudyDisplay
from bcl_ray.display.terminal import console, quiet
from bcl_ray.runs.events import receiver


@dataclass(frozen=True)
class Studied:
    """The result of a study."""

    name: str
    folder: str
    """Folder of its files: study.md, summary.csv, differences.csv, runs.csv, report.html."""
    summary: list[dict[str, str]]
    """A row per cell: mean and half of the 95 % interval by column, as text."""
    failed: dict[str, str]
    """Reason by run; the same call tries these runs again."""


def study(
    file: str | Path,
    *overrides: str,
    name: str | None = None,
    max_concurrent: int | None = None,
) -> Studied:
    """Train each cell of a grid with several seeds, and tabulate the results.

        bcl_ray.study("jobs/studies/digits.yaml", "train.epochs=10", name="short")

    A study of this name that exists goes on: runs that have ended are not trained again, and cells
    or seeds that are new in the file are added.

    Args:
        file: YAML file of the study.
        overrides: Changes to all cells, "section.field=value".
        name: Name of the study, and of its folder; None for the file's.
        max_concurrent: Runs at the same time, at most; None for as many as fit.

    Raises:
        ValueError: The file is wrong, data are missing, a cell cannot work, or one was begun with
            other options; nothing was written.
        bcl_ray.tuning.driver.UnfinishedError: No cell finished, or some were held up.
        KeyboardInterrupt: Ctrl-C or SIGTERM stopped the study; the same call continues.
    """
    from bcl_ray.tuning.study_file import read_study
    from bcl_ray.tuning.study_ledger import check_study

    checked = check_study(name or default_name(file), read_study(Path(file), overrides))
    quiet()
    from bcl_ray.tuning.study import run_study

    with receiver(StudyDisplay(console())) as follow:
        end: dict[str, Any] = run_study(checked, follow=follow, max_concurrent=max_concurrent)
    return Studied(end["study"], checked.uri, end["summary"], end["failed"])


def default_name(file: str | Path) -> str:
    """The name of a study that was given none: that of its file."""
    return Path(file).stem
