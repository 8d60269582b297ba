"""Checkpoints on a worker: rank 0 writes them, and Ray Train records those that are complete.

A checkpoint counts only once Ray Train has recorded it: a worker may die while it writes. Ray Train
keeps the last two, so that a run can continue from the older one if the newer one is damaged.
"""

import logging
import secrets
from collections.abc import Callable
from pathlib import PurePosixPath

import ray.train
from ray.train import CheckpointConsistencyMode, CheckpointUploadMode
from ray.train.collective import broadcast_from_rank_zero

from bcl_ray.method.collectives import rank
from bcl_ray.runs import checkpoint
from bcl_ray.runs.run_folder import BEST, LAST
from bcl_ray.storage import files
from bcl_ray.storage.fence import Fence

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run; all workers call each method together.

    Args:
        run: Folder or URI of the run.
        fence: Checked before each change of the folder: another driver may have taken the run over.
    """

    def __init__(self, run: str, fence: Fence) -> None:
        self._run, self._fence = run, fence

    def load(self) -> checkpoint.State | None:
        """The last state that can be read; None if the run has no checkpoint yet.

        Raises:
            UnusableCheckpointError: No checkpoint can be read. To train from the beginning would
                overwrite the run.
        """
        if ray.train.get_checkpoint() is None:
            return None
        # Rank 0 chooses for all: a file may become readable between the attempts of two workers.
        folder = broadcast_from_rank_zero(self._last_usable() if rank() == 0 else None)
        return checkpoint.load(folder)

    def save(self, state: Callable[[], checkpoint.State], step: int, *, best: bool = False) -> None:
        """Write a checkpoint, and report it to Ray Train; workers wait for each other.

        Args:
            state: Returns the state to write; called on rank 0.
            step: Number of the state's step, by which Ray Train records the checkpoint.
            best: Whether it replaces the run's best checkpoint, too.

        Raises:
            LeaseLostError: Another driver has taken the run over.
        """
        written = self._write(state(), best=best) if rank() == 0 else None
        ray.train.report(
            {"step": step},
            checkpoint=written,
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
        )

    def wait_until_recorded(self) -> None:
        """Wait until Ray Train has recorded the last checkpoint that was reported."""
        ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)

    def _write(self, state: checkpoint.State, *, best: bool) -> ray.train.Checkpoint:
        self._fence.check()
        step = f"{state.step:08d}"
        # The name is new even if workers wrote the same step before they were started again.
        folder = files.join(self._run, f"{LAST}{step}_{secrets.token_hex(4)}")
        copies = [files.join(self._run, BEST + step)] if best else []
        checkpoint.save(state, folder, *copies)
        self._fence.check()
        for name in files.list_folders(self._run) if best else []:
            if name.startswith(BEST) and name != BEST + step:
                files.delete_folder(files.join(self._run, name))
        filesystem, path = files.atomic_filesystem(folder, self._fence)
        return ray.train.Checkpoint(path, filesystem)

    def _last_usable(self) -> str:
        """The folder of the last checkpoint that can be read."""
        recorded = ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)
        names = [PurePosixPath(report.checkpoint.path).name for report in recorded]
        problems = []
        for folder in [files.join(self._run, name) for name in reversed(names)]:
            try:
                checkpoint.load(folder)
            except checkpoint.UnusableCheckpointError as error:
                problems.append(str(error))
                continue
            for problem in problems:
                logger.warning("%s; going on from the checkpoint before", problem)
            self._delete_all_but(names)
            return folder
        raise checkpoint.UnusableCheckpointError("; ".join(problems))

    def _delete_all_but(self, recorded: list[str]) -> None:
        """Delete checkpoints that were never recorded, since their workers died."""
        self._fence.check()
        for name in files.list_folders(self._run):
            if name.startswith(LAST) and name not in recorded:
                files.delete_folder(files.join(self._run, name))
