"""Everything that a resume needs, in one small state.

What is not in it is not needed: views and the plan follow from the seed, the epoch and the
ids of the images, so there is no loader to bring back. torch's random state is kept for
networks that draw numbers while they train; ours do not.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

FILE = "state.pt"


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


def save(state: State, folder: Path) -> None:
    """Write a state into a folder that exists."""
    content = {name: getattr(state, name) for name in State.__dataclass_fields__}
    torch.save(content, folder / FILE)


def load(folder: Path) -> State:
    """Read a state, on the CPU; only tensors and plain values, never code.

    Raises:
        ValueError: a file that is not such a state.
    """
    path = folder / FILE
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return State(**content)
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no {FILE}: it is not a checkpoint of bcl_ray") from None
    except Exception as error:  # torch raises its own, zipfile's, pickle's; State TypeError
        # Their texts are left out: some advise to run the code that a file may hold.
        raise ValueError(
            f"{path} is no checkpoint of this version of bcl_ray, is cut short, or holds more "
            f"than tensors and plain values ({type(error).__name__}): use another checkpoint"
        ) from error


def evaluated_weights(state: State) -> dict[str, Any]:
    """State dict of the network that a run evaluates: the moving average, where it keeps one."""
    return state.model if state.average is None else state.average
