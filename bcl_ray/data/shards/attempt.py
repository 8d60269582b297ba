"""What an attempt to write a data set has done, so that another one can go on after a kill.

It is kept in <target>/progress/ until the data set is complete:

identity.txt               hash of all that determines the data set's bytes
checked-<split>-<part>     sizes, checksums and faults of a part of the source's rows (`checking`)
copied-<split>-<part>      the images of this part, unless the source can be read in any order
written-<shard>            rows, bytes and SHA-256 of a shard that is complete (`split_writer`)

Tasks write these files themselves, each as a whole, once its work is complete.
"""

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from bcl_ray.data.shards.manifest import INCOMPLETE, MANIFEST
from bcl_ray.data.sources import read_ahead
from bcl_ray.machine.parallel import ParallelMap, Progress
from bcl_ray.storage import files, paths
from bcl_ray.storage.fence import Fence

FOLDER, IDENTITY = "progress", "identity.txt"
_PARTIAL = re.compile(r"\.(.+)\.[0-9a-f]{8}\.tmp")  # what `files.open_write` writes first
NOTE = b"`bcl-ray shard` is writing here, or was interrupted; run it again to go on.\n"


@dataclass(frozen=True)
class Attempt:
    """An attempt to write a data set; may be pickled."""

    target: str
    """Absolute path or URI of the data set's folder."""
    fence: Fence
    """Checked before each write."""

    @property
    def folder(self) -> str:
        """The folder of its records."""
        return files.join(self.target, FOLDER)

    def begin(self, identity: str, notify: Callable[[str], None]) -> None:
        """Keep what an earlier attempt at the same data set has done, and delete all else.

        Args:
            identity: Hash of all that determines the data set's bytes.
            notify: Called with a message for the user if there was an earlier attempt.
        """
        names = files.list_files(self.folder)
        shown = paths.for_display(self.target)
        if IDENTITY in names and self.read(IDENTITY) == identity.encode():
            checked, written = (
                sum(name.startswith(kind) for name in names) for kind in ("checked-", "written-")
            )
            notify(
                f"{shown}: going on after an interrupted attempt, which has checked {checked:,} "
                f"parts of the source, and written {written:,} shards"
            )
        elif names:
            notify(
                f"{shown}: an interrupted attempt had other options, another source or another "
                "pyarrow; starting over"
            )
            files.delete_folder(self.folder)
            names = {}
        files.write_bytes(files.join(self.target, INCOMPLETE), NOTE)
        self.write(IDENTITY, identity.encode())
        for name in files.list_files(self.target):
            if is_output_name(name) and f"written-{name}" not in names:
                files.delete(files.join(self.target, name))

    def read(self, name: str) -> bytes:
        """The content of a record."""
        return files.read_bytes(files.join(self.folder, name))

    def write(self, name: str, content: bytes) -> None:
        """Write a record.

        Raises:
            LeaseLostError: Another process has taken over the target.
        """
        self.fence.check()
        files.write_bytes(files.join(self.folder, name), content)

    def forget(self) -> None:
        """Delete all records, so that the next attempt starts over."""
        files.delete_folder(self.folder)

    def end(self) -> None:
        """Delete all that is not part of the data set."""
        self.forget()
        files.delete(files.join(self.target, INCOMPLETE))


@dataclass(frozen=True)
class ShardWork:
    """The work of an attempt: tasks that are independent of each other."""

    attempt: Attempt
    run: ParallelMap
    """Runs the tasks, here or elsewhere."""
    progress: Progress

    def results(
        self,
        kind: str,
        parts: Collection[str],
        task_of: Callable[[str], Any],
        function: Callable[[Any], Any],
        parse: Callable[[bytes], Any],
    ) -> Iterator[tuple[str, Any]]:
        """The result of each part; first come those that an earlier attempt has recorded.

        Args:
            kind: What records of such results are called before the part's name.
            parts: Names of the parts.
            task_of: Makes the task of a part.
            function: Does a task, and records its result.
            parse: Makes a result of the content of its record.
        """
        records = {part: f"{kind}-{part}" for part in parts}
        names = files.list_files(self.attempt.folder)
        done = [part for part, record in records.items() if record in names]
        contents = read_ahead(self.attempt.read, [records[part] for part in done])
        yield from zip(done, map(parse, contents), strict=True)
        waiting = [part for part, record in records.items() if record not in names]
        for position, result in self.run(function, map(task_of, waiting)):
            yield waiting[position], result


def is_output_name(name: str) -> bool:
    """Whether a file has a name like those of a data set, whole or temporary, whoever wrote it.

    Only the manifest itself has a check of its own.
    """
    partial = _PARTIAL.fullmatch(name)
    if partial is None:
        return is_table_name(name) or name.startswith("quarantine-")
    return partial[1] == MANIFEST or is_output_name(partial[1])


def is_table_name(name: str) -> bool:
    """Whether a file has a name like those of shards."""
    return name.endswith(".parquet") and not name.startswith(".")  # ._x: made by macOS
