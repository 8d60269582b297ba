"""Files that say which class images are of: COCO's JSON, records, and plain lists.

`FORMATS` is a table of them. A new format is a function that finds its rows in a file's text, and
returns None for other files with that extension.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from bcl_ray.data.sources.base import SourceRequest, lines_of, read_text
from bcl_ray.data.sources.tree import Tree, split_of
from bcl_ray.machine.errors import UserError
from bcl_ray.storage import paths

# Columns with such names, in this order of preference.
IMAGE_COLUMNS = (
    "image file_name filename file filepath file_path image_path img_path path img image_name"
    " image_id img_id imageid id name"
)
LABEL_COLUMNS = (
    "class_name label_name category_name label class category species breed target classname"
    " class_id label_id category_id"
)
SPLIT_COLUMNS = "split set subset partition data_set"


class Labelled(NamedTuple):
    """An image as an annotation file names it, its class, and its split where the file says it."""

    image: str
    name: str
    split: str | None = None


@dataclass(frozen=True)
class Annotations:
    """The images of an annotation file."""

    rows: Sequence[Labelled]
    class_order: Sequence[str] = ()
    """Classes in the order of their labels, where the file has one."""


def _coco(text: str, request: SourceRequest) -> Annotations | None:
    """Images, annotations and categories, as COCO and iNaturalist have them; or a list of records.

    An image that has no annotation is not labelled.
    """
    content = json.loads(text)
    if isinstance(content, list):
        return _of_records(content, request)
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        return None
    images = {image["id"]: str(image["file_name"]) for image in content["images"]}
    categories = sorted(content.get("categories", []), key=lambda category: category["id"])
    names = {category["id"]: str(category.get("name", category["id"])) for category in categories}
    if len(set(names.values())) < len(names):
        names = {number: f"{name} ({number})" for number, name in names.items()}
    marks = [mark for mark in content["annotations"] if "category_id" in mark]
    rows = [
        Labelled(images[mark["image_id"]], names.get(mark["category_id"], str(mark["category_id"])))
        for mark in marks
    ]
    return Annotations(rows, tuple(names.values())) if rows else None


def _delimited(text: str, request: SourceRequest) -> Annotations | None:
    """A table with a header: a column of images, and one of classes or one for each class."""
    delimiter = max(",\t;", key=lines_of(text[:100_000])[0].count)
    return _of_records(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter), request)


def _records(text: str, request: SourceRequest) -> Annotations | None:
    """JSON records, one in each line."""
    return _of_records((json.loads(line) for line in lines_of(text) if line.strip()), request)


def _of_records(records: Iterable[Mapping[str, Any]], request: SourceRequest) -> Annotations | None:
    rows = [
        {re.sub(r"[\s-]+", "_", str(key).strip().lower()): value for key, value in record.items()}
        for record in records
    ]
    if not rows:
        return None
    columns = list(rows[0])

    def first(option: str, names: str) -> str | None:
        wanted = names.split() if option in names.split() else [option.lower()]
        return next((name for name in wanted if name in columns), None)

    image = first(request.image_column, IMAGE_COLUMNS)
    label = first(request.label_column, LABEL_COLUMNS)
    split = first("split", SPLIT_COLUMNS)
    if image is None:
        return None
    if label is None:
        return _of_classes(rows, image, [column for column in columns if column != image])
    return Annotations(
        [
            Labelled(str(row[image]).strip(), str(row[label]).strip(), split and str(row[split]))
            for row in rows
            if row[image] not in (None, "") and row[label] not in (None, "")
        ]
    )


def _of_classes(
    rows: Sequence[Mapping[str, Any]], image: str, classes: Sequence[str]
) -> Annotations | None:
    """Rows with a column of zeros and ones for each class, as Roboflow writes them."""
    cells = [[str(row[name]).strip().removesuffix(".0") for name in classes] for row in rows]
    if not classes or any(cell not in ("0", "1") for row in cells for cell in row):
        return None
    named = [
        Labelled(str(row[image]).strip(), name)
        for row, ones in zip(rows, cells, strict=True)
        for name, one in zip(classes, ones, strict=True)
        if one == "1"
    ]
    return Annotations(named, classes)


def _plain(text: str, _: SourceRequest) -> Annotations | None:
    """Lines of an image and a class, as in Tiny-ImageNet's val_annotations.txt.

    What follows a second tab, the box, is left out.
    """
    rows = []
    for line in lines_of(text):
        fields = line.strip().split("\t") if "\t" in line.strip() else line.strip().rsplit(None, 1)
        if len(fields) >= 2:
            rows.append(Labelled(fields[0], fields[1]))
        elif line.strip():
            return None
    return Annotations(rows)


FORMATS: dict[str, Callable[[str, SourceRequest], Annotations | None]] = {
    ".json": _coco,
    ".csv": _delimited,
    ".tsv": _delimited,
    ".jsonl": _records,
    ".txt": _plain,
}


class Image(NamedTuple):
    """An image of a split, the name of its class, and why it cannot be used."""

    path: str
    name: str
    fault: str | None = None


@dataclass(frozen=True)
class AnnotationReader:
    """Reads the annotation files of a tree, which are in its root, or one folder below."""

    tree: Tree
    request: SourceRequest
    used: dict[str, Annotations] = field(default_factory=dict)
    """The files that name images of the tree."""
    unread: list[str] = field(default_factory=list)
    """Notes on files that cannot be read."""

    @cached_property
    def images(self) -> dict[str, list[Image]]:
        """The images of each split, in the order of the files and their lines.

        Raises:
            ValueError: Two files name the same image.
        OSError: A file cannot be read.
        """
        by_split: dict[str, dict[str, _Marks]] = {}
        for file in self.tree.others:
            if file.count("/") > 1 or "submission" in file.lower():  # Kaggle: made-up classes
                continue
            for image, name, split in self._rows_of(file):
                said = (split_of(split) or split) if split else _split_of_path(file)
                path, fault = self._locate(file, image, said)
                row_split = said or split_of(path.partition("/")[0]) or "train"
                marks = by_split.setdefault(row_split, {}).setdefault(path, _Marks(file, [], fault))
                if marks.file != file:
                    raise UserError(
                        f"{self.tree.root}: both {marks.file} and {file} say which class {path} is "
                        "of: remove one of them"
                    )
                if name not in marks.names:
                    marks.names.append(name)
        return {
            split: [_image(path, marks) for path, marks in images.items()]
            for split, images in by_split.items()
        }

    def _rows_of(self, file: str) -> Sequence[Labelled]:
        parse = FORMATS.get(PurePosixPath(file).suffix.lower())
        if parse is None:
            return ()
        uri = paths.file_in(self.tree.root, file)
        try:
            found = parse(read_text(uri), self.request)
        except UserError as error:
            self.unread.append(str(error))
            return ()
        except (KeyError, TypeError, AttributeError, ValueError, csv.Error) as error:
            self.unread.append(f"{uri} cannot be read ({type(error).__name__}: {error})")
            return ()
        # A file belongs to the images if it names some; otherwise it is about something else.
        if found is None or not any(self._find(file, row.image) for row in found.rows[:100]):
            return ()
        self.used[file] = found
        return found.rows

    def _locate(self, file: str, image: str, split: str | None) -> tuple[str, str | None]:
        """The path of an image, and why it is not clear."""
        found = self._find(file, image)
        if len(found) > 1 and split is not None:
            found = [path for path in found if split_of(path.partition("/")[0]) == split] or found
        if not found:
            return f"{file.rpartition('/')[0]}/{image}".strip("/"), None
        fault = f"'{image}' may be {found[0]} or {found[1]}" if len(found) > 1 else None
        return found[0], fault

    def _find(self, file: str, image: str) -> list[str]:
        """Images that are meant: beside the file, or where their paths end so."""
        name = image.replace("\\", "/").removeprefix("./")
        folder = file.rpartition("/")[0]
        beside = f"{folder}/{name}".lstrip("/")
        candidates = self._by_name.get(name.rpartition("/")[2], [])
        if beside in candidates:
            return [beside]
        while True:
            found = [path for path in candidates if _ends_so(path, name)]
            if found or not name.startswith("/"):
                return found
            name = "/".join(["", *name.split("/")[2:]]) if name.count("/") > 1 else name[1:]

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        """Images by their names, with and without extension."""
        found: dict[str, list[str]] = {}
        for path in self.tree.images:
            pure = PurePosixPath(path)
            for name in {pure.name, pure.stem}:
                found.setdefault(name, []).append(path)
        return found


def _ends_so(path: str, name: str) -> bool:
    ends = (f"/{path}", f"/{PurePosixPath(path).with_suffix('')}")
    return any(end.endswith(f"/{name.lstrip('/')}") for end in ends)


def _split_of_path(path: str) -> str | None:
    """The split that a part of a path names; the last part that names one counts."""
    return next((split for part in reversed(path.split("/")) if (split := split_of(part))), None)


class _Marks(NamedTuple):
    """What a file says of an image."""

    file: str
    names: list[str]
    fault: str | None


def _image(path: str, marks: _Marks) -> Image:
    names = marks.names
    if len(names) == 1:
        return Image(path, names[0], marks.fault)
    return Image(path, "", f"it has annotations of {len(names)} classes ({', '.join(names[:5])})")
