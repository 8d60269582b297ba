"""Where predictions go: parts that appear whole, and what was asked, so that a killed job goes on.

<output>/request.json           model, input and options
<output>/listing/000000.parquet paths of a folder's images, a file per part
<output>/images.json            how many images there are; the listing is complete
<output>/parquet/part-000000.parquet    a row per image, in order; nothing else is in the folder
<output>/csv/part-000000.csv    the same, without embeddings
<output>/errors.csv             images that could not be read, and why
<output>/summary.json           numbers of all of them; written last
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from bcl_ray.experiment.metric_names import SHOT_GROUPS
from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files
from bcl_ray.storage.fence import Fence
from bcl_ray.use.predict.tables import counts_of

REQUEST, IMAGES, SUMMARY, ERRORS = "request.json", "images.json", "summary.json", "errors.csv"
COUNTS = b"bcl_ray.counts"  # in a part's footer
FOOTERS_AT_ONCE = 8
SHOWN = 10  # unreadable images that a summary has


@dataclass(frozen=True)
class Options:
    """What tables are to hold.

    Args:
        top: classes to name of each image, at most all.
        embeddings: the backbone's embeddings too.
        csv: tables as CSV too, without embeddings.
        batch_size: images that the network takes at once; it rounds by it.
        part_size: images per file, a multiple of batch_size.
    """

    top: int = 5
    embeddings: bool = False
    csv: bool = False
    batch_size: int = 128
    part_size: int = 4096

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            ValueError: naming the option.
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
    """What was asked; a job goes on only with the same, so that its parts fit together.

    Args:
        model: folder of the checkpoint; sha256: of its file.
        images: folder or URI of what is labelled.
        split: of shards; None: images are files.
        fingerprint: of shards.
        options: of the tables.
    """

    model: str
    sha256: str
    images: str
    split: str | None
    fingerprint: str | None
    options: Options

    def to_dict(self) -> dict[str, Any]:
        """Names and plain values, options among them."""
        content = asdict(self)
        options: dict[str, Any] = content.pop("options")
        return content | options


@dataclass(frozen=True)
class Summary:
    """What became of all images.

    Args:
        images: how many there were; unreadable: of them.
        groups: predicted images by shot group of the predicted class.
        confidence: sum of the predictions' probabilities, by group.
        first: name and reason of the first unreadable ones.
    """

    images: int = 0
    unreadable: int = 0
    groups: Mapping[str, int] = field(default_factory=dict)
    confidence: Mapping[str, float] = field(default_factory=dict)
    first: Sequence[tuple[str, str]] = ()


class Output:
    """A folder or URI of predictions.

    Args:
        uri: the folder.
        request: what is asked.
    """

    def __init__(self, uri: str, request: PredictionRequest) -> None:
        self.uri, self.request = uri, request
        self._fence: Fence
        self.listing = files.join(uri, "listing")
        self._parquet, self._csv = files.join(uri, "parquet"), files.join(uri, "csv")

    def check(self, *, resume: bool) -> None:
        """Refuse a folder that is taken.

        Raises:
            ValueError: it holds other predictions, or any while this is no resume.
        """
        try:
            begun = json.loads(files.read_bytes(files.join(self.uri, REQUEST)))
        except FileNotFoundError:
            return
        asked = self.request.to_dict()
        # The same checkpoint may lie elsewhere now.
        names = [name for name in asked if name != "model" and asked[name] != begun.get(name)]
        if names:
            what = "; ".join(f"{name} was {begun.get(name)}, now {asked[name]}" for name in names)
            raise UserError(f"{self.uri} holds other predictions ({what}): choose another folder")
        if not resume:
            raise UserError(
                f"{self.uri} holds predictions of these images by this model: go on with --resume, "
                "or choose another folder"
            )

    def begin(self, fence: Fence) -> None:
        """Claim the folder, unless it was.

        Args:
            fence: of the one process that has the folder, asked before each write.

        Raises:
            ValueError: another process has claimed it for something else.
        """
        self._fence = fence
        content = json.dumps(self.request.to_dict(), indent=1).encode()
        try:
            files.create_bytes(files.join(self.uri, REQUEST), content)
        except FileExistsError:
            self.check(resume=True)

    @property
    def images(self) -> int | None:
        """How many images there are, once that is known."""
        try:
            return int(json.loads(files.read_bytes(files.join(self.uri, IMAGES)))["images"])
        except FileNotFoundError:
            return None

    def note_images(self, total: int) -> None:
        """Note how many there are, when all of them are listed."""
        self._fence.check()
        files.write_bytes(files.join(self.uri, IMAGES), json.dumps({"images": total}).encode())

    def parts(self) -> int:
        """How many parts there are from the first one on; what a killed job left besides goes."""
        names = files.list_files(self._parquet)
        for name in names:
            if name.endswith(".tmp"):
                files.delete(files.join(self._parquet, name))
        return next(n for n in range(len(names) + 1) if _part(n, "parquet") not in names)

    def write(self, number: int, table: pa.Table) -> None:
        """Write a part; it is done when its Parquet file is there."""
        self._fence.check()
        if self.request.options.csv:
            plain = table.drop_columns(["embedding"] if self.request.options.embeddings else [])
            with files.open_write(files.join(self._csv, _part(number, "csv"))) as sink:
                pa_csv.write_csv(plain, sink)
        counted = table.replace_schema_metadata({COUNTS: json.dumps(counts_of(table))})
        with files.open_write(self._file(number)) as sink:
            pq.write_table(counted, sink, compression="zstd")

    def finish(self, parts: int) -> Summary:
        """Write errors.csv and summary.json of all parts; reads their footers."""
        self._fence.check()
        with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
            counts = list(pool.map(self._counts_of, range(parts)))
        errors = self._errors([n for n, of_part in enumerate(counts) if of_part["unreadable"]])
        first: list[tuple[str, str]] = []
        with files.open_write(files.join(self.uri, ERRORS)) as sink:
            sink.write(_csv_line("image", "error"))
            for name, reason in errors:
                sink.write(_csv_line(name, reason))
                if len(first) < SHOWN:
                    first.append((name, reason))
        found = Summary(
            images=sum(of_part["images"] for of_part in counts),
            unreadable=sum(of_part["unreadable"] for of_part in counts),
            groups=_added([of_part["groups"] for of_part in counts]),
            confidence=_added([of_part["confidence"] for of_part in counts]),
            first=first,
        )
        text = json.dumps(asdict(found), indent=1, ensure_ascii=False)
        files.write_bytes(files.join(self.uri, SUMMARY), text.encode())
        return found

    def _errors(self, parts: Sequence[int]) -> Iterator[tuple[str, str]]:
        for number in parts:
            data = pa.BufferReader(files.read_bytes(self._file(number)))
            key = pq.read_schema(data).names[0]
            table = pq.read_table(data, columns=[key, "error"])
            for row in table.filter(table["error"].is_valid()).to_pylist():
                yield str(row[key]), row["error"]

    def _counts_of(self, number: int) -> dict[str, Any]:
        def read(filesystem: Any, path: str) -> Any:
            with filesystem.open_input_file(path) as file:
                return json.loads(pq.read_schema(file).metadata[COUNTS])

        return dict(files.with_filesystem(read, self._file(number)))

    def _file(self, number: int) -> str:
        return files.join(self._parquet, _part(number, "parquet"))


def _part(number: int, suffix: str) -> str:
    return f"part-{number:06d}.{suffix}"


def _added(counts: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The sums by name, in the order of shot groups."""
    names = [name for name in SHOT_GROUPS if any(name in one for one in counts)]
    return {name: sum(one.get(name, 0) for one in counts) for name in names}


def _csv_line(*cells: str) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue().encode()
