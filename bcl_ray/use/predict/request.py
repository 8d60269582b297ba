"""The request of a prediction: model, input and options."""

from dataclasses import asdict, dataclass
from typing import Any

from bcl_ray.machine.errors import UserError


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
