"""Tables of the losses, backbones and sources that an experiment chooses by name.

A module that an experiment lists under `plugins` adds entries when it is imported:

    from bcl_ray.experiment.choices import LOSSES, Loss

    LOSSES.add(Loss("my_focal", "focal loss", classification=focal_loss))
"""

import importlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bcl_ray.experiment.table import Choice, Code, Table
from bcl_ray.machine.errors import UserError

Profile = Literal["exponential", "step", "natural"]
"""How class sizes fall from the largest class to the smallest; `data.longtail` has formulas."""
OnBadImage = Literal["stop", "skip"]
"""What sharding does about a row whose image cannot be decoded."""
Orientation = Literal["ignore", "apply"]
"""Whether sharding turns images as their EXIF orientation says."""


def load_plugins(modules: Any) -> None:
    """Import modules that add entries; the current folder is searched last.

    Raises:
        ValueError: Not a list, a module that does not exist, or an error while it is imported.
    """
    if isinstance(modules, str) or not isinstance(modules, Iterable):
        raise UserError(f"plugins ({modules}) must be a list of modules: [my_package.my_module]")
    current_folder = str(Path.cwd())
    for name in modules:
        # Python adds the current folder to the path for `python -m`, not for installed commands.
        if current_folder not in sys.path:
            sys.path.append(current_folder)
        try:
            importlib.import_module(str(name))
        except Exception as error:
            raise UserError(
                f"plugins: module '{name}' cannot be imported ({type(error).__name__}: {error}); "
                "it must be installed, or be in the current folder"
            ) from error


CONTRASTIVE_OPTIONS = (
    "temperature",
    "contrastive_weight",
    "classification_weight",
    "tau",
    "anchor_mean",
)


@dataclass(frozen=True)
class Loss(Choice):
    """A choice of `loss.kind`; `bcl_ray.method.objectives` describes the functions' arguments."""

    title: str = ""
    """Name in tables of results."""
    classification: Code = "bcl_ray.method.objectives:logit_adjusted"
    contrastive: Code | None = None
    """None for no contrastive loss, and therefore no contrastive views."""
    uses: tuple[str, ...] = ()
    """Options of `loss` that affect this loss; `bcl-ray search` varies them."""


LOSSES = Table(
    "loss.kind",
    Loss(
        "ce",
        "cross-entropy",
        "cross-entropy",
        classification="bcl_ray.method.objectives:cross_entropy",
    ),
    Loss(
        "logit_adjusted",
        "logit-adjusted cross-entropy",
        "logit-adjusted cross-entropy",
        uses=("tau",),
    ),
    Loss(
        "scl",
        "logit-adjusted cross-entropy and the supervised contrastive loss",
        "supervised contrastive",
        contrastive="bcl_ray.method.objectives:supervised_contrastive",
        uses=CONTRASTIVE_OPTIONS,
    ),
    Loss(
        "bcl",
        "logit-adjusted cross-entropy and the balanced contrastive loss",
        "BCL",
        contrastive="bcl_ray.method.objectives:balanced_contrastive",
        uses=CONTRASTIVE_OPTIONS,
    ),
)


@dataclass(frozen=True)
class Backbone(Choice):
    """A choice of `model.backbone`; `bcl_ray.method.backbones` describes the arguments."""

    build: Code
    kaiming_linear: bool = False
    """Initialisation of the linear layers in the classifier and the projections. True: normal with
    variance 2 / fan-in, as in the published code for CIFAR. False: torch's default, whose variance
    is a sixth of that."""
    view_defaults: Code | None = None
    """Function of the name and of views.image_size (or None) that returns the options of `views`
    that the network was made for, by name, and `input_size` if it takes no other size."""
    download_weights: Code | None = None
    """Function of ModelConfig that downloads the weights that model.weights 'timm' means."""
    is_layered: bool = False
    """Whether it has numbered layers and drop path."""


_BACKBONES = "bcl_ray.method.backbones"
_TIMM = "bcl_ray.method.timm_networks"
BACKBONES = Table(
    "model.backbone",
    *(
        Backbone(
            f"resnet{layers}",
            f"{layers} layers in three stages, for images of about 32 pixels",
            f"{_BACKBONES}:small_resnet",
            kaiming_linear=True,
        )
        for layers in (8, 20, 32)
    ),
    *(
        Backbone(
            name,
            "from torchvision, for images of about 224 pixels",
            f"{_BACKBONES}:torchvision_network",
            view_defaults=f"{_BACKBONES}:torchvision_inputs",
        )
        for name in ("resnet18", "resnet50", "resnext50_32x4d")
    ),
    Backbone(
        "timm/*",
        "any image classifier of timm by its name there, such as timm/vit_tiny_patch16_224; needs "
        "bcl-ray[timm]",
        f"{_TIMM}:timm_network",
        view_defaults=f"{_TIMM}:timm_inputs",
        download_weights=f"{_TIMM}:published_weights",
        is_layered=True,
    ),
)


@dataclass(frozen=True)
class SourceKind(Choice):
    """A kind of source, opened with a `bcl_ray.data.sources.SourceRequest`."""

    open: Code
    takes_lists: bool = False
    """Whether it accepts --split and --classes."""


_SOURCES = "bcl_ray.data.sources"
SOURCES = Table(
    "source",
    SourceKind(
        "digits", "the 1,797 digits of scikit-learn, 8 x 8 pixels", f"{_SOURCES}.arrays:digits"
    ),
    SourceKind(
        "cifar10", "CIFAR-10; without --from it is downloaded", f"{_SOURCES}.arrays:open_cifar"
    ),
    SourceKind(
        "cifar100", "CIFAR-100; without --from it is downloaded", f"{_SOURCES}.arrays:open_cifar"
    ),
    SourceKind(
        "folder",
        "a folder per split that holds a folder per class, or images with a CSV or JSON file of "
        "their classes, as data sets are published",
        f"{_SOURCES}.folder:open_folder",
        takes_lists=True,
    ),
    SourceKind(
        "list", "text files of paths and labels", f"{_SOURCES}.lists:open_list", takes_lists=True
    ),
    SourceKind(
        "parquet",
        "Parquet files of images and labels",
        f"{_SOURCES}.parquet:open_parquet",
        takes_lists=True,
    ),
    SourceKind(
        "huggingface",
        "a data set of Hugging Face: a folder of `save_to_disk`, or the hub's Parquet files",
        f"{_SOURCES}.huggingface:open_huggingface",
        takes_lists=True,
    ),
    SourceKind(
        "webdataset",
        "tars of images with .cls or .json files",
        f"{_SOURCES}.webdataset:open_webdataset",
        takes_lists=True,
    ),
)
