"""The shards of a split as columns: 56 bytes for each, however many there are."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray


class ShardInfo(NamedTuple):
    """One Parquet file."""

    file: str
    """Name in the data set's folder."""
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class NumberedNames(Sequence[str]):
    """Names of a split's files, which follow from their numbers; small, however many there are."""

    split: str
    number: int

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.number))]
        return f"{self.split}-{range(self.number)[index]:05d}.parquet"

    def __len__(self) -> int:
        return self.number


@dataclass(frozen=True, eq=False)
class ShardColumns:
    """The shards of a split, in order."""

    names: Sequence[str]
    """Names of the files; a `NumberedNames`, or a tuple if they follow no pattern."""
    rows: NDArray[np.int64]
    """Rows of each, (shards,)."""
    bytes: NDArray[np.int64]
    """Size of each file, (shards,)."""
    sha256: NDArray[np.uint8]
    """SHA-256 of each file, (shards, 32)."""

    @classmethod
    def of(cls, infos: Iterable[ShardInfo]) -> "ShardColumns":
        """The columns of some shards."""
        infos = list(infos)
        hashes = b"".join(bytes.fromhex(info.sha256) for info in infos)
        return cls(
            _numbered([info.file for info in infos]),
            np.array([info.rows for info in infos], np.int64),
            np.array([info.bytes for info in infos], np.int64),
            np.frombuffer(hashes, np.uint8).reshape(len(infos), 32),
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> ShardInfo:
        return ShardInfo(
            self.names[index],
            int(self.rows[index]),
            int(self.bytes[index]),
            self.sha256[index].tobytes().hex(),
        )

    def __iter__(self) -> Iterator[ShardInfo]:
        return (self[index] for index in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ShardColumns):
            return NotImplemented
        return list(self.names) == list(other.names) and all(
            np.array_equal(getattr(self, name), getattr(other, name))
            for name in ("rows", "bytes", "sha256")
        )

    def __hash__(self) -> int:
        return hash(self.sha256.tobytes())


def _numbered(files: list[str]) -> Sequence[str]:
    """The same names as `NumberedNames` if they are numbered, otherwise as a tuple."""
    names = NumberedNames(files[0].rpartition("-")[0] if files else "", len(files))
    return names if list(names) == files else tuple(files)
