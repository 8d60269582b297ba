"""Weights that a backbone starts from, read from a file."""

import io
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bcl_ray.machine.errors import UserError
from bcl_ray.method.model import TwoBranch
from bcl_ray.storage import files

SHOWN = 5  # entries of a file that an error names


def load_backbone(model: TwoBranch, uri: str) -> None:
    """Start a network's backbone from the weights of a file.

    Args:
        model: its backbone is overwritten, running statistics included; nothing else is.
        uri: file or URI of a state dict: of the backbone with or without its final layer, as
            torchvision publishes them, or in a checkpoint of bcl_ray (`state.pt`).

    Raises:
        ValueError: not such a file, or one of another backbone.
        OSError: the file cannot be read.
    """
    found, expected = _entries(_content(uri), uri), model.backbone.state_dict()
    # Nothing reads batch norm's counters, and files from before torch 0.4.1 have none.
    counters = {name: expected[name] for name in expected if name.endswith("num_batches_tracked")}
    found = counters | found
    differing = list(_differing(found, expected))
    if differing:
        more = f" and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
        raise UserError(
            f"model.weights {uri} does not fit this model.backbone: "
            f"{', '.join(differing[:SHOWN])}{more}: set model.backbone to the one that it is of"
        )
    model.backbone.load_state_dict(found)


def _content(uri: str) -> Any:
    data = files.read_bytes(uri)
    try:
        return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises its own, zipfile's and pickle's
        # Their texts are left out: some advise to run the code that a file may hold.
        raise UserError(
            f"model.weights {uri} is no file of torch.save, is cut short, or holds more than "
            f"tensors and plain values ({type(error).__name__}): save the backbone's state_dict()"
        ) from error


def _entries(content: Any, uri: str) -> dict[str, Tensor]:
    """The backbone's entries, by their names in it."""
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        prefix, entries = "backbone.", content["model"]
        content = {
            name.removeprefix(prefix): entry
            for name, entry in entries.items()
            if str(name).startswith(prefix)
        }
        if not content:
            raise UserError(
                f"model.weights {uri} holds a 'model' without entries under '{prefix}': save the "
                "backbone's state_dict() alone"
            )
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(entry, Tensor) for name, entry in content.items()
    ):
        raise UserError(
            f"model.weights {uri} is no state dict, which has a tensor for each name: save the "
            "backbone's state_dict()"
        )
    final = ("fc.", "classifier.")
    return {name: entry for name, entry in content.items() if not name.startswith(final)}


def _differing(found: dict[str, Tensor], expected: dict[str, Tensor]) -> Iterator[str]:
    """What keeps entries from being loaded, one phrase for each."""
    for name, entry in expected.items():
        if name not in found:
            yield f"{name} is missing"
        elif found[name].shape != entry.shape:
            yield f"{name} has shape {tuple(found[name].shape)}, not {tuple(entry.shape)}"
    yield from (f"{name} is unexpected" for name in found if name not in expected)
