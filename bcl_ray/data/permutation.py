"""Random permutations that are computed where they are needed, instead of stored.

A billion images are in about 13 million row groups. Shuffling an array of these in every epoch, on
every worker, takes seconds and 150 MB (measured 2026-11). Here only the requested elements are
computed, and the inverse permutation costs the same.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bcl_ray.data.keyed import mix

Numbers = NDArray[np.int64]

ROUNDS = 8  # assumption: twice what suffices for large sizes, so that small ones are mixed as well


class Permutation:
    """A permutation of 0 .. size - 1 that depends only on its size and its key.

    It is a Feistel network. A number is a cell (row, column) of the smallest grid that has enough
    cells; each round shifts the row by a hash of the column, then the column by a hash of the row.
    If the result is a cell beyond the last number, the network is applied again, until it is not
    (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002).

    Args:
        size: How many numbers, at least 1.
        key: Integers of at least 0 that select the permutation.
    """

    def __init__(self, size: int, key: tuple[int, ...]) -> None:
        self.size = size
        self._columns = int(np.ceil(np.sqrt(size)))
        self._rows = -(-size // self._columns)
        words = np.random.SeedSequence(key).generate_state(2 * ROUNDS, np.uint64)
        self._keys = words.reshape(ROUNDS, 2)

    def at(self, positions: ArrayLike) -> Numbers:
        """The numbers at these positions, (n,)."""
        return self._apply(self._forward, positions)

    def positions(self, numbers: ArrayLike) -> Numbers:
        """The positions of these numbers, (n,): the inverse of `at`."""
        return self._apply(self._backward, numbers)

    def _apply(self, network: Callable[[Numbers], Numbers], numbers: ArrayLike) -> Numbers:
        cells = network(np.atleast_1d(np.asarray(numbers, dtype=np.int64)))
        while (outside := cells >= self.size).any():
            cells[outside] = network(cells[outside])
        return cells

    def _forward(self, cells: Numbers) -> Numbers:
        row, column = np.divmod(cells, self._columns)
        for row_key, column_key in self._keys:
            row = (row + _hash(column, row_key, self._rows)) % self._rows
            column = (column + _hash(row, column_key, self._columns)) % self._columns
        return row * self._columns + column

    def _backward(self, cells: Numbers) -> Numbers:
        row, column = np.divmod(cells, self._columns)
        for row_key, column_key in self._keys[::-1]:
            column = (column - _hash(row, column_key, self._columns)) % self._columns
            row = (row - _hash(column, row_key, self._rows)) % self._rows
        return row * self._columns + column


def _hash(numbers: Numbers, key: np.uint64, below: int) -> Numbers:
    return (mix(numbers.astype(np.uint64) + key) % np.uint64(below)).astype(np.int64)
