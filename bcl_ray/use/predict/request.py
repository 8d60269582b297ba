"""The request of a prediction: model, input and options."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from bcl_ray.data.shards import MANIFEST, read_manifest
from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files, paths
from bcl_ray.use.models import OpenModel
from bcl_ray.use.predict.inputs import Shards, shards_of


@dataclass(frozen=True)
class PredictionOptions:
    """Options of the tables."""

    top: int = 5  # classes to name per image, at most all
    embeddings: bool = False  # add the backbone's embeddings
    csv: bool = False  # write CSV too, without embeddings
    batch_size: int = 128  # images per batch of the network; it affects the rounding of results
    part_size: int = 4096  # images per file, a multiple of batch_size

    def check(self) -> None:
        """Refuse values that are out of range.

        Raises:
            ValueError: An option is out of range; the message names it.
        """
        for option, value in (("--top", self.top), ("--batch-size", self.batch_size)):
            if value < 1:
                raise UserError(f"{option} ({value}) must be at least 1")
        if self.part_size < 1 or self.part_size % self.batch_size:
            raise UserError(
                f"--part-size ({self.part_size}) must be a multiple of --batch-size "
                f"({self.batch_size})"
            )


@dataclass(frozen=True)
class PredictionRequest:
    """All that determines the tables: a prediction is only resumed with the same request."""

    model: str  # folder of the checkpoint
    sha256: str  # of the checkpoint's file
    images: str  # folder or URI of images or shards
    split: str | None  # of shards; None: the input is image files
    fingerprint: str | None  # of shards
    options: PredictionOptions

    def to_dict(self) -> dict[str, Any]:
        """The request as one flat dictionary, with the options in it."""
        content = asdict(self)
        options: dict[str, Any] = content.pop("options")
        return content | options


def open_shards(images: str, split: str | None, default_split: str) -> Shards | None:
    """The shards to label; None if the input is image files.

    Args:
        images: Folder or URI of images or shards.
        split: Split of shards, as --split names it.
        default_split: The one to take without --split.

    Raises:
        ValueError: There is no input, the shards have no such split, or --split is given for image
            files.
    """
    if files.exists(files.join(images, MANIFEST)):
        return shards_of(images, read_manifest(images), split or default_split)
    if split is not None:
        raise UserError(f"--split is for shards, and {images} holds no {MANIFEST}")
    if next(files.walk(images), None) is None:
        files.check_usable(images, "list")
        if paths.is_local(images) and not files.exists(images):
            raise UserError(
                f"INPUT {paths.for_display(images)} does not exist: name a folder of images"
            )
        raise UserError(f"{images} holds no files: name a folder of images, or of shards")
    return None


def make_request(
    model: OpenModel, images: str, shards: Shards | None, options: PredictionOptions
) -> PredictionRequest:
    """The request that a command makes.

    Args:
        model: The model.
        images: Folder or URI of images or shards.
        shards: The shards; None: the input is image files.
        options: Options of the tables; `top` is limited to the number of classes.
    """
    return PredictionRequest(
        model=model.uri,
        sha256=model.sha256,
        images=images,
        split=shards.split if shards else None,
        fingerprint=shards.fingerprint if shards else None,
        options=replace(options, top=min(options.top, len(model.class_names))),
    )
