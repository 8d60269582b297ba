"""Initial weights of a backbone, from a file or as they are published."""

import io
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bcl_ray.experiment.choices import BACKBONES
from bcl_ray.experiment.options import Experiment, ModelConfig
from bcl_ray.experiment.table import code
from bcl_ray.machine.errors import UserError
from bcl_ray.method.model import TwoBranch
from bcl_ray.storage import files

MAX_SHOWN = 5  # differences that an error lists
# Keys under which programs store the state dict of a network, beside other things.
CONTAINERS = ("model", "state_dict", "model_state_dict", "teacher")
# Beginnings of the names of classifiers, which a backbone does not have.
HEADS = ("fc.", "_fc.", "classifier.", "head.", "heads.", "head_dist.", "last_linear.")

Entries = dict[str, Tensor]
Names = Mapping[str, str]  # from the backbone's names to those of a file


def load_backbone(model: TwoBranch, config: ModelConfig) -> str | None:
    """Set the weights and running statistics of a network's backbone to those of model.weights.

    Args:
        model: The network; only its backbone is changed.
        config: Its options. `weights` is a file or URI of a state dict, see the option; the names
            in it may be those of `SCHEMES`, all with one prefix. Or it is `timm`.

    Returns:
        What of the file was left out, such as a classifier; None if nothing was.

    Raises:
        ValueError: The file is of another kind, or of another backbone.
        OSError: The file cannot be read.
    """
    if config.weights_file is None:
        download = BACKBONES[config.backbone].download_weights
        assert download is not None, "the option was checked"
        model.backbone.load_state_dict(code(download)(config))
        return None
    uri, network = config.weights_file, model.backbone
    found = _match(_state_dict(_load(uri), uri), network)
    differences = list(_differences(found, network.state_dict()))
    if differences:
        hidden = len(differences) - MAX_SHOWN
        more = f" and {hidden} more" if hidden > 0 else ""
        raise UserError(
            f"model.weights {uri} does not fit this model.backbone: "
            f"{', '.join(differences[:MAX_SHOWN])}{more}: set model.backbone to the one whose "
            "weights are in the file"
        )
    network.load_state_dict(found.entries)
    return _left_out(found, uri)


def check_weights(experiment: Experiment) -> None:
    """Make sure that model.weights can be read and fits the backbone.

    Raises:
        ValueError: It does not fit, or is no state dict.
        OSError: It cannot be read or downloaded.
    """
    if experiment.model.weights is not None:
        load_backbone(TwoBranch(experiment.model, num_classes=2), experiment.model)


def _load(uri: str) -> Any:
    data = files.read_bytes(uri)
    try:
        if uri.partition("?")[0].endswith(".safetensors"):
            from safetensors.torch import load  # noqa: PLC0415  only this format needs it

            return load(data)
        return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:  # errors of torch, zipfile, pickle and safetensors
        # Without their texts, some of which advise to run the code in the file.
        raise UserError(
            f"model.weights {uri} was not written by torch.save or safetensors, is incomplete, or "
            f"contains more than tensors and plain values ({type(error).__name__}): save the "
            "backbone's state_dict()"
        ) from error


def _state_dict(content: Any, uri: str) -> Entries:
    """The state dict in a file's content, which may have other things beside it."""
    while isinstance(content, dict):
        inner = [content[key] for key in CONTAINERS if isinstance(content.get(key), dict)]
        if not inner:
            break
        content = inner[0]
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(entry, Tensor) for name, entry in content.items()
    ):
        raise UserError(
            f"model.weights {uri} is not a state dict, which maps names to tensors: save the "
            "backbone's state_dict()"
        )
    return content


class _Match(NamedTuple):
    entries: Entries  # by their names in the backbone
    unexpected: list[str]  # names with the backbone's prefix that neither it nor a classifier has
    heads: list[str]  # names with the prefix that belong to a classifier
    others: list[str]  # names without the prefix


def _match(state: Entries, network: nn.Module) -> _Match:
    """The entries that fit a backbone, under the scheme of names and the prefix that fit best."""
    expected = network.state_dict()
    found = _match_names(state, network)
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if convert is not None and list(_differences(found, expected)):
        # timm's own conversion, for weights as their authors publish them, or for another size.
        prefixed = {name: state[name] for name in found.unexpected}
        try:
            converted = _match_names(convert(found.entries | prefixed, network), network)
        except Exception:  # it takes the file to be of this network, and that it is not
            return found
        found = converted._replace(heads=found.heads + converted.heads, others=found.others)
    # Files from before torch 0.4.1 have no counters of batch norm, and nothing uses them.
    counters = {name: expected[name] for name in expected if name.endswith("num_batches_tracked")}
    return found._replace(entries=counters | found.entries)


