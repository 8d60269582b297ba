"""What a source is: class names, and splits that stream encoded bytes.

Axes, here and in the modules beside: N rows of a split, K classes.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files

Rows = NDArray[np.int64]
Content = bytes | FileNotFoundError  # a missing file is a fault of its row, not of the whole


@dataclass(frozen=True)
class SourceSplit:
    """One split, its rows in the source's order."""

    labels: Rows  # (N,); anything outside 0..K-1 is a fault
    read: Callable[[Rows], Iterator[Content]]  # encoded bytes of rising rows, in their order
    where: Callable[[int], str]  # what a person calls a row
    random_order: bool  # whether a class's rows come in random order, so that the first n are fair
    ids: Rows | None = None  # (N,); None: the row's index
    faults: Mapping[int, str] = field(default_factory=dict)  # known without reading the image


@dataclass(frozen=True)
class Source:
    """Named classes and named splits."""

    name: str
    class_names: tuple[str, ...]
    splits: Mapping[str, SourceSplit]


def names_of_classes(classes: str | None, train_labels: Rows) -> tuple[str, ...]:
    """Class names of a file, or the numbers up to the largest training label."""
    if classes is not None:
        return tuple(line.strip() for line in read_text(classes).strip().split("\n"))
    largest = int(train_labels.max(initial=-1))
    if largest >= len(train_labels):
        raise UserError(
            f"label {largest} stands for {largest + 1} classes, and there are only "
            f"{len(train_labels)} training images: some class has none"
        )
    return tuple(str(label) for label in range(largest + 1))


def read_text(uri: str) -> str:
    """A whole UTF-8 file."""
    try:
        return files.read_bytes(uri).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{uri} is not UTF-8 text (byte {error.start})") from None
