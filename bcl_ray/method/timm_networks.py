"""Backbones of timm, https://github.com/huggingface/pytorch-image-models, an optional package.

A network is built without its classifier, and its outputs are embeddings. What it was made for
(size, mean and standard deviation of images) stands in its `pretrained_cfg`.

Axes: N images, E embedding width.
"""

import difflib
import math
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bcl_ray.experiment.options import ModelConfig
from bcl_ray.machine.errors import UserError

PREFIX = "timm/"


def timm_network(config: ModelConfig, norm: Any) -> tuple[nn.Module, int]:
    """A network of timm without its classifier, and its E.

    Raises:
        UserError: timm has no such network, or it has no drop path, or takes another size only.
    """
    network = _create(config)
    _replace_norms(network, norm)
    return network, int(getattr(network, "head_hidden_size", None) or network.num_features)


def timm_inputs(name: str, image_size: int | None) -> dict[str, Any]:
    """What a network was made for, as options of `views`, and `input_size` if it is fixed.

    Args:
        name: Value of model.backbone.
        image_size: Value of views.image_size; None for the network's own.

    Raises:
        UserError: timm is not installed, or has no such network.
    """
    settings = _settings(name)
    from timm.data import resolve_data_config  # noqa: PLC0415  an extra, and takes seconds

    own = resolve_data_config({}, pretrained_cfg=settings)
    size = image_size or own["input_size"][-1]
    inputs = {
        "image_size": size,
        "eval_resize": max(size, math.floor(size / own["crop_pct"])),
        "mean": own["mean"],
        "std": own["std"],
        "interpolation": own["interpolation"],
    }
    return inputs | ({"input_size": size} if settings.get("fixed_input_size") else {})


def published_weights(config: ModelConfig) -> dict[str, Tensor]:
    """The weights that timm publishes for a network, downloaded once to its cache.

    Raises:
        UserError: There are none.
        OSError: They cannot be downloaded.
    """
    try:
        weights: dict[str, Tensor] = _create(config, pretrained=True).state_dict()
        return weights
    except UserError:
        raise
    except Exception as error:  # of the network, the hub's client, or timm: all have their own
        reason = " ".join(str(error).split())[:200]
        raise OSError(
            f"model.weights 'timm': the weights of {config.backbone} could not be downloaded "
            f"({type(error).__name__}: {reason}): name a file"
        ) from error


_REFUSED = {
    "img_size": "takes images of {size} pixels only: set views.image_size={size}",
    "drop_path_rate": "has no drop path: set model.drop_path=0",
}


class MissingTimmError(UserError, ImportError):
    """Timm is not installed here."""


def _settings(name: str) -> dict[str, Any]:
    """Timm's configuration of a network, by a value of model.backbone."""
    try:
        import timm  # noqa: PLC0415  an extra, and takes seconds
    except ImportError:
        raise MissingTimmError(
            f"model.backbone '{name}' needs timm: pip install 'bcl-ray[timm]'"
        ) from None
    own_name = name.removeprefix(PREFIX)
    architecture, _, tag = own_name.partition(".")
    tags = timm.list_pretrained(f"{architecture}.*") if timm.is_model(architecture) else []
    known = own_name in tags if tag else timm.is_model(architecture)
    if not known:
        near = difflib.get_close_matches(own_name, tags or timm.list_models(), n=3, cutoff=0.5)
        hint = ", ".join(f"'{PREFIX}{one}'" for one in near) or "see timm.list_models()"
        raise UserError(f"model.backbone '{name}': timm has no such network; there is {hint}")
    settings: dict[str, Any] = timm.get_pretrained_cfg(own_name).to_dict()
    return settings


def _create(config: ModelConfig, *, pretrained: bool = False) -> Any:
    settings = _settings(config.backbone)
    import timm  # noqa: PLC0415

    # timm tells which options a network takes only by refusing them: leave out those that are off,
    # and try again. Some networks have other defaults than 0.
    options: dict[str, Any] = {"drop_path_rate": config.drop_path, "drop_rate": 0.0}
    if config.input_size not in (None, settings["input_size"][-1]):
        options["img_size"] = config.input_size
    name = config.backbone.removeprefix(PREFIX)
    while True:
        try:
            return timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
        except TypeError as error:
            refused = next((option for option in options if f"'{option}'" in str(error)), None)
            if refused is None:
                raise
            if options[refused]:
                size = settings["input_size"][-1]
                text = _REFUSED[refused].format(size=size)
                raise UserError(f"model.backbone '{config.backbone}' {text}") from error
            del options[refused]


def _replace_norms(network: nn.Module, norm: Any) -> None:
    """Replace batch norms, under the same names, by those of model.batch_norm."""
    if norm is nn.BatchNorm2d:
        return  # as they are
    for parent in network.modules():
        for name, child in parent.named_children():
            if isinstance(child, _BatchNorm):
                setattr(parent, name, _replaced(child, norm))


def _replaced(old: Any, norm: Any) -> nn.Module:
    if old.weight is None or not old.track_running_stats or old.momentum is None:
        raise UserError(
            f"model.batch_norm: {old} of this model.backbone has no weights or no running "
            "statistics: set model.batch_norm=per_worker"
        )
    kind = _with_activation(norm) if hasattr(old, "act") else norm
    new: nn.Module = kind(old.num_features, eps=old.eps, momentum=old.momentum)
    new.load_state_dict(old.state_dict())
    if hasattr(old, "act"):  # timm's norms that an activation follows
        new.act, new.drop = old.act, old.drop
    return new


def _with_activation(norm: Any) -> Any:
    """A class of batch norm that applies `drop` and `act` to its result."""

    class NormAct(norm):
        """timm's own classes of this kind do the same, with another norm."""

        act: nn.Module
        drop: nn.Module

        def forward(self, input: Tensor) -> Tensor:
            activated: Tensor = self.act(self.drop(super().forward(input)))
            return activated

    return NormAct
