"""What is to be labelled: images in a fixed order, any rows of which can be read at any time.

Nothing is held per image. The images of shards follow from the manifest by arithmetic; those of
a folder or prefix are listed once, into files that `Folder` reads again where it is used.

Axes: N images of a batch, H = W = views.image_size.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bcl_ray.data.decode import Pixels, decode
from bcl_ray.data.image_check import FORMATS, checker_settings, image_size
from bcl_ray.data.layout import Layout
from bcl_ray.data.shards import MAX_PIXELS, Manifest, read_row_group
from bcl_ray.data.views.host import eval_view, one_thread, resized_sides
from bcl_ray.experiment.options import ViewsConfig
from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files
from bcl_ray.storage.paths import is_local

FILES_AT_ONCE = 8  # read by a task, which hides an object store's latency
LABELLED = (*FORMATS, "GIF")  # the first picture of it

Image = bytes | str  # an encoded file, or why there is none


@dataclass(frozen=True)
class Rows:
    """Some images, N of them, and what they are called.

    Args:
        keys: columns of N values: path; or id and true_class.
        images: N.
    """

    keys: dict[str, list[Any]]
    images: list[Image]


class InputImages(Protocol):
    """All images that are to be labelled, in their order."""

    @property
    def total(self) -> int:
        """How many there are."""

    def load(self, start: int, stop: int) -> Rows:
        """Those from `start` on, `stop` not among them."""


@dataclass(frozen=True)
class Folder:
    """Files below a folder or prefix, as `list_folder` has listed them.

    Args:
        uri: of the folder.
        listing: folder or URI of the lists.
        per_list: files in each list but the last.
        total: files.
    """

    uri: str
    listing: str
    per_list: int
    total: int

    def load(self, start: int, stop: int) -> Rows:
        """Rows of one list; a file that is gone, or that may not be read, has that reason."""
        number, first = divmod(start, self.per_list)
        paths = _read_list(self.listing, number)[first : first + stop - start]
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            return Rows({"path": paths}, list(pool.map(self._read, paths)))

    def _read(self, path: str) -> Image:
        try:
            return files.read_bytes(files.file_in(self.uri, path))
        except FileNotFoundError:
            return "it is no longer there"
        except PermissionError:
            if not is_local(self.uri):  # more likely the credentials of all of them
                raise
            return "this user may not read it"


@dataclass(frozen=True)
class Shards:
    """The images of one split of a data set.

    Args:
        uri: folder or URI of the shards.
        files: the shards' names, in the manifest's order.
        layout: rows of the shards.
        class_names: (K,).
    """

    uri: str
    files: tuple[str, ...]
    layout: Layout
    class_names: tuple[str, ...]

    @property
    def total(self) -> int:
        """Rows of the split."""
        return self.layout.rows

    def load(self, start: int, stop: int) -> Rows:
        """Rows of any row groups."""
        groups = np.arange(self._group_of(start), self._group_of(stop - 1) + 1)
        shards, inner, first, _ = self.layout.locate(groups)
        tables = [
            read_row_group(files.join(self.uri, self.files[shard]), group)
            for shard, group in zip(shards.tolist(), inner.tolist(), strict=True)
        ]
        table = pa.concat_tables(tables).slice(start - int(first[0]), stop - start)
        names = [self.class_names[label] for label in table["label"].to_pylist()]
        return Rows(
            {"id": table["id"].to_pylist(), "true_class": names}, table["image"].to_pylist()
        )

    def _group_of(self, row: int) -> int:
        """The row group, counted over the split, that holds a row."""
        shard = int(np.searchsorted(self.layout.first_rows, row, side="right")) - 1
        within = row - int(self.layout.first_rows[shard])
        return int(self.layout.first_groups[shard]) + within // self.layout.row_group_rows


def shards_of(uri: str, manifest: Manifest, split: str) -> Shards:
    """A split of a data set.

    Raises:
        ValueError: it has none of that name.
    """
    if split not in manifest.splits:
        raise UserError(f"--split '{split}' is not in {uri}: there is {', '.join(manifest.splits)}")
    found = manifest.splits[split]
    layout = Layout.of(found)
    return Shards(uri, tuple(shard.file for shard in found.shards), layout, manifest.class_names)


def list_folder(uri: str, listing: str, per_list: int, progress: Callable[[int], None]) -> Folder:
    """List the files below a folder or prefix, in the order of their paths' bytes.

    Args:
        uri: the folder.
        listing: where the lists go.
        per_list: files in each; so many paths are held.
        progress: called with the number of files, after each list.

    Raises:
        ValueError: there are none.
    """
    paths, total = files.walk(uri), 0
    for number in itertools.count():
        chunk = list(itertools.islice(paths, per_list))
        if not chunk:
            break
        with files.open_write(_list_file(listing, number)) as sink:
            pq.write_table(pa.table({"path": chunk}), sink, compression="zstd")
        total += len(chunk)
        progress(total)
    if total == 0:
        raise UserError(f"{uri} holds no files: name a folder of images, or of shards")
    return Folder(uri, listing, per_list, total)


def read_batch(
    images: InputImages,
    config: ViewsConfig,
    first: int,
    size: int,
    item: Mapping[str, NDArray[Any]],
) -> dict[str, NDArray[Any]]:
    """Read and decode one batch, as a task of Ray Data: keys, `views`, and `fault` (N,).

    Args:
        images: of which one batch is read.
        config: the model's views.
        first: where the first batch begins; size: images of a batch.
        item: `id`, the batch's number, (1,).
    """
    start = first + int(item["id"][0]) * size
    rows = images.load(start, min(start + size, images.total))
    views, faults = views_of(rows.images, config)
    keys = {name: np.array(values) for name, values in rows.keys.items()}
    return {**keys, "views": views, "fault": np.array(faults)}


def views_of(images: Sequence[Image], config: ViewsConfig) -> tuple[Pixels, list[str]]:
    """Views as in evaluation, uint8 (N, 1, H, W, 3), and why there is none: '' where there is."""
    views = np.zeros((len(images), 1, config.image_size, config.image_size, 3), np.uint8)
    faults = []
    with checker_settings(), one_thread():
        for view, image in zip(views, images, strict=True):
            try:
                view[0] = _view(image, config)
                faults.append("")
            except ValueError as error:
                faults.append(str(error))
    return views, faults


def _view(image: Image, config: ViewsConfig) -> Pixels:
    if isinstance(image, str):
        raise UserError(image)
    width, height = image_size(image, MAX_PIXELS, LABELLED)
    height, width = resized_sides(height, width, config)
    if height * width > MAX_PIXELS:
        raise UserError(
            f"its sides are too unequal: {width} x {height} pixels when the shorter one is "
            f"{config.eval_resize}"
        )
    try:
        return eval_view(decode(image), config)
    except cv2.error as error:
        raise UserError(f"OpenCV cannot resize it: {error.err}") from None


def _list_file(listing: str, number: int) -> str:
    return files.join(listing, f"{number:06d}.parquet")


def _read_list(listing: str, number: int) -> list[str]:
    data = files.read_bytes(_list_file(listing, number))
    return list(pq.read_table(pa.BufferReader(data))["path"].to_pylist())
