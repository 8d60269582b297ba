"""The images to label: an ordered collection, any rows of which can be read at any time.

Nothing is held in memory per image. The positions of images in shards follow from the manifest. The
files of a folder or prefix are listed into list files (`listing`), of which each task reads one.

Axes: N images of a batch, H = W = views.image_size.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bcl_ray.data.decode import Pixels, decode
from bcl_ray.data.image_check import checked_size, checker_settings
from bcl_ray.data.layout import Layout
from bcl_ray.data.shards import MAX_PIXELS, Manifest, read_row_group
from bcl_ray.data.views.host import eval_view, one_thread, resized_sides
from bcl_ray.experiment.options import ViewsConfig
from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files
from bcl_ray.storage.paths import is_local
from bcl_ray.use.predict.listing import ListFiles

PARALLEL_READS = 8  # files per task at once, which hides the latency of an object store

Image = bytes | str  # an encoded file, or the reason why it cannot be read


@dataclass(frozen=True)
class Rows:
    """N images with the columns that identify them."""

    keys: dict[str, list[Any]]  # columns of N values: path; or id and true_class
    images: list[Image]


class InputImages(Protocol):
    """The images to label, in their order."""

    def load(self, start: int, stop: int) -> Rows:
        """Read the images from `start` to before `stop`."""


@dataclass(frozen=True)
class Folder:
    """The files below a folder or prefix, as they are listed."""

    uri: str
    lists: ListFiles

    def load(self, start: int, stop: int) -> Rows:
        """Read rows of one list; a file that cannot be read has the reason instead."""
        number, first = divmod(start, self.lists.per_list)
        paths = self.lists.read(number)[first : first + stop - start]
        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            return Rows({"path": paths}, list(pool.map(self._read, paths)))

    def _read(self, path: str) -> Image:
        try:
            return files.read_listed(self.uri, path)
        except FileNotFoundError:
            return "it is no longer there"
        except files.NoFileError as error:
            return str(error)
        except PermissionError:
            if not is_local(self.uri):  # in an object store, probably no file can be read
                raise
            return "this user may not read it"


@dataclass(frozen=True)
class Shards:
    """The images of one split of a data set."""

    uri: str  # folder or URI of the shards
    split: str
    fingerprint: str  # of the data set
    files: Sequence[str]  # names of the shards, in the manifest's order
    layout: Layout
    class_names: tuple[str, ...]  # (K,)

    def load(self, start: int, stop: int) -> Rows:
        """Read rows of any row groups."""
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
        """The row group that holds a row, both numbered over the split."""
        shard = int(np.searchsorted(self.layout.first_rows, row, side="right")) - 1
        within = row - int(self.layout.first_rows[shard])
        return int(self.layout.first_groups[shard]) + within // self.layout.row_group_rows


def shards_of(uri: str, manifest: Manifest, split: str) -> Shards:
    """The images of a split of a data set.

    Raises:
        ValueError: The data set has no such split.
    """
    if split not in manifest.splits:
        raise UserError(f"--split '{split}' is not in {uri}: there is {', '.join(manifest.splits)}")
    return Shards(
        uri,
        split,
        manifest.fingerprint,
        manifest.splits[split].shards.names,
        Layout.of(manifest.splits[split]),
        manifest.class_names,
    )


def read_batch(
    images: InputImages, config: ViewsConfig, start: int, stop: int
) -> dict[str, NDArray[Any]]:
    """Read and decode a batch, in a task.

    Args:
        images: The images to label.
        config: View options of the model.
        start: Position of the batch's first image.
        stop: Position after its last one.

    Returns:
        The key columns, `views` and `error`, as `views_of` returns them.
    """
    rows = images.load(start, stop)
    views, errors = views_of(rows.images, config)
    keys = {name: np.array(values) for name, values in rows.keys.items()}
    return {**keys, "views": views, "error": np.array(errors)}


def views_of(images: Sequence[Image], config: ViewsConfig) -> tuple[Pixels, list[str]]:
    """Decode images to the views of evaluation.

    Returns:
        Views, uint8 (N, 1, H, W, 3), and for each image the reason why it has no view, or "". The
        view of such an image is black.
    """
    views = np.zeros((len(images), 1, config.image_size, config.image_size, 3), np.uint8)
    errors = []
    with checker_settings(), one_thread():
        for view, image in zip(views, images, strict=True):
            try:
                view[0] = _view(image, config)
                errors.append("")
            except ValueError as error:
                errors.append(str(error))
    return views, errors


def _view(image: Image, config: ViewsConfig) -> Pixels:
    if isinstance(image, str):
        raise UserError(image)
    width, height = checked_size(image, MAX_PIXELS)
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
