"""The ledger of a sweep: its trials in files, from which it is resumed.

<tracking.runs>/<name>/search.json or study.json    identity and settings
<tracking.runs>/<name>/experiment.yaml              the experiment that trials change
<tracking.runs>/<name>/<trial>/trial.json           a trial's point, scores and end, beside its run
"""

import json
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

from bcl_ray.experiment.options import Experiment
from bcl_ray.runs.identity import Identity
from bcl_ray.storage import files, paths
from bcl_ray.storage.fence import Fence
from bcl_ray.tuning.trials import Trial

TRIAL_FILE = "trial.json"
PARALLEL_REQUESTS = 16  # to hide the latency of an object store


@dataclass(frozen=True)
class Ledger(Identity, ABC):
    """A sweep, and the files in its folder."""

    experiment: Experiment  # what trials change; it says where everything is tracked
    # Of this driver's lease, checked before a trial is written.
    fence: Fence | None = field(default=None, kw_only=True)

    @property
    @abstractmethod
    def metric(self) -> str:
        """The score of a trial, as `parse_score` takes it."""

    @property
    @abstractmethod
    def resume_command(self) -> str:
        """The command that goes on with it, without `bcl-ray`."""

    @abstractmethod
    def experiment_of(self, trial: Trial) -> Experiment:
        """The experiment of a trial, before its share of the cluster and its folder are set."""

    def file(self, *parts: str) -> str:
        """URI of a file in the folder."""
        return files.join(self.uri, *parts)

    def trials(self) -> list[Trial]:
        """All trials so far, by number; repeats come after the trial that they repeat."""
        with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
            found = list(pool.map(self._read_trial, files.list_folders(self.uri)))
        trials = [trial for trial in found if trial is not None]
        return sorted(
            trials, key=lambda trial: (trial.number, -1 if trial.seed is None else trial.seed)
        )

    def _read_trial(self, folder: str) -> Trial | None:
        try:
            content = json.loads(files.read_bytes(self.file(folder, TRIAL_FILE)))
        except FileNotFoundError:
            return None
        scores = {int(epoch): score for epoch, score in content.pop("scores").items()}
        return Trial(**content, scores=scores)

    def save(self, *trials: Trial) -> None:
        """Write trials, each to its own file.

        Raises:
            LeaseLostError: Another driver has taken over the folder.
        """
        if self.fence is not None:
            self.fence.check()
        with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
            list(pool.map(self._write_trial, trials))

    def _write_trial(self, trial: Trial) -> None:
        content = json.dumps(asdict(trial), indent=1).encode()
        files.write_bytes(self.file(trial.name, TRIAL_FILE), content)

    @property
    def runs_option(self) -> str:
        """The option that names the folder of runs, with a space before it; empty by default."""
        root = paths.for_display(paths.parent(self.uri))
        return "" if root == "runs" else f" tracking.runs={root}"
