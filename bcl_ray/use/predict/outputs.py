"""The output folder of a prediction, from which a killed job can be resumed.

<output>/request.json           model, input and options
<output>/listing/000000.parquet paths of the input's files, one list per part
<output>/images.json            number of images; the listing is complete
<output>/parquet/part-000000.parquet    one row per image, in order; the folder holds nothing else
<output>/csv/part-000000.csv    the same rows, without embeddings
<output>/errors.csv             images that could not be read, and the reasons
<output>/summary.json           counts over all images; written last
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from bcl_ray.experiment.metric_names import SHOT_GROUPS
from bcl_ray.machine.csv_text import csv_text
from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files
from bcl_ray.storage.fence import Fence
from bcl_ray.use.predict.listing import ListFiles
from bcl_ray.use.predict.request import PredictionRequest
from bcl_ray.use.predict.tables import counts_of

REQUEST, IMAGES, SUMMARY, ERRORS = "request.json", "images.json", "summary.json", "errors.csv"
COUNTS = b"bcl_ray.counts"  # metadata of a part's Parquet file, from `counts_of`
PARALLEL_READS = 8
MAX_ERRORS = 10  # unreadable images that a summary names


@dataclass(frozen=True)
class Summary:
    """Counts over all images."""

    images: int = 0
    unreadable: int = 0
    groups: Mapping[str, int] = field(default_factory=dict)  # images by predicted shot group
    confidence: Mapping[str, float] = field(default_factory=dict)  # sums of probability_1 by group
    first: Sequence[tuple[str, str]] = ()  # name and reason of the first unreadable images


class Output:
    """The output folder of a prediction.

    Args:
        uri: The folder.
        request: What is predicted.
    """

    def __init__(self, uri: str, request: PredictionRequest) -> None:
        self.uri, self.request = uri, request
        self.lists = ListFiles(files.join(uri, "listing"), request.options.part_size)
        self._parquet, self._csv = files.join(uri, "parquet"), files.join(uri, "csv")
        self._fence: Fence

    def check(self, *, resume: bool) -> None:
        """Refuse a folder that holds predictions, unless these are resumed.

        Raises:
            ValueError: The folder holds other predictions, or the same ones without `resume`.
        """
        try:
            earlier = json.loads(files.read_bytes(files.join(self.uri, REQUEST)))
        except FileNotFoundError:
            return
        request = self.request.to_dict()
        del request["model"]  # the checkpoint may have been moved; its hash identifies it
        differences = "; ".join(
            f"{name} was {earlier.get(name)}, now {value}"
            for name, value in request.items()
            if value != earlier.get(name)
        )
        if differences:
            raise UserError(
                f"{self.uri} holds other predictions ({differences}): choose another folder"
            )
        if not resume:
            raise UserError(
                f"{self.uri} holds predictions of these images by this model: go on with --resume, "
                "or choose another folder"
            )

    def begin(self, fence: Fence) -> None:
        """Write the request, unless the folder has it from an earlier job.

        Args:
            fence: Fence of this process's lease, checked before each write.

        Raises:
            ValueError: Another process has begun other predictions in the folder.
        """
        self._fence = fence
        content = json.dumps(self.request.to_dict(), indent=1).encode()
        try:
            files.create_bytes(files.join(self.uri, REQUEST), content)
        except FileExistsError:
            self.check(resume=True)

    @property
    def images(self) -> int | None:
        """The number of images; None until the listing is complete."""
        try:
            return int(json.loads(files.read_bytes(files.join(self.uri, IMAGES)))["images"])
        except FileNotFoundError:
            return None

    def list_images(self) -> Iterator[int]:
        """List the files of the input, unless that is done, and record their number at the end.

        Yields:
            The number of images so far; the last one is of all.

        Raises:
            ValueError: There are no files.
            LeaseLostError: Another process has taken over.
        """
        total = self.images
        if total is not None:
            yield total
            return
        for total in self.lists.extend(self.request.images, self._fence.check):
            yield total
        self._fence.check()
        files.write_bytes(files.join(self.uri, IMAGES), json.dumps({"images": total}).encode())

    def finished_parts(self) -> int:
        """The number of parts without a gap from the first on; deletes temporary files."""
        names = files.list_files(self._parquet)
        for name in names:
            if name.endswith(".tmp"):
                files.delete(files.join(self._parquet, name))
        return next(n for n in range(len(names) + 1) if _part_name(n, "parquet") not in names)

    def write(self, number: int, table: pa.Table) -> None:
        """Write a part; its Parquet file comes last and makes it complete."""
        self._fence.check()
        if self.request.options.csv:
            plain = table.drop_columns(["embedding"] if self.request.options.embeddings else [])
            with files.open_write(files.join(self._csv, _part_name(number, "csv"))) as sink:
                pa_csv.write_csv(plain, sink)
        table = table.replace_schema_metadata({COUNTS: json.dumps(counts_of(table))})
        with files.open_write(self._file(number)) as sink:
            pq.write_table(table, sink, compression="zstd")

    def finish(self, parts: int) -> Summary:
        """Write errors.csv and summary.json over all parts."""
        self._fence.check()
        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            counts = list(pool.map(self._read_counts, range(parts)))
        with_errors = [number for number, part in enumerate(counts) if part["unreadable"]]
        summary = Summary(
            images=sum(part["images"] for part in counts),
            unreadable=sum(part["unreadable"] for part in counts),
            groups=_sum_by_group([part["groups"] for part in counts]),
            confidence=_sum_by_group([part["confidence"] for part in counts]),
            first=self._write_errors(with_errors),
        )
        text = json.dumps(asdict(summary), indent=1, ensure_ascii=False)
        files.write_bytes(files.join(self.uri, SUMMARY), text.encode())
        return summary

    def _write_errors(self, parts: Sequence[int]) -> list[tuple[str, str]]:
        """Write errors.csv, and return its first rows."""
        first: list[tuple[str, str]] = []
        with files.open_write(files.join(self.uri, ERRORS)) as sink:
            sink.write(csv_text([("image", "error")]).encode())
            for name, reason in self._read_errors(parts):
                sink.write(csv_text([(name, reason)]).encode())
                if len(first) < MAX_ERRORS:
                    first.append((name, reason))
        return first

    def _read_errors(self, parts: Sequence[int]) -> Iterator[tuple[str, str]]:
        for number in parts:
            data = pa.BufferReader(files.read_bytes(self._file(number)))
            key = pq.read_schema(data).names[0]
            table = pq.read_table(data, columns=[key, "error"])
            for row in table.filter(table["error"].is_valid()).to_pylist():
                yield str(row[key]), row["error"]

    def _read_counts(self, number: int) -> dict[str, Any]:
        """The counts of a part, from the footer of its file."""

        def read(filesystem: Any, path: str) -> Any:
            with filesystem.open_input_file(path) as file:
                return json.loads(pq.read_schema(file).metadata[COUNTS])

        return dict(files.with_filesystem(read, self._file(number)))

    def _file(self, number: int) -> str:
        return files.join(self._parquet, _part_name(number, "parquet"))


def _part_name(number: int, suffix: str) -> str:
    return f"part-{number:06d}.{suffix}"


def _sum_by_group(counts: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The sum for each group that occurs, in the order of SHOT_GROUPS."""
    groups = [group for group in SHOT_GROUPS if any(group in part for part in counts)]
    return {group: sum(part.get(group, 0) for part in counts) for group in groups}
