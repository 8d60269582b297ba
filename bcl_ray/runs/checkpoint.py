"""Everything that a resume needs, in one small state.

What is not in it is not needed: views and the plan follow from the seed, the epoch and the
ids of the images, so there is no loader to bring back. torch's random state is kept for
networks that draw numbers while they train; ours do not.

A checkpoint is a folder of two files, `state.pt` and its SHA-256, which is written last: a
checkpoint without it, or whose file it does not fit, is none. `sha256sum -c state.pt.sha256`
checks it by hand.
"""

import hashlib
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files

FILE = "state.pt"
HASH_FILE = f"{FILE}.sha256"


class UnusableCheckpointError(UserError):
    """A folder that holds no complete state of this version."""


@dataclass(frozen=True)
class State:
    """A run at the end of a step.

    Args:
        step: steps of the whole run that are done; the schedule's position.
        model: the network's state dict.
        optimizer: the optimiser's state dict.
        average: state dict of the weights' moving average; none where there is none.
        sums: loss terms summed over the steps of an unfinished epoch, (3,), float64.
        history: one record of metrics per finished epoch.
        experiment: the resolved experiment as YAML.
        fingerprint: of the data.
        class_names: (K,), so that a model can be used without its data.
        class_counts: training images per class, (K,).
        uid: identity of the run, which MLflow has as a tag.
    """

    step: int
    model: dict[str, Any]
    optimizer: dict[str, Any]
    average: dict[str, Any] | None
    sums: torch.Tensor
    history: list[dict[str, float]]
    experiment: str
    fingerprint: str
    class_names: list[str]
    class_counts: list[int]
    uid: str
    random_state: torch.Tensor = field(default_factory=torch.get_rng_state)


def save(state: State, *folders: str | Path) -> None:
    """Write a state into folders or URIs; the local disk is not needed on the way.

    Raises:
        OSError: a folder cannot be written.
    """
    content = {name: getattr(state, name) for name in State.__dataclass_fields__}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    data = buffer.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    for folder in map(str, folders):
        files.write_bytes(files.join(folder, FILE), data)
        files.write_bytes(files.join(folder, HASH_FILE), f"{digest}  {FILE}\n".encode())


def load(folder: str | Path) -> State:
    """Read a state, on the CPU; only tensors and plain values, never code.

    Raises:
        UnusableCheckpointError: a folder that is not such a state, or not all of one.
        OSError: the folder cannot be read.
    """
    path = files.join(str(folder), FILE)
    try:
        content = files.read_bytes(path)
        expected = files.read_bytes(files.join(str(folder), HASH_FILE)).decode()
    except FileNotFoundError:
        raise UnusableCheckpointError(
            f"{folder} holds no complete {FILE}: it is not a checkpoint of bcl_ray, or it was cut "
            "while it was written"
        ) from None
    if hashlib.sha256(content).hexdigest() != expected.partition(" ")[0]:
        raise UnusableCheckpointError(
            f"{path} is damaged: it has {len(content):,} bytes that do not fit its SHA-256; use "
            "another checkpoint"
        )
    try:
        return State(**torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises its own, zipfile's, pickle's; State TypeError
        # Their texts are left out: some advise to run the code that a file may hold.
        raise UnusableCheckpointError(
            f"{path} is no checkpoint of this version of bcl_ray, or holds more than tensors and "
            f"plain values ({type(error).__name__}): use another checkpoint"
        ) from error


def sha256(folder: str | Path) -> str:
    """What a checkpoint's hash file says of it."""
    return files.read_bytes(files.join(str(folder), HASH_FILE)).decode().partition(" ")[0]


def evaluated_weights(state: State) -> dict[str, Any]:
    """State dict of the network that a run evaluates: the moving average, where it keeps one."""
    return state.model if state.average is None else state.average
