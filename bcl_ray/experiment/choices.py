"""What an experiment takes by name, one table for each kind of thing, and how to add to them.

An entry has a name, one line of text, and the code that it stands for: an object, or its address
"package.module:object", which is imported when it is first used, so that a configuration can be
read and checked without torch. Options, help texts and errors take their lists from the tables.

A module that an experiment names under `plugins` adds entries when it is imported:

    from bcl_ray.experiment.choices import LOSSES, Loss

    LOSSES.add(Loss("focal", "focal loss", classification=focal_loss))
"""

import difflib
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from bcl_ray.machine.errors import UserError

Code = str | Callable[..., Any]


@dataclass(frozen=True)
class Choice:
    """One thing that can be chosen by name."""

    name: str
    text: str
    """One line, for help texts and documentation."""


EntryType = TypeVar("EntryType", bound=Choice)


class Table(Generic[EntryType]):
    """The things that one option chooses from, in the order in which they are listed.

    Args:
        option: as errors name it, such as "loss.kind".
        entries: those that are built in.
    """

    def __init__(self, option: str, *entries: EntryType) -> None:
        self.option = option
        self._entries = {entry.name: entry for entry in entries}

    def __iter__(self) -> Iterator[EntryType]:
        return iter(self._entries.values())

    def __getitem__(self, name: str) -> EntryType:
        """The entry of a name.

        Raises:
            ValueError: there is none; the nearest name is suggested.
        """
        if name not in self._entries:
            near = difflib.get_close_matches(name, self._entries, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise UserError(f"{self.option} '{name}' must be one of {', '.join(self.names)}{hint}")
        return self._entries[name]

    @property
    def names(self) -> tuple[str, ...]:
        """All names."""
        return tuple(self._entries)

    def checked(self, name: str) -> str:
        """The name, if there is an entry of it.

        Raises:
            ValueError: there is none.
        """
        return self[name].name

    def add(self, entry: EntryType) -> None:
        """Add an entry; the same one may be added again.

        Raises:
            ValueError: another entry has its name.
        """
        present = self._entries.setdefault(entry.name, entry)
        if present != entry:
            raise UserError(
                f"{self.option} '{entry.name}' is there already ({present.text}): "
                "give yours another name"
            )

    def described(self) -> str:
        """All entries with their texts."""
        return "; ".join(f"{entry.name}: {entry.text}" for entry in self)


def code(reference: Code) -> Any:
    """The object that an entry stands for; one given by its address is imported.

    Raises:
        ImportError: no such module, or one of its own imports fails.
        AttributeError: the module has no such object.
    """
    if not isinstance(reference, str):
        return reference
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def load_plugins(modules: Any) -> None:
    """Import modules that add entries; the current folder is looked in last.

    Raises:
        ValueError: a name that is no module's, or a module that fails; with its own error.
    """
    if isinstance(modules, str) or not isinstance(modules, Iterable):
        raise UserError(f"plugins ({modules}) must be a list of modules: [my_package.my_module]")
    here = str(Path.cwd())
    for name in modules:
        if here not in sys.path:  # an installed command does not look where it was typed
            sys.path.append(here)
        try:
            importlib.import_module(str(name))
        except Exception as error:
            raise UserError(
                f"plugins: module '{name}' cannot be imported ({type(error).__name__}: {error}); "
                "it must be installed, or lie in the current folder"
            ) from error


CONTRASTIVE = ("temperature", "contrastive_weight", "classification_weight", "tau", "anchor_mean")


@dataclass(frozen=True)
class Loss(Choice):
    """What `loss.kind` stands for; how the code is called: `bcl_ray.method.objectives`."""

    title: str = ""
    """As tables of results name it."""
    classification: Code = "bcl_ray.method.objectives:logit_adjusted"
    contrastive: Code | None = None
    """None: no contrastive loss, and so no contrastive views."""
    uses: tuple[str, ...] = ()
    """Those of the options of `loss` that matter to it, which `search` tries values of."""


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
        uses=CONTRASTIVE,
    ),
    Loss(
        "bcl",
        "logit-adjusted cross-entropy and the balanced contrastive loss",
        "BCL",
        contrastive="bcl_ray.method.objectives:balanced_contrastive",
        uses=CONTRASTIVE,
    ),
)


@dataclass(frozen=True)
class Backbone(Choice):
    """What `model.backbone` stands for; how the code is called: `bcl_ray.method.backbones`."""

    build: Code
    kaiming_linear: bool = False
    """Whether linear layers of classifier and projections begin as the published code for CIFAR
    has them, normal with variance 2 / fan-in; else as torch's, with a sixth of that."""


_SMALL = "bcl_ray.method.backbones:small_resnet"
_TORCHVISION = "bcl_ray.method.backbones:torchvision_network"
BACKBONES = Table(
    "model.backbone",
    Backbone("resnet8", "8 layers in three stages, for small images", _SMALL, kaiming_linear=True),
    Backbone(
        "resnet20", "20 layers in three stages, for small images", _SMALL, kaiming_linear=True
    ),
    Backbone(
        "resnet32", "32 layers in three stages, for small images", _SMALL, kaiming_linear=True
    ),
    Backbone("resnet18", "torchvision's", _TORCHVISION),
    Backbone("resnet50", "torchvision's", _TORCHVISION),
    Backbone("resnext50_32x4d", "torchvision's", _TORCHVISION),
)


@dataclass(frozen=True)
class SourceKind(Choice):
    """A kind of source; how the code is called: `bcl_ray.data.sources.SourceRequest`."""

    open: Code
    takes_lists: bool = False
    """Whether --split and --classes are for it."""


_OPEN = "bcl_ray.data.sources:open_"
SOURCES = Table(
    "source",
    SourceKind("digits", "scikit-learn's 1,797 digits, 8 x 8", f"{_OPEN}digits"),
    SourceKind("cifar10", "CIFAR-10; without --from it is downloaded", f"{_OPEN}cifar"),
    SourceKind("cifar100", "CIFAR-100; without --from it is downloaded", f"{_OPEN}cifar"),
    SourceKind("folder", "a folder per split, in it a folder per class", f"{_OPEN}folder"),
    SourceKind("list", "text files of paths and labels", f"{_OPEN}list", takes_lists=True),
    SourceKind(
        "parquet", "Parquet files of images and labels", f"{_OPEN}parquet", takes_lists=True
    ),
)
