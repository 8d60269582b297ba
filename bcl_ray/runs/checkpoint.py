"""Checkpoints: the state of a run, with everything that a resume needs.

Views and the epoch plan follow from the seed, the epoch and the ids of the images, so a checkpoint
holds no state of a data loader. It holds torch's random state for networks that draw random numbers
in training, which those of this package do not.

A checkpoint is a folder of two files: `state.pt`, and then its SHA-256. A folder without the hash,
or whose hash does not fit, is no checkpoint. `sha256sum -c state.pt.sha256` checks it by hand.
"""

import hashlib
import io
from collections.abc import Hashable
from copy import copy as shallow_copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files

FILE = "state.pt"
HASH_FILE = f"{FILE}.sha256"


class UnusableCheckpointError(UserError):
    """A folder that holds no complete checkpoint of this version."""


@dataclass(frozen=True)
class State:
    """A run at the end of a step."""

    step: int  # steps of the run so far: the position in its schedules
    model: dict[str, Any]  # state dict
    optimizer: dict[str, Any]  # state dict
    average: dict[str, Any] | None  # state dict of the weights' moving average
    sums: torch.Tensor  # loss terms summed over the steps of an unfinished epoch, (3,), float64
    history: list[dict[str, float]]  # metrics of each finished epoch
    experiment: str  # the resolved experiment as YAML
    fingerprint: str  # of the data
    class_names: list[str]  # (K,), so that the model can be used without its data
    class_counts: list[int]  # training images per class, (K,)
    uid: str  # identity of the run
    random_state: torch.Tensor = field(default_factory=torch.get_rng_state)


class Snapshots:
    """Copies states into the host's memory, to be written while training goes on.

    The memory is allocated by the first copy and used again by each. A copy is therefore valid
    until the next one is taken. The memory of tensors on a GPU is page-locked, from which a copy
    takes a fraction of the time.
    """

    def __init__(self) -> None:
        self._memory: dict[Hashable, Tensor] = {}

    def take(self, state: State) -> State:
        """A copy on the CPU, bit for bit; complete when this returns."""
        content = {name: getattr(state, name) for name in State.__dataclass_fields__}
        copied = self._copy(content, ())
        if state.sums.is_cuda:  # copies from a GPU have only been queued
            torch.cuda.synchronize(state.sums.device)
        return State(**copied)

    def _copy(self, value: Any, path: tuple[Hashable, ...]) -> Any:
        """A copy of a value of a state, which is at this path of keys and positions."""
        if isinstance(value, Tensor):
            return self._memory_of(value, path).copy_(value, non_blocking=True)
        if isinstance(value, dict):
            same_kind = shallow_copy(value)  # torch's state dicts have attributes
            same_kind.update({key: self._copy(item, (*path, key)) for key, item in value.items()})
            return same_kind
        if isinstance(value, list):
            return [self._copy(item, (*path, index)) for index, item in enumerate(value)]
        return value

    def _memory_of(self, tensor: Tensor, path: tuple[Hashable, ...]) -> Tensor:
        key = (path, tensor.shape, tensor.stride(), tensor.dtype)
        if key not in self._memory:
            pinned = tensor.is_cuda
            self._memory[key] = torch.empty_like(tensor, device="cpu", pin_memory=pinned)
        return self._memory[key]


def save(state: State, folder: str | Path) -> None:
    """Write a checkpoint into a folder or URI, without use of the local disk.

    The file is made in memory, so that this takes twice the memory of the state.

    Raises:
        OSError: The folder cannot be written.
    """
    content = {name: getattr(state, name) for name in State.__dataclass_fields__}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    data = buffer.getbuffer()
    digest = hashlib.sha256(data).hexdigest()
    files.write_bytes(files.join(str(folder), FILE), data)
    files.write_bytes(files.join(str(folder), HASH_FILE), f"{digest}  {FILE}\n".encode())


def copy(folder: str, target: str) -> None:
    """Copy a checkpoint; the hash comes last, so that a part of a copy is no checkpoint.

    Raises:
        OSError: The folder cannot be read, or the target not be written.
    """
    for name in (FILE, HASH_FILE):
        files.copy(files.join(folder, name), files.join(target, name))


def is_complete(folder: str) -> bool:
    """Whether all files of a checkpoint are there; what is in them is not checked."""
    return files.exists(files.join(folder, HASH_FILE))


def load(folder: str | Path) -> State:
    """Read a checkpoint to the CPU: only tensors and plain values, never code.

    Raises:
        UnusableCheckpointError: The folder holds no checkpoint, or an incomplete or damaged one.
        OSError: The folder cannot be read.
    """
    path = files.join(str(folder), FILE)
    try:
        content = files.read_bytes(path)
        expected = sha256(folder)
    except FileNotFoundError:
        raise UnusableCheckpointError(
            f"{folder} holds no complete {FILE}: it is not a checkpoint of bcl_ray, or writing it "
            "was interrupted"
        ) from None
    if hashlib.sha256(content).hexdigest() != expected:
        raise UnusableCheckpointError(
            f"{path} is damaged: it has {len(content):,} bytes that do not fit its SHA-256; use "
            "another checkpoint"
        )
    try:
        return State(**torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    except Exception as error:  # of torch, zipfile or pickle; a TypeError of State
        # Their texts are left out: some advise to run the code that a file may hold.
        raise UnusableCheckpointError(
            f"{path} is no checkpoint of this version of bcl_ray, or holds more than tensors and "
            f"plain values ({type(error).__name__}): use another checkpoint"
        ) from error


def sha256(folder: str | Path) -> str:
    """The SHA-256 of a checkpoint's state, as its hash file has it."""
    return files.read_bytes(files.join(str(folder), HASH_FILE)).decode().partition(" ")[0]


def evaluated_weights(state: State) -> dict[str, Any]:
    """State dict of the network that the run evaluates: the moving average, if there is one."""
    return state.model if state.average is None else state.average
