"""Checkpoints on a worker: rank 0 writes them, and Ray Train records those that are complete.

Training waits only until the state has been copied into the host's memory. A thread of Ray Train's
writes the copy meanwhile, and then records it. A checkpoint counts only once it is recorded: a
worker may die while it writes. Ray Train keeps the last two, so that a run can continue from the
older one if the newer one is damaged.
"""

import logging
import secrets
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import PurePosixPath
from typing import Any

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
        self._snapshots = checkpoint.Snapshots()
        self._upload: Future[None] | None = None  # the last one, on rank 0
        self.blocked = 0.0
        """Seconds in which `save` has held up training."""
        self._taken = 0.0  # of these

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
        """Copy the state, and have it written and recorded while training goes on.

        Waits for the checkpoint before, and for the other workers.

        Args:
            state: Returns the state to write; called on rank 0.
            step: Number of the state's step, by which Ray Train records the checkpoint.
            best: Whether it replaces the run's best checkpoint, too.

        Raises:
            LeaseLostError: Another driver has taken the run over.
            OSError: The checkpoint before could not be written.
        """
        begun = time.perf_counter()
        upload = self._prepare(state(), best=best) if rank() == 0 else {}
        ray.train.report(
            {"step": step},
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=False,
            **upload,
        )
        self.blocked += time.perf_counter() - begun

    def take_blocked_seconds(self) -> float:
        """Seconds in which `save` has held up training since the last call of this."""
        seconds, self._taken = self.blocked - self._taken, self.blocked
        return seconds

    def wait_until_recorded(self) -> None:
        """Wait until the last checkpoint is written, and Ray Train has recorded it.

        Raises:
            LeaseLostError: Another driver has taken the run over.
            OSError: It could not be written.
        """
        if self._upload is not None:
            self._upload.result()
        ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)

    def _prepare(self, state: checkpoint.State, *, best: bool) -> dict[str, Any]:
        """Copy the state; returns arguments of `ray.train.report` that have the copy written."""
        if self._upload is not None:
            self._upload.result()  # its memory is used again
        snapshot = self._snapshots.take(state)
        # The name is new even if workers wrote the same step before they were started again.
        folder = files.join(self._run, f"{LAST}{state.step:08d}_{secrets.token_hex(4)}")
        written = self._upload = Future[None]()

        def upload(reported: ray.train.Checkpoint, _: str) -> ray.train.Checkpoint:
            try:
                self._write(snapshot, folder, best=best)
            except BaseException as error:
                written.set_exception(error)
                raise  # Ray Train ends the training
            written.set_result(None)
            return reported

        filesystem, path = files.atomic_filesystem(folder, self._fence)
        return {
            "checkpoint": ray.train.Checkpoint(path, filesystem),
            "checkpoint_upload_fn": upload,
        }

    def _write(self, state: checkpoint.State, folder: str, *, best: bool) -> None:
        self._fence.check()
        checkpoint.save(state, folder)
        self._fence.check()
        if best:
            self._replace_best(folder, f"{BEST}{state.step:08d}")

    def _replace_best(self, folder: str, new: str) -> None:
        """Copy a checkpoint, and delete the best one until now."""
        checkpoint.copy(folder, files.join(self._run, new))
        self._fence.check()
        for name in files.list_folders(self._run):
            if name.startswith(BEST) and name != new:
                files.delete_folder(files.join(self._run, name))

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
