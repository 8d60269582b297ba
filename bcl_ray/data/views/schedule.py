"""The order in which a batch's operations run, such that a device launches few kernels.

The operations of one image keep their order; those of different images are independent. So a pass
runs the next operation of all images for which it belongs to a certain family, wherever in their
own sequences these images are.

Axes: S stages, M images, U different sequences of families, F families.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bcl_ray.data.views.coefficients import COEFFICIENTS, FAMILIES, FAMILY, NAMES

NONE = -1  # no operation
Indices = NDArray[np.int64]

_FAMILY_NAMES = tuple(FAMILIES)
_FAMILY_OF = np.array([_FAMILY_NAMES.index(FAMILY[name]) for name in NAMES])


class Pass(NamedTuple):
    """Operations of one family on some images of a batch."""

    family: str
    kinds: Mapping[str, slice]
    """Rows of each operation in the family's arrays: contiguous, in order, and not empty."""

    @property
    def rows(self) -> slice:
        """Rows of all operations of the pass."""
        slices = list(self.kinds.values())
        return slice(slices[0].start, slices[-1].stop)

    def within(self, part: slice) -> dict[str, slice]:
        """The operations in a part of the rows, which are then relative to the part's start."""
        inner = {
            name: slice(max(rows.start, part.start), min(rows.stop, part.stop))
            for name, rows in self.kinds.items()
        }
        return {
            name: slice(rows.start - part.start, rows.stop - part.start)
            for name, rows in inner.items()
            if rows.start < rows.stop
        }


def build_passes(
    kinds: Indices, amounts: NDArray[np.float32], size: int
) -> tuple[tuple[Pass, ...], dict[str, NDArray[Any]]]:
    """Arrange the operations of a batch in passes.

    Args:
        kinds: Each image's operation in each stage, an index in NAMES or NONE, (S, M).
        amounts: Amounts of the operations, (S, M).
        size: views.image_size.

    Returns:
        The passes, in order; and for every family that occurs, the arrays `<family>`, the
        coefficients, and `<family>_images`, the positions of the images, int64. Both have a row
        for each operation.
    """
    # Below, arrays have an element for each operation: first image by image, then pass by pass.
    stages, images = np.nonzero(kinds.T != NONE)[::-1]
    kind, amount = kinds[stages, images], amounts[stages, images]
    passes, pass_families = _assign_passes(images, _FAMILY_OF[kind], kinds.shape[1])
    order = np.lexsort((kind, passes))
    kind, amount = kind[order], amount[order]
    passes, images = passes[order], images[order]
    arrays: dict[str, NDArray[Any]] = {}
    row = np.empty(len(kind), np.int64)  # in the arrays of the operation's family
    for number, family in enumerate(_FAMILY_NAMES):
        members = np.flatnonzero(_FAMILY_OF[kind] == number)
        if len(members):
            row[members] = np.arange(len(members))
            arrays[f"{family}_images"] = images[members]
            arrays[family] = _coefficients(kind[members], amount[members], size)
    # A slice for each run of operations of the same pass and kind.
    starts = np.flatnonzero(np.diff(passes * len(NAMES) + kind, prepend=-1))
    slices: list[dict[str, slice]] = [{} for _ in pass_families]
    for start, count in zip(starts, np.diff(starts, append=len(kind)), strict=True):
        begin = int(row[start])
        slices[passes[start]][NAMES[kind[start]]] = slice(begin, begin + int(count))
    return tuple(
        Pass(_FAMILY_NAMES[family], rows)
        for family, rows in zip(pass_families, slices, strict=True)
    ), arrays


def _coefficients(kinds: Indices, amounts: NDArray[np.float32], size: int) -> NDArray[Any]:
    """Coefficients of operations of one family, a row for each operation."""
    occurring = np.unique(kinds)
    parts = [COEFFICIENTS[NAMES[kind]](amounts[kinds == kind], size) for kind in occurring]
    rows = np.empty((len(kinds), *parts[0].shape[1:]), parts[0].dtype)
    for kind, part in zip(occurring, parts, strict=True):
        rows[kinds == kind] = part
    return rows


def _assign_passes(
    images: Indices, families: Indices, num_images: int
) -> tuple[Indices, list[int]]:
    """Assign operations to passes.

    Args:
        images: The image of each operation, rising.
        families: The family of each operation.
        num_images: M.

    Returns:
        The pass of each operation, and the family of each pass.
    """
    lengths = np.bincount(images, minlength=num_images)
    position = np.arange(len(images)) - np.repeat(lengths.cumsum() - lengths, lengths)
    longest = int(lengths.max(initial=0))
    sequences = np.full((num_images, longest + 1), NONE, np.int8)
    sequences[images, position] = families
    unique, sequence_of = np.unique(
        sequences.view(f"V{longest + 1}").ravel(), return_inverse=True
    )  # a row as one value of bytes: np.unique with axis=0 takes ten times as long
    rows = unique.view(np.int8).reshape(-1, longest + 1).astype(np.int64)
    passes, pass_families = np.zeros_like(rows), []
    for number, (family, waiting, positions) in enumerate(_merge(rows)):
        passes[waiting, positions] = number
        pass_families.append(family)
    return passes[sequence_of[images], position], pass_families


def _merge(sequences: Indices) -> Iterator[tuple[int, Indices, Indices]]:
    """Merge sequences of families into one short sequence that contains each of them, in order.

    The next pass is chosen greedily. Let most(f) be the largest number of operations of family f
    that any sequence still has, so that at least most(f) further passes of f are needed. A pass of
    f is free if it advances all sequences that have most(f) of them, since it is needed anyway. A
    free family is chosen if there is one, otherwise the one with the largest most(f), for which an
    unnecessary pass is least likely. Of equals, the family with the fewest GPU kernels is chosen,
    which has the lowest number.

    Args:
        sequences: The sequences, each of which ends with NONE, (U, S + 1).

    Yields:
        The family of the next pass, the sequences whose next operation is of this family, and the
        position of that operation in each of them.
    """
    all_sequences = np.arange(len(sequences))
    remaining = (sequences[:, :, None] == np.arange(len(_FAMILY_NAMES))).sum(1)  # (U, F)
    position = np.zeros(len(sequences), np.int64)
    while remaining.any():
        waits = sequences[all_sequences, position][:, None] == np.arange(len(_FAMILY_NAMES))
        most = remaining.max(0)  # (F,)
        is_free = (most > 0) & ((remaining < most) | waits).all(0)
        family = int((is_free if is_free.any() else waits.any(0) * most).argmax())
        waiting = np.flatnonzero(waits[:, family])
        yield family, waiting, position[waiting]
        remaining[waiting, family] -= 1
        position[waiting] += 1
