"""Initial weights of a backbone, read from a file."""

import io
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bcl_ray.machine.errors import UserError
from bcl_ray.method.model import TwoBranch
from bcl_ray.storage import files

MAX_SHOWN = 5  # differences that an error lists


def load_backbone(model: TwoBranch, uri: str) -> None:
    """Set the weights and running statistics of a network's backbone to those in a file.

    Args:
        model: The network; only its backbone is changed.
        uri: File or URI of a state dict of the backbone, with or without its final layer, as
            torchvision publishes them; or `state.pt` of a checkpoint.

    Raises:
        ValueError: The file is of another kind, or of another backbone.
        OSError: The file cannot be read.
    """
    entries, expected = _backbone_entries(_load(uri), uri), model.backbone.state_dict()
    # Files from before torch 0.4.1 have no counters of batch norm, and nothing uses them.
    counters = {name: expected[name] for name in expected if name.endswith("num_batches_tracked")}
    entries = counters | entries
    differences = list(_differences(entries, expected))
    if differences:
        hidden = len(differences) - MAX_SHOWN
        more = f" and {hidden} more" if hidden > 0 else ""
        raise UserError(
            f"model.weights {uri} does not fit this model.backbone: "
            f"{', '.join(differences[:MAX_SHOWN])}{more}: set model.backbone to the one whose "
            "weights are in the file"
        )
    model.backbone.load_state_dict(entries)


def _load(uri: str) -> Any:
    data = files.read_bytes(uri)
    try:
        return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:  # errors of torch, zipfile and pickle
        # Without their texts, some of which advise to run the code in the file.
        raise UserError(
            f"model.weights {uri} was not written by torch.save, is incomplete, or contains more "
            f"than tensors and plain values ({type(error).__name__}): save the backbone's "
            "state_dict()"
        ) from error


def _backbone_entries(content: Any, uri: str) -> dict[str, Tensor]:
    """The entries of a file that belong to the backbone, by their names in the backbone."""
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        prefix, entries = "backbone.", content["model"]
        content = {
            name.removeprefix(prefix): entry
            for name, entry in entries.items()
            if str(name).startswith(prefix)
        }
        if not content:
            raise UserError(
                f"model.weights {uri} has a 'model' without entries that begin with '{prefix}': "
                "save the backbone's state_dict() alone"
            )
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(entry, Tensor) for name, entry in content.items()
    ):
        raise UserError(
            f"model.weights {uri} is not a state dict, which maps names to tensors: save the "
            "backbone's state_dict()"
        )
    final_layer = ("fc.", "classifier.")
    return {name: entry for name, entry in content.items() if not name.startswith(final_layer)}


def _differences(entries: dict[str, Tensor], expected: dict[str, Tensor]) -> Iterator[str]:
    for name, entry in expected.items():
        if name not in entries:
            yield f"{name} is missing"
        elif entries[name].shape != entry.shape:
            yield f"{name} has shape {tuple(entries[name].shape)}, not {tuple(entry.shape)}"
    yield from (f"{name} is unexpected" for name in entries if name not in expected)
