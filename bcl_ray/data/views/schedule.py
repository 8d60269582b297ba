"""In which order a batch's operations run, so that a device launches few kernels; numpy.

An image's own operations keep their order. Those of different images need not be aligned: a pass
takes every image that waits for an operation of one family, wherever in its own sequence that is.

Axes: S stages, M images, U different sequences among them, F families.
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
    """Operations of one family on some of a batch's images."""

    family: str
    kinds: Mapping[str, slice]
    """Where each operation's images lie in the family's arrays: one after another, none empty."""

    @property
    def rows(self) -> slice:
        """Where all of them lie."""
        found = list(self.kinds.values())
        return slice(found[0].start, found[-1].stop)

    def within(self, part: slice) -> dict[str, slice]:
        """The kinds of these rows, counted from the first of them."""
        cut = {
            name: slice(max(rows.start, part.start), min(rows.stop, part.stop))
            for name, rows in self.kinds.items()
        }
        return {
            name: slice(rows.start - part.start, rows.stop - part.start)
            for name, rows in cut.items()
            if rows.start < rows.stop
        }


def scheduled(
    kinds: Indices, amounts: NDArray[np.float32], size: int
) -> tuple[tuple[Pass, ...], dict[str, NDArray[Any]]]:
    """The passes of a plan, and what they need on the device.

    Args:
        kinds: indices in NAMES, or NONE, (S, M).
        amounts: of the operations, (S, M).
        size: views.image_size.

    Returns:
        The passes in order. Arrays of every family that occurs: `<family>` are its
        coefficients and `<family>_images` the images' positions, int64, row by row.
    """
    stages, images = np.nonzero(kinds.T != NONE)[::-1]  # image by image
    kind, amount = kinds[stages, images], amounts[stages, images]
    turns, order = _turns(images, _FAMILY_OF[kind], kinds.shape[1])
    sequence = np.lexsort((kind, turns))
    kind, amount = kind[sequence], amount[sequence]
    turns, images = turns[sequence], images[sequence]
    arrays: dict[str, NDArray[Any]] = {}
    position = np.empty(len(kind), np.int64)  # in the arrays of the family
    for number, family in enumerate(_FAMILY_NAMES):
        mine = np.flatnonzero(_FAMILY_OF[kind] == number)
        if len(mine):
            position[mine] = np.arange(len(mine))
            arrays[f"{family}_images"] = images[mine]
            arrays[family] = _coefficients(kind[mine], amount[mine], size)
    starts = np.flatnonzero(np.diff(turns * len(NAMES) + kind, prepend=-1))
    passes: list[dict[str, slice]] = [{} for _ in order]
    for start, count in zip(starts, np.diff(starts, append=len(kind)), strict=True):
        begin = int(position[start])
        passes[turns[start]][NAMES[kind[start]]] = slice(begin, begin + int(count))
    named = zip(order, passes, strict=True)
    return tuple(Pass(_FAMILY_NAMES[family], rows) for family, rows in named), arrays


def _coefficients(kinds: Indices, amounts: NDArray[np.float32], size: int) -> NDArray[Any]:
    """Of operations of one family, row by row."""
    found = np.unique(kinds)
    made = [COEFFICIENTS[NAMES[kind]](amounts[kinds == kind], size) for kind in found]
    rows = np.empty((len(kinds), *made[0].shape[1:]), made[0].dtype)
    for kind, part in zip(found, made, strict=True):
        rows[kinds == kind] = part
    return rows


def _turns(images: Indices, families: Indices, num_images: int) -> tuple[Indices, list[int]]:
    """The pass that every operation runs in, and each pass's family; operations image by image."""
    lengths = np.bincount(images, minlength=num_images)
    place = np.arange(len(images)) - np.repeat(lengths.cumsum() - lengths, lengths)
    longest = int(lengths.max(initial=0))
    sequences = np.full((num_images, longest + 1), NONE, np.int8)
    sequences[images, place] = families
    different, which = np.unique(
        sequences.view(f"V{longest + 1}").ravel(), return_inverse=True
    )  # rows as bytes: an axis of unique's own takes ten times as long
    rows = different.view(np.int8).reshape(-1, longest + 1).astype(np.int64)
    turns, order = np.zeros_like(rows), []
    for turn, (family, waiting, places) in enumerate(_merged(rows)):
        turns[waiting, places] = turn
        order.append(family)
    return turns[which[images], place], order


def _merged(sequences: Indices) -> Iterator[tuple[int, Indices, Indices]]:
    """Families in an order that holds every sequence, (U, S + 1), each of which ends with NONE.

    As many passes of a family are needed as the sequence has that is left with most of it. A pass
    which takes all such sequences a step further is one that has to come anyway. Where there is
    none, the family goes on of which most passes are to come: one too many is then least likely.
    Of equals, the one of the fewest launches comes first; families are numbered by that.

    Yields:
        The family, which sequences wait for it, and how far each of them is.
    """
    every = np.arange(len(sequences))
    counts = (sequences[:, :, None] == np.arange(len(_FAMILY_NAMES))).sum(1)  # (U, F)
    at = np.zeros(len(sequences), np.int64)
    while counts.any():
        waits = sequences[every, at][:, None] == np.arange(len(_FAMILY_NAMES))  # (U, F)
        most = counts.max(0)
        due = (most > 0) & ((counts < most) | waits).all(0)
        family = int((due if due.any() else waits.any(0) * most).argmax())
        waiting = np.flatnonzero(waits[:, family])
        yield family, waiting, at[waiting]
        counts[waiting, family] -= 1
        at[waiting] += 1
