"""The ledger of a study, and the checks before it starts.

<tracking.runs>/<name>/study.json    identity, and for each cell a hash of its options and data

A study may grow: the same file with more cells or seeds trains only what is new.
"""

import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bcl_ray.data.shards import MANIFEST, Manifest, read_manifest
from bcl_ray.experiment.metric_names import ACCURACY
from bcl_ray.experiment.open_options import resolved
from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.machine.errors import UserError
from bcl_ray.machine.versions import job_record
from bcl_ray.runs import identity, run_folder
from bcl_ray.runs.budget import preflight
from bcl_ray.storage import files, paths
from bcl_ray.storage.fence import Fence
from bcl_ray.tuning.ledger import Ledger
from bcl_ray.tuning.settings import check_name
from bcl_ray.tuning.study_cells import Cell, Study
from bcl_ray.tuning.trials import Trial


@dataclass(frozen=True)
class StudyLedger(Ledger):
    """A study; its experiment is that of the first cell."""

    kind = identity.STUDY

    study: Study

    @property
    def metric(self) -> str:
        """The metric that the display shows, and by which epochs are compared."""
        return ACCURACY

    @property
    def resume_command(self) -> str:
        """The command that goes on with the study, without `bcl-ray`."""
        own = shlex.join([self.study.file, *self.study.overrides, "--name", self.name])
        # A job has a copy of the file, under a name of its own; its record has what was sent.
        return f"study {job_record().get('command', own)}"

    def experiment_of(self, trial: Trial) -> Experiment:
        """The experiment of the trial's cell with its seed."""
        cell = self.study.cells[trial.number]
        return with_overrides(cell.experiment, [f"train.seed={trial.seed}"])


@dataclass(frozen=True)
class CheckedStudy:
    """A study that can work, and its data."""

    uri: str
    """Its folder."""
    study: Study
    """With absolute paths."""
    manifests: Mapping[str, Manifest]
    """By data.path."""
    recorded: Mapping[str, Any] | None
    """Content of its study.json; None if it is new."""

    def manifest(self, cell: Cell) -> Manifest:
        """Manifest of a cell's data."""
        return self.manifests[cell.experiment.data.path]

    def cell_digests(self) -> dict[str, str]:
        """A hash of options and data for each cell, by name; for cells of earlier files too."""
        return dict(self.recorded["cells"] if self.recorded else {}) | {
            cell.name: f"{cell.experiment.digest()}-{self.manifest(cell).fingerprint[:12]}"
            for cell in self.study.cells
        }

    def write(self, fence: Fence | None = None) -> StudyLedger:
        """Begin the study, or go on with it, in its folder; `fence` is of the folder's lease."""
        cells, experiment = self.cell_digests(), self.study.cells[0].experiment
        prints = sorted({manifest.fingerprint for manifest in self.manifests.values()})
        ledger = StudyLedger(
            self.uri,
            self.recorded["uid"] if self.recorded else identity.new_uid(),
            hashlib.sha256(json.dumps(cells).encode()).hexdigest()[:12],
            " ".join(prints),
            experiment,
            self.study,
            fence=fence,
        )
        identity.write_experiment(self.uri, experiment)
        identity.write(ledger, {"cells": cells})
        return ledger


def check_study(name: str, study: Study) -> CheckedStudy:
    """Refuse a study that cannot work, before Ray starts. Nothing is written.

    Args:
        name: Name of the study.
        study: What its file says.

    Raises:
        ValueError: Data are missing (the message says how to make them), a cell cannot work, or
            one was begun with other options or data.
    """
    check_name(name)
    if study.cells[0].experiment.tracking.run is not None:
        raise UserError("tracking.run cannot be set: runs are named by their cells and seeds")
    _check_data(study)
    cells = tuple(
        replace(cell, experiment=run_folder.with_absolute_paths(resolved(cell.experiment)))
        for cell in study.cells
    )
    data_paths = dict.fromkeys(cell.experiment.data.path for cell in cells)
    manifests = {path: read_manifest(path) for path in data_paths}
    for cell in cells:
        try:
            preflight(cell.experiment, manifests[cell.experiment.data.path])
        except UserError as error:
            raise UserError(f"{study.file}: cell {cell.name}: {error}") from None
    uri = run_folder.run_uri(name, cells[0].experiment.tracking.runs)
    identity.check_holds_no_other(uri, identity.STUDY)
    recorded = None
    if files.exists(files.join(uri, identity.STUDY.file)):
        recorded = identity.read(uri, identity.STUDY)[0]
    checked = CheckedStudy(uri, replace(study, cells=cells), manifests, recorded)
    _check_cells(checked)
    return checked


def _check_data(study: Study) -> None:
    """Refuse data that do not exist, all of them in one message."""
    missing = [
        path
        for path in dict.fromkeys(cell.experiment.data.path for cell in study.cells)
        if path in study.shards and not files.exists(files.join(path, MANIFEST))
    ]
    if missing:
        remedies = " && ".join(study.shards[path] for path in missing)
        raise UserError(
            f"{study.file}: data.path {', '.join(missing)}: no {MANIFEST} there, so it is not a "
            f"data set; make it with: {remedies}"
        )


def _check_cells(checked: CheckedStudy) -> None:
    """Refuse a cell that was begun with other options or data."""
    if checked.recorded is None:
        return
    digests = checked.cell_digests()
    for cell in checked.study.cells:
        if checked.recorded["cells"].get(cell.name, digests[cell.name]) != digests[cell.name]:
            raise UserError(
                f"study '{paths.name(checked.uri)}' has a cell {cell.name} with other "
                f"{_difference(checked, cell)}: rename the cell, or give the study another name "
                f"({identity.STUDY.name_option})"
            )


def _difference(checked: CheckedStudy, cell: Cell) -> str:
    for seed in checked.study.seeds:
        uri = files.join(checked.uri, cell.run_name(seed))
        if run_folder.holds_run(uri):
            now = with_overrides(cell.experiment, [f"train.seed={seed}"])
            changes = list(run_folder.differences(run_folder.open_run(uri)[1], now))
            return f"options ({', '.join(changes)})" if changes else "data"
    return "options or data"