def _match_names(state: Entries, network: nn.Module) -> _Match:
    names = list(network.state_dict())
    candidates = [
        (prefix, scheme)
        for scheme in filter(None, (scheme(network, names) for scheme in SCHEMES.values()))
        for prefix in _prefixes(state, scheme)
    ]

    def num_matching(candidate: tuple[str, Names]) -> int:
        return sum(candidate[0] + name in state for name in candidate[1].values())

    prefix, scheme = max(candidates, key=num_matching)  # the first of equal ones
    of_file = {prefix + theirs: own for own, theirs in scheme.items()}
    rest = [name for name in state if name not in of_file]
    prefixed = [name for name in rest if name.startswith(prefix)]
    heads = [name for name in prefixed if name.removeprefix(prefix).startswith(HEADS)]
    return _Match(
        {of_file[name]: entry for name, entry in state.items() if name in of_file},
        [name for name in prefixed if name not in heads],
        heads,
        [name for name in rest if not name.startswith(prefix)],
    )


def _prefixes(state: Entries, scheme: Names) -> list[str]:
    """What may stand before the backbone's names in a file: "", "module.encoder_q." and others."""
    anchors = [name for name in scheme.values() if name.endswith("weight")]
    found = {
        name.removesuffix(anchor): None
        for anchor in {anchors[0], anchors[-1]}
        for name in state
        if name.endswith(f".{anchor}")
    }
    return ["", *found]


def _own_names(_network: nn.Module, names: list[str]) -> Names:
    """Torchvision's and timm's."""
    return {name: name for name in names}


def _efficientnet_pytorch_names(network: Any, names: list[str]) -> Names:
    """Those of the package efficientnet_pytorch and of its relatives, for timm's EfficientNets.

    There blocks are numbered over all stages, and norms in other ways.
    """
    if not hasattr(network, "conv_stem") or not hasattr(network, "blocks"):
        return {}
    parts = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
    blocks = [
        (f"blocks.{stage}.{position}", block)
        for stage, blocks_of_stage in enumerate(network.blocks)
        for position, block in enumerate(blocks_of_stage)
    ]
    for number, (own, block) in enumerate(blocks):
        expands = hasattr(block, "conv_pwl")
        for part, theirs in _BLOCK_NAMES[expands].items():
            parts[f"{own}.{part}"] = f"_blocks.{number}.{theirs}"
    named = (name.rpartition(".") for name in names)
    return {f"{part}.{leaf}": f"{parts.get(part, part)}.{leaf}" for part, _, leaf in named}


_SQUEEZE = {"se.conv_reduce": "_se_reduce", "se.conv_expand": "_se_expand"}
_BLOCK_NAMES = {  # by whether a block begins with an expansion
    False: {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    | _SQUEEZE,
    True: {
        "conv_pw": "_expand_conv",
        "bn1": "_bn0",
        "conv_dw": "_depthwise_conv",
        "bn2": "_bn1",
        "conv_pwl": "_project_conv",
        "bn3": "_bn2",
    }
    | _SQUEEZE,
}

SCHEMES: dict[str, Callable[[nn.Module, list[str]], Names]] = {
    "torchvision, timm": _own_names,
    "efficientnet_pytorch": _efficientnet_pytorch_names,
}
"""How files name the parts of a backbone: functions of the network and of its own names, which
return nothing for a network that the scheme has no names for."""


def _differences(found: _Match, expected: Entries) -> Iterator[str]:
    for name, entry in expected.items():
        if name not in found.entries:
            if not name.endswith("num_batches_tracked"):
                yield f"{name} is missing"
        elif found.entries[name].shape != entry.shape:
            shape = tuple(found.entries[name].shape)
            yield f"{name} has shape {shape}, not {tuple(entry.shape)}"
    yield from (f"{name} is unexpected" for name in found.unexpected)


def _left_out(found: _Match, uri: str) -> str | None:
    """What of a file is not the backbone's."""
    parts = [f"its classifier ({', '.join(found.heads[:MAX_SHOWN])})"] if found.heads else []
    if found.others:
        parts.append(f"{len(found.others)} other entries, such as {found.others[0]}")
    return f"model.weights {uri}: left out {' and '.join(parts)}" if parts else None
